"""Groups of samples as a user gives them: samples of a group are fitted or held out together.

To add a format, enter a function in `GROUP_FORMATS` that takes a path and returns the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.samples.files import existing, open_npz, read_npy, reading

_NAME = "groups"


def load_groups(groups: str | Sequence[str | int], count: int) -> NDArray[np.intp]:
    """Return one group per sample of a source, counted from 0.

    Args:
        groups: the group of each sample, names or integers; or a file of these: a one-dimensional
            ``.npy``, an ``.npz`` with an array ``groups`` (or one one-dimensional array), a
            ``.txt`` or ``.csv`` with one name per line.
        count: number of samples that the source holds.

    Returns:
        (count,) numbers, the same for samples of the same group.

    Raises:
        SamplesError: the file is unreadable, holds something else or another number of groups.
    """
    if isinstance(groups, str):
        path = existing(groups)
        read = GROUP_FORMATS.get(path.suffix.lower())
        if read is None:
            raise SamplesError(f"{path}: groups are read from {one_of(GROUP_FORMATS)} files")
        name, found = str(path), read(path)
    else:
        name, found = "the groups", np.array(groups)
    if found.ndim != 1 or not (np.issubdtype(found.dtype, np.integer) or found.dtype.kind in "US"):
        raise SamplesError(
            f"{name}: {found.dtype} of shape {found.shape} is no list of groups; give one name or "
            "integer per sample"
        )
    if len(found) != count:
        raise SamplesError(
            f"{name}: {len(found)} groups for {count} samples; give one group per sample of the "
            "source"
        )
    return np.unique(found, return_inverse=True)[1].reshape(-1).astype(np.intp)


def _read_archive(path: Path) -> NDArray[Any]:
    """Return the array that is called groups, or else the only one that can hold groups."""
    with open_npz(path) as archive:
        if _NAME in archive:
            return np.asarray(archive[_NAME])
        found = [array for key in archive if (array := np.asarray(archive[key])).ndim == 1]
    if len(found) != 1:
        raise SamplesError(f"{path}: holds no array called groups; save them as groups=...")
    return found[0]


def _read_text(path: Path) -> NDArray[Any]:
    """Return the names in a text file, one per line."""
    with reading(path, "a text file"):
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [line.strip() for line in lines]
    if "" in names:
        raise SamplesError(f"{path}: line {names.index('') + 1} is empty; name the group of it")
    return np.array(names, dtype=np.str_)


GROUP_FORMATS: Mapping[str, Callable[[Path], NDArray[Any]]] = MappingProxyType(
    {".npy": read_npy, ".npz": _read_archive, ".txt": _read_text, ".csv": _read_text}
)
"""Readers of files of groups, by suffix in lower case."""
