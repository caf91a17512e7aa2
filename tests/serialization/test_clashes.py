"""No call writes to a file that it reads, or twice to the same one, whatever names they go by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from fskd_onnx.serialization.clashes import find_clash
from fskd_onnx.serialization.external_data import weight_files
from tests.helpers import build

TEXT = "g (float[N,4] x) => (float[N,6] z) <float[4,6] w> { z = MatMul (x, w) }"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A model with its weights beside it, a folder of samples, and a map."""
    model = build(TEXT)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location="weights.bin")
    (tmp_path / "samples" / "a").mkdir(parents=True)
    onnx.save_model(model, tmp_path / "model.onnx")
    for name in ("samples/0.png", "samples/a/1.png", "map.json"):
        (tmp_path / name).touch()
    return {
        "STUDENT": tmp_path / "model.onnx",
        "a file of weights of STUDENT": tmp_path / "weights.bin",
        "one of SAMPLES": tmp_path / "samples" / "a" / "1.png",
        "the map": tmp_path / "map.json",
    }


def clash(folder: Path, *written: Path) -> tuple[str, str] | None:
    return find_clash(
        {"STUDENT": folder / "model.onnx"},
        {"SAMPLES": folder / "samples", "the map": folder / "map.json"},
        [(f"option {number}", path) for number, path in enumerate(written)],
    )


NAMED_BY: dict[str, Callable[[Path, Path], Path]] = {
    "its name": lambda path, _: path,
    "a detour": lambda path, _: path.parent / ".." / path.parent.name / path.name,
}


@pytest.mark.parametrize("how", NAMED_BY)
def test_an_input_is_no_output(tmp_path: Path, files: dict[str, Path], how: str) -> None:
    for what, path in files.items():
        found = clash(tmp_path, tmp_path / "new.onnx", NAMED_BY[how](path, tmp_path))
        assert found is not None
        assert found[0] == "option 1"
        assert f"is an input ({what})" in found[1]


@pytest.mark.parametrize("hard", [False, True])
def test_links_to_inputs_are_inputs(tmp_path: Path, files: dict[str, Path], hard: bool) -> None:
    for number, path in enumerate(files.values()):
        link = tmp_path / f"link{number}"
        link.hardlink_to(path) if hard else link.symlink_to(path)
        assert clash(tmp_path, link) is not None


def test_outputs_differ_from_each_other(tmp_path: Path, files: dict[str, Path]) -> None:
    new = tmp_path / "new.json"
    for same in (new, tmp_path / "samples" / ".." / "new.json"):
        found = clash(tmp_path, new, same)
        assert found is not None
        assert found[0] == "option 1"
        assert "the file that option 0 names as well" in found[1]
    assert clash(tmp_path, new, tmp_path / "other.json") is None


def test_inputs_that_are_not_there_are_compared_by_name(tmp_path: Path) -> None:
    assert clash(tmp_path, tmp_path / "model.onnx") is not None
    assert clash(tmp_path, tmp_path / "samples") is not None


def test_other_files_may_be_replaced(tmp_path: Path, files: dict[str, Path]) -> None:
    old = tmp_path / "old.onnx"
    old.touch()
    assert clash(tmp_path, old, tmp_path / "samples.json") is None


def test_what_is_no_model_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    assert weight_files(tmp_path / "text.onnx") == weight_files(tmp_path / "none.onnx") == []
