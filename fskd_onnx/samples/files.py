"""Files that samples and labels are read from: found by suffix, errors said in one sentence."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError

_SAVE = "save numbers with np.save or np.savez (pickled arrays are refused)"


def existing(path: str | os.PathLike[str]) -> Path:
    """Return a path that exists.

    Raises:
        SamplesError: it does not.
    """
    path = Path(path)
    if not path.exists():
        raise SamplesError(f"{path}: does not exist; check the path")
    return path


def visible_entries(folder: Path) -> list[Path]:
    """Return what lies directly in a folder, by name; hidden entries are left out.

    Raises:
        SamplesError: the folder cannot be read.
    """
    with reading(folder, "a folder"):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def files_with_suffix(path: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with one of some suffixes: ``path`` itself, or those directly in a folder.

    Args:
        path: a file or a folder.
        suffixes: in lower case, with their dots.

    Raises:
        SamplesError: the folder cannot be read.
    """
    if not path.is_dir():
        return [path] if path.suffix.lower() in suffixes else []
    entries = visible_entries(path)
    return [e for e in entries if e.suffix.lower() in suffixes and not e.is_dir()]


@contextmanager
def reading(path: Path, what: str, remedy: str = "repair or replace it") -> Iterator[None]:
    """Say in one sentence what a ``with`` block raises over a missing, broken or pickled file.

    Args:
        path: the file.
        what: what it is read as.
        remedy: what to do about it.

    Raises:
        SamplesError: the block raised any exception.
    """
    try:
        yield
    except SamplesError:
        raise
    # Readers of broken files raise whatever they stumble over: OSError, ValueError, SyntaxError,
    # EOFError, DecodeError, BadZipFile, struct.error, zlib.error, DecompressionBombError, ...
    except Exception as error:
        raise SamplesError(
            f"{path}: cannot be read as {what} ({str(error) or type(error).__name__}); {remedy}"
        ) from error


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of an ``.npy`` file, mapped into memory.

    Raises:
        SamplesError: the file is broken or holds pickled objects.
    """
    with reading(path, "an array", _SAVE):
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Open an ``.npz`` file for a ``with`` block, which reads arrays by name.

    Raises:
        SamplesError: the file is broken, or an array that is read is or holds pickled objects.
    """
    with (
        reading(path, "an archive of arrays", _SAVE),
        np.load(path, allow_pickle=False) as archive,
    ):
        yield archive
