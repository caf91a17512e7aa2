"""Files that are written beside others are named after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fskd_onnx.serialization.file_names import (
    data_path,
    fitted_path,
    free_data_path,
    small_path,
)


@pytest.mark.parametrize(
    ("student", "output"),
    [("s.onnx", "s.fskd.onnx"), ("a.b.ONNX", "a.b.fskd.onnx"), ("model.v1", "model.v1.fskd.onnx")],
)
def test_a_fitted_student_lies_beside_the_student(student: str, output: str) -> None:
    assert fitted_path(Path("d") / student) == Path("d") / output


def test_a_student_lies_beside_its_teacher() -> None:
    assert small_path(Path("d") / "t.ONNX") == Path("d") / "t.small.onnx"
    assert small_path(Path("net.v1")) == Path("net.v1.small.onnx")


def test_weights_lie_beside_their_model() -> None:
    assert data_path(Path("d") / "a.onnx") == Path("d") / "a.onnx.data"


def test_weights_go_where_nothing_else_is(tmp_path: Path) -> None:
    model, data = tmp_path / "a.onnx", tmp_path / "new"
    data.write_bytes(b"weights")
    plain = data_path(model)
    assert free_data_path(model, data) == plain
    plain.write_bytes(b"others")
    named = free_data_path(model, data)
    assert (named.parent, named.suffix, named != plain) == (tmp_path, ".data", True)
    # Written once more it is the same file, whatever has become of the one in its way.
    named.write_bytes(b"weights")
    plain.unlink()
    assert free_data_path(model, data, [named]) == named
    assert free_data_path(model, data, [tmp_path / "gone"]) == plain
