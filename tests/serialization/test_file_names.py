"""Files that are written beside others are named after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fskd_onnx.serialization.file_names import data_path, fitted_path


@pytest.mark.parametrize(
    ("student", "output"),
    [("s.onnx", "s.fskd.onnx"), ("a.b.ONNX", "a.b.fskd.onnx"), ("model.v1", "model.v1.fskd.onnx")],
)
def test_a_fitted_student_lies_beside_the_student(student: str, output: str) -> None:
    assert fitted_path(Path("d") / student) == Path("d") / output


def test_weights_lie_beside_their_model() -> None:
    assert data_path(Path("d") / "a.onnx") == Path("d") / "a.onnx.data"
