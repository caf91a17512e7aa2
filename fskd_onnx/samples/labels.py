"""Class labels of samples, from the files that they come in.

To add a format, enter a function in `LABEL_FORMATS` that takes a path and returns the labels.
"""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)

_NAMED = 5  # classes

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
        raise SamplesError(
            f"{path}: labels are read from {one_of(LABEL_FORMATS)} files; say 'folders' for the "
            "names of the subfolders of SAMPLES"
        )
    labels = read(path)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise SamplesError(
            f"{path}: holds {labels.dtype} of shape {labels.shape}; labels are integers in one "
            "dimension, one per sample"
        )
    if len(labels) != count:
        found = "1 label" if len(labels) == 1 else f"{len(labels)} labels"
        raise SamplesError(
            f"{path}: holds {found} for {count} samples; give one label per sample of the source"
        )
    return labels.astype(np.int64)


def folder_labels(folders: NDArray[np.str_] | None, source: str) -> NDArray[np.int64]:
    """Return the labels that the names of folders are: numbers, or classes in the order of names.

    Args:
        folders: name of the folder that each sample of the source lies in; "" for the source
            itself, None where it has no folders.
        source: what to call the source in messages.

    Returns:
        (count,) labels.

    Raises:
        SamplesError: samples lie in no folder, or some names are numbers and others are not.
    """
    if folders is None or "" in folders:
        raise SamplesError(
            f"{source}: not all samples lie in folders that could be their classes; make a folder "
            "for each class, or give a file of labels"
        )
    names = sorted(set(folders.tolist()))
    numbers = [name for name in names if re.fullmatch("[0-9]{1,9}", name)]
    if numbers and len(numbers) < len(names):
        other = next(name for name in names if name not in numbers)
        raise SamplesError(
            f"{source}: the folder '{numbers[0]}' is called by a number and '{other}' is not; name "
            "all by the numbers of their classes, or none"
        )
    classes = {name: int(name) if numbers else place for place, name in enumerate(names)}
    if not numbers:
        listed = ", ".join(f"{name} {place}" for name, place in list(classes.items())[:_NAMED])
        logger.warning(
            "%s: the names of folders, in their order, are taken as classes: %s%s",
            source,
            listed,
            ", ..." if len(classes) > _NAMED else "",
        )
    return np.array([classes[name] for name in folders.tolist()], np.int64)


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
