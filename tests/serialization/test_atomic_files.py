"""Output files appear together, whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.serialization.atomic_files import (
    OutputFiles,
    check_writable,
    write_text_atomically,
)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def test_the_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "a.json", "größer\n")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert list(contents(tmp_path)) == ["a.json"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("a much longer old content")
    write_text_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_files_and_no_other(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    (tmp_path / "model.onnx").write_text("old")

    def write_half() -> None:
        with OutputFiles() as files:
            files.write_text(tmp_path / "report.json", "whole")
            files.stage(tmp_path / "model.onnx").write_text("half")
            raise kind

    with pytest.raises(kind):
        write_half()
    assert contents(tmp_path) == {"model.onnx": "old"}


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_failure_between_the_renames_brings_back_what_was_there(
    tmp_path: Path, fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"a": "old a", "b": "old b"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    replace = Path.replace
    renamed: list[Path] = []

    def fail(self: Path, target: Path) -> Path:
        if len(renamed) == fails_at:
            renamed.append(target)
            raise OSError(5, "Input/output error")
        renamed.append(target)
        return replace(self, target)

    def write_all() -> None:
        with OutputFiles() as files:
            for name in ("a", "new", "b"):
                files.write_text(tmp_path / name, f"new {name}")
            monkeypatch.setattr(Path, "replace", fail)

    with pytest.raises(FskdError, match=r"cannot be written \(Input/output error\)"):
        write_all()
    assert contents(tmp_path) == before


def test_files_appear_in_the_order_in_which_they_were_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    replace = Path.replace

    def note(self: Path, target: Path) -> Path:
        order.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", note)
    with OutputFiles() as files:
        for name in ("weights", "model", "report"):
            files.write_text(tmp_path / name, name)
    assert order == ["weights", "model", "report"]
    assert contents(tmp_path) == {name: name for name in order}


def test_a_staged_file_may_go_elsewhere_or_nowhere(tmp_path: Path) -> None:
    with OutputFiles() as files:
        one, other = files.stage(tmp_path / "one"), files.stage(tmp_path / "other")
        one.write_text("1")
        files.restage(one, tmp_path / "moved")
        files.discard(other)
    assert contents(tmp_path) == {"moved": "1"}


def test_the_temporary_path_is_a_sibling_with_the_same_suffix(tmp_path: Path) -> None:
    with OutputFiles() as files:
        temporary = files.stage(tmp_path / "model.onnx")
        assert temporary.parent == tmp_path.resolve()
        assert temporary.suffix == ".onnx"


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
        with OutputFiles() as files:
            files.stage(tmp_path / "a.onnx")
            raise OSError(28, "No space left on device")

    with pytest.raises(FskdError, match=r"a\.onnx: cannot be written \(No space left on device\)"):
        fill_the_disk()
    assert contents(tmp_path) == {}


def test_impossible_places_are_told_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(FskdError, match=r"nowhere.a\.json: the folder .* does not exist"):
        check_writable(tmp_path / "nowhere" / "a.json")
    with pytest.raises(FskdError, match="is not a regular file"):
        check_writable(tmp_path)
    circle = tmp_path / "circle"
    os.symlink(circle, circle)  # noqa: PTH211
    with pytest.raises(FskdError, match="circle"):
        check_writable(circle / "a.json")
    check_writable(tmp_path / "a.json")
