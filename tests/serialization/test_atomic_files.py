"""Output files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.serialization.atomic_files import atomic_path, check_writable, write_text_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.json", "größer\n")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert names(tmp_path) == ["a.json"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("a much longer old content")
    write_text_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise kind

    with pytest.raises(kind):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.onnx"]


def test_the_temporary_path_is_a_sibling_with_the_same_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "model.onnx") as temporary:
        assert temporary.parent == tmp_path.resolve()
        assert temporary.suffix == ".onnx"
        assert not temporary.exists()
        temporary.touch()


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text_atomically(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "real.json")
    write_text_atomically(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "real.json").read_text() == "x"


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic_path(tmp_path / "a.onnx"):
            raise OSError(28, "No space left on device")

    with pytest.raises(FskdError, match=r"a\.onnx: cannot be written \(No space left on device\)"):
        fill_the_disk()
    assert names(tmp_path) == []


def test_impossible_places_are_told_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(FskdError, match=r"nowhere.a\.json: the folder .* does not exist"):
        check_writable(tmp_path / "nowhere" / "a.json")
    with pytest.raises(FskdError, match="is not a regular file"):
        check_writable(tmp_path)
    check_writable(tmp_path / "a.json")
