"""Files that samples and labels are read from: found by suffix, errors said in one sentence."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.samples.stored_arrays import ArrayArchive, map_array
from fskd_onnx.serialization.input_files import check_regular

_SAVE = "save numbers with np.save or np.savez (pickled arrays are refused)"


def existing(path: str | os.PathLike[str]) -> Path:
    """Return a path that exists.

    Raises:
        SamplesError: it does not, or cannot be reached.
    """
    path = Path(path)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: of a NUL
        raise SamplesError(f"{path}: does not exist; check the path") from error
    except OSError as error:
        raise SamplesError(f"{path}: cannot be read ({error.strerror}); check the path") from error
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

    A named pipe, which waits for its writer, and a device, which never ends, are refused before.

    Args:
        path: the file.
        what: what it is read as.
        remedy: what to do about it.

    Raises:
        SamplesError: the block raised any exception.
    """
    try:
        check_regular(path)
        yield
    except SamplesError:
        raise
    # Readers of broken files raise whatever they stumble over: OSError, ValueError, SyntaxError,
    # EOFError, DecodeError, BadZipFile, struct.error, zlib.error, DecompressionBombError, ...
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) else None
        reason = said or str(error) or type(error).__name__
        raise SamplesError(f"{path}: cannot be read as {what} ({reason}); {remedy}") from error


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of an ``.npy`` file, mapped into memory.

    Raises:
        SamplesError: the file is broken or holds pickled objects.
    """
    with reading(path, "an array", _SAVE):
        return map_array(path)


@contextmanager
def open_npz(path: Path) -> Iterator[ArrayArchive]:
    """Open an ``.npz`` file for a ``with`` block, which reads arrays by name.

    Raises:
        SamplesError: the file is broken, or an array that is read is or holds pickled objects.
    """
    with (
        reading(path, "an archive of arrays", _SAVE),
        ArrayArchive(path) as archive,
    ):
        yield archive
