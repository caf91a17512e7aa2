"""Temporary files and folders that no process leaves behind for good, even one that is killed.

Each is locked by the process that made it. The system takes the lock away with the process, so what
is not locked any more has lost its owner, and the next process that works in the same place removes
it. Windows has no such lock: there only what ends in order is removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX = ".fskd-onnx-"
_LOCK = "lock"


class TemporaryFile:
    """An empty file beside another one, which it may replace.

    Attributes:
        path: of the file.
    """

    def __init__(self, beside: Path) -> None:
        """Create the file.

        Args:
            beside: a path in the same folder; its suffix is that of the new file.

        Raises:
            OSError: the folder cannot be written to.
        """
        while True:
            self.path = beside.with_name(f"{_PREFIX}{secrets.token_hex(4)}{beside.suffix}")
            self._lock = _Lock(self.path)
            if self.path.exists():  # else another process took it for a stale one
                return
            self._lock.release()

    def remove(self) -> None:
        """Remove the file where it still is, and give up the lock."""
        self._lock.release()
        self.path.unlink(missing_ok=True)


class TemporaryFolder:
    """A folder among the temporary files of the system.

    Attributes:
        path: of the folder.
    """

    def __init__(self) -> None:
        """Create the folder.

        Raises:
            OSError: there is no place for it.
        """
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = _Lock(self.path / _LOCK)
            if (self.path / _LOCK).exists():
                return
            self._lock.release()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_stale(folder: Path | None = None) -> None:
    """Remove what processes that are gone have left in a folder.

    Args:
        folder: where outputs are written; None for the temporary files of the system.
    """
    if sys.platform == "win32":
        return
    for path in Path(folder or tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = _Lock(path / _LOCK if path.is_dir() else path, create=False)
        except OSError:
            continue  # somebody works with it, or it belongs to another user
        lock.release()
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class _Lock:
    """An open file that no other process may lock meanwhile."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self._descriptor: int | None = os.open(path, flags, 0o666)
        if sys.platform != "win32":
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.release()
                raise

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
