"""Names of the files that are written beside others."""

from __future__ import annotations

from pathlib import Path

MODEL_SUFFIX = ".onnx"
_FITTED_SUFFIX = f".fskd{MODEL_SUFFIX}"
_DATA_SUFFIX = ".data"


def fitted_path(student: Path) -> Path:
    """Return where the fitted student goes unless told: beside it, as in ``NAME.fskd.onnx``."""
    stem = student.stem if student.suffix.lower() == MODEL_SUFFIX else student.name
    return student.with_name(stem + _FITTED_SUFFIX)


def data_path(model: Path) -> Path:
    """Return the file in which a model keeps its large weights: ``NAME.onnx.data``."""
    return model.with_name(model.name + _DATA_SUFFIX)
