"""Output files that appear whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fskd_onnx.errors import FskdError


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, before minutes of work are spent on it.

    Args:
        path: the file that is to appear; it may exist.

    Raises:
        FskdError: the folder is missing or closed to writing, or ``path`` is no regular file.
    """
    path = Path(path)
    folder = path.resolve().parent
    if not folder.is_dir():
        raise FskdError(f"{path}: the folder {folder} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise FskdError(f"{path}: is not a regular file; choose another name for the output")
    if not os.access(folder, os.W_OK):
        raise FskdError(f"{path}: the folder {folder} is not writable; choose another one")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it replaces ``path`` when the block ends well.

    The new file is synced before it is renamed, so that no crash leaves half a file under the
    final name. When the block raises, what was written is removed and ``path`` is untouched.

    Args:
        path: the file that is to appear. A symbolic link is followed, not replaced.

    Yields:
        A path in the same folder, with the same suffix, that does not exist yet.

    Raises:
        FskdError: the file cannot be written (no such folder, no permission, disk full).
    """
    target = Path(path).resolve()
    check_writable(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        why = error.strerror or error
        raise FskdError(f"{path}: cannot be written ({why}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whole or not at all.

    Args:
        path: the file that is to appear.
        text: all of its content.

    Raises:
        FskdError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no such call for folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
