"""Class labels of samples, from the files that they come in.

To add a format, enter a function in `LABEL_FORMATS` that takes a path and returns the labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.printable import shortened
from fskd_onnx.samples.files import existing, open_npz, read_npy, reading

LABEL_NAMES = frozenset({"labels", "label", "y"})
"""Names of arrays, in an ``.npz`` or as files, that are never samples."""


def load_labels(path: str | Path, count: int) -> NDArray[np.int64]:
    """Read one class label per sample of a source.

    The labels are those of the whole source: `Samples.labels` slices them as the samples were
    drawn.

    Args:
        path: a one-dimensional ``.npy``; an ``.npz`` with an array ``labels`` (or one
            one-dimensional array of integers); a ``.txt`` or ``.csv`` with one integer per line.
        count: number of samples that the source holds.

    Returns:
        (count,) labels.

    Raises:
        SamplesError: the file is unreadable, holds something else or another number of labels.
    """
    path = existing(path)
    read = LABEL_FORMATS.get(path.suffix.lower())
    if read is None:
        raise SamplesError(f"{path}: labels are read from {one_of(LABEL_FORMATS)} files")
    labels = read(path)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise SamplesError(
            f"{path}: holds {labels.dtype} of shape {labels.shape}; labels are integers in one "
            "dimension, one per sample"
        )
    if len(labels) != count:
        raise SamplesError(
            f"{path}: holds {len(labels)} labels for {count} samples; give one label per sample of "
            "the source"
        )
    return labels.astype(np.int64)


def _read_archive(path: Path) -> NDArray[Any]:
    """Return the array that is called labels, or else the only one that can hold labels."""
    with open_npz(path) as archive:
        named = [key for key in archive if key in LABEL_NAMES]
        if named:
            return np.asarray(archive[named[0]])
        arrays = (np.asarray(archive[key]) for key in archive)
        found = [a for a in arrays if a.ndim == 1 and np.issubdtype(a.dtype, np.integer)]
    if len(found) != 1:
        raise SamplesError(f"{path}: holds no array called labels; save them as labels=...")
    return found[0]


def _read_text(path: Path) -> NDArray[Any]:
    """Return the integers of a text file, one per line."""
    with reading(path, "a text file"):
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    labels = []
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", line):
            raise SamplesError(
                f"{path}: line {number} is {shortened(line)!r} and not one integer; correct it"
            )
        labels.append(int(line))
    return np.array(labels, dtype=np.int64)


LABEL_FORMATS: Mapping[str, Callable[[Path], NDArray[Any]]] = MappingProxyType(
    {".npy": read_npy, ".npz": _read_archive, ".txt": _read_text, ".csv": _read_text}
)
"""Readers of files of labels, by suffix in lower case."""
