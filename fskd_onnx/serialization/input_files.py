"""Files that a call reads are opened here: no pipe, no device, and none larger than it may be.

A named pipe waits for its writer for good and a device never ends, so both are refused before they
are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnx

from fskd_onnx.errors import ModelError

# What a path leads to that is no regular file.
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISSOCK, "socket"),
)
# Protobuf reads no message of more bytes.
_LARGEST_MODEL = 2**31 - 1


def check_regular(
    path: str | os.PathLike[str], name: str | os.PathLike[str] | None = None
) -> os.stat_result:
    """Check that a path leads to what ends: no pipe, no device.

    Args:
        path: of the file.
        name: what to call it in an error; the path unless given.

    Returns:
        What the system says of it, its size included.

    Raises:
        OSError: it does not, and what it leads to instead; or there is no such file.
    """
    try:
        state = Path(path).stat()
    except ValueError as error:  # a NUL
        what = "that is no name of a file"
        raise OSError(errno.EINVAL, what, os.fspath(name or path)) from error
    for is_kind, word in _KINDS:
        if is_kind(state.st_mode):
            what = f"it is a {word} and not a regular file; give a file"
            raise OSError(errno.EINVAL, what, os.fspath(name or path))
    return state


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        OSError: it is none, or cannot be read.
    """
    check_regular(path)
    return Path(path).open("rb")


def read_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file, without its external data.

    Raises:
        ModelError: it is empty, or larger than any ONNX file.
        DecodeError: it is no ONNX file.
        OSError: it is no regular file, or cannot be read.
    """
    size = check_regular(path).st_size
    if size == 0:
        raise ModelError(
            f"{os.fspath(path)}: is not an ONNX file but empty; copy or export the model again"
        )
    if size > _LARGEST_MODEL:
        raise ModelError(
            f"{os.fspath(path)}: has {size} bytes, and no ONNX file has more than "
            f"{_LARGEST_MODEL}; larger models keep their weights in files of their own"
        )
    with open_regular(path) as stream:
        model: onnx.ModelProto = onnx.load_model(
            stream, format="protobuf", load_external_data=False
        )
    return model
