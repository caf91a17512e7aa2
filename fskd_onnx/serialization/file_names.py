"""Names of the files that are written beside others."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Sequence
from pathlib import Path

MODEL_SUFFIX = ".onnx"
_FITTED_SUFFIX = f".fskd{MODEL_SUFFIX}"
_SMALL_SUFFIX = f".small{MODEL_SUFFIX}"
_DATA_SUFFIX = ".data"


def fitted_path(student: Path) -> Path:
    """Return where the fitted student goes unless told: beside it, as in ``NAME.fskd.onnx``."""
    return _beside(student, _FITTED_SUFFIX)


def small_path(teacher: Path) -> Path:
    """Return where a student goes unless told: beside its teacher, as in ``NAME.small.onnx``."""
    return _beside(teacher, _SMALL_SUFFIX)


def _beside(model: Path, suffix: str) -> Path:
    stem = model.stem if model.suffix.lower() == MODEL_SUFFIX else model.name
    return model.with_name(stem + suffix)


def data_path(model: Path) -> Path:
    """Return the file in which a model keeps its large weights: ``NAME.onnx.data``."""
    return model.with_name(model.name + _DATA_SUFFIX)


def is_data_name(name: str, model: Path) -> bool:
    """Return whether a file has a name that weights of a model get."""
    return name.startswith(f"{model.name}.") and name.endswith(_DATA_SUFFIX)


def free_data_path(model: Path, data: Path, replaced: Sequence[Path] = ()) -> Path:
    """Return where a model's large weights may go without changing a file that is there.

    Args:
        model: file of the model.
        data: file with the bytes that are to go there.
        replaced: files of weights of the model that is there now.

    Returns:
        One of the replaced files that holds the same bytes, so that what is written twice is the
        same; else ``NAME.onnx.data``, or ``NAME.onnx.CHECKSUM.data`` where a file of that name
        holds other bytes. It exists where it holds the same bytes already.
    """
    for old in replaced:
        if old.exists() and filecmp.cmp(old, data, shallow=False):
            return old
    plain = data_path(model)
    if not plain.exists() or filecmp.cmp(plain, data, shallow=False):
        return plain
    with data.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return model.with_name(f"{model.name}.{checksum[:16]}{_DATA_SUFFIX}")
