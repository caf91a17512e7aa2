"""Arrays as NumPy stores them, by themselves or in archives; sizes are checked before anything is.

The header of an array says how large it is, and the file how much there is of it. What a header
claims beyond that is refused before memory is asked for.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_SUFFIX = ".npy"
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Of how many bytes the length of the header is, by version.
_LENGTH_BYTES = {1: 2, 2: 4}
# A member of an archive that unpacks to more than this many bytes, and to so many times its own,
# holds next to nothing.
_LARGE_MEMBER, _MOST_TIMES = 2**28, 200


def map_array(path: Path) -> NDArray[Any]:
    """Return the array of an ``.npy`` file, mapped into memory.

    Raises:
        ValueError: the file holds no array, less than its header says, or pickled objects.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if zipfile.is_zipfile(stream):
            raise ValueError("it is an archive of arrays, which is called .npz")
        stream.seek(0)
        shape, fortran, dtype = _header(stream, "it", path.stat().st_size)
        if math.prod(shape) == 0:
            return np.empty(shape, dtype)
        order, offset = "F" if fortran else "C", stream.tell()
    return np.memmap(path, dtype, "r", offset, shape, order)  # type: ignore[call-overload,no-any-return]


class ArrayArchive(Mapping[str, NDArray[Any]]):
    """The arrays of an ``.npz`` file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open the archive; the object is a context manager that closes it.

        Raises:
            ValueError: the file is no archive.
            OSError: it cannot be read.
        """
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                array = stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
            raise ValueError(
                "it is an array, which is called .npy" if array else "it is not all of an archive"
            )
        self._path, self._archive = path, zipfile.ZipFile(path)
        self._members = {
            member.filename.removesuffix(_SUFFIX): member
            for member in self._archive.infolist()
            if member.filename.endswith(_SUFFIX)
        }

    def __enter__(self) -> ArrayArchive:
        """Return the archive."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._archive.close()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the arrays."""
        return iter(self._members)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._members)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            KeyError: there is none of that name.
            ValueError: it is shorter than its header says, holds pickled objects, or unpacks to far
                more than it should.
        """
        member, called = self._members[name], f"its array '{name}'"
        if member.file_size > max(_LARGE_MEMBER, _MOST_TIMES * member.compress_size):
            raise ValueError(
                f"{called} unpacks from {member.compress_size} to {member.file_size} bytes, as no "
                "samples do"
            )
        if member.compress_size > self._path.stat().st_size:
            raise ValueError(f"{called} is longer than the archive")
        with self._archive.open(member.filename) as stream:
            _header(stream, called, member.file_size)
        with self._archive.open(member.filename) as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _header(
    stream: IO[bytes], name: str, there: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array, and leave the stream behind it.

    Args:
        stream: at the beginning of the array.
        name: what to call the array in an error.
        there: bytes that header and array have.

    Returns:
        The shape of the array, whether its first axis is the one that is stored together, and the
        type of its elements.

    Raises:
        ValueError: there is no array, or not all of it, or it holds pickled objects.
    """
    start = stream.read(len(np.lib.format.MAGIC_PREFIX) + 2)
    if not start.startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError(f"{name} holds no array")
    read = _READERS.get((start[-2], start[-1]))
    if read is None:
        version = ".".join(map(str, start[-2:]))
        raise ValueError(
            f"{name} is of version {version} of the format of arrays, which holds no numbers"
        )
    length = stream.read(_LENGTH_BYTES[start[-2]])
    size = int.from_bytes(length, "little")
    if size > there:
        raise ValueError(f"{name} is said to begin with {size} bytes of header, and has {there}")
    shape, fortran, dtype = read(io.BytesIO(length + stream.read(size)))
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    size, left = math.prod(shape) * dtype.itemsize, there - stream.tell()
    if size > left or min(shape, default=0) < 0:
        raise ValueError(
            f"{name} is said to be {dtype} of shape {shape}, which takes {size} bytes, and "
            f"has {left}"
        )
    return shape, fortran, dtype
