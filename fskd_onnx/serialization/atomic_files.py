"""Output files that appear together, whole, or not at all: written beside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fskd_onnx.errors import FskdError
from fskd_onnx.serialization.deferred_signals import deferred_signals
from fskd_onnx.serialization.temporary import TemporaryFile, remove_stale


def check_writable(path: str | Path) -> None:
    """Check that a file can be written, before minutes of work are spent on it.

    Args:
        path: the file that is to appear; it may exist.

    Raises:
        FskdError: the folder is missing or closed to writing, or ``path`` is no regular file, or
            one that is closed to writing.
    """
    path = Path(path)
    folder = _resolved(path).parent
    if not folder.is_dir():
        raise FskdError(f"{path}: the folder {folder} does not exist; create it first")
    try:
        other = path.exists() and not path.is_file()
    except OSError as error:
        what = error.strerror or str(error)
        raise FskdError(f"{path}: cannot be written ({what}); choose another name") from error
    if other:
        raise FskdError(f"{path}: is not a regular file; choose another name for the output")
    if path.exists() and not os.access(path, os.W_OK):
        raise FskdError(f"{path}: is write-protected; choose another name for the output")
    if not os.access(folder, os.W_OK):
        raise FskdError(f"{path}: the folder {folder} is not writable; choose another one")


@dataclass
class _Staged:
    """A file on its way to its place.

    Attributes:
        name: the place, as the user calls it.
        target: the place.
        file: what was written.
        backup: a second link to what was at the place; None where nothing was.
        placed: whether the file is in its place.
    """

    name: Path
    target: Path
    file: TemporaryFile
    backup: Path | None = None
    placed: bool = False


class OutputFiles:
    """The output files of one call, which appear together when a ``with`` block ends well.

    ::

        with OutputFiles() as files:
            files.stage("fused.onnx.data").write_bytes(...)
            files.stage("fused.onnx").write_bytes(...)

    All of them are written and synced before the first is put in its place; they are put there in
    the order in which they were staged. Where that fails halfway, what was there before comes back.
    A file that others refer to is staged before them, under a name that is not in use yet: then a
    process that dies between the two leaves the old files as they were.
    """

    def __init__(self, read: Collection[Path] = ()) -> None:
        """Begin without any file.

        Args:
            read: files that the call reads, beside which outputs appear.
        """
        self._read = read
        self._staged: list[_Staged] = []
        self._obsolete: list[Path] = []

    def stage(self, path: str | Path) -> Path:
        """Return the path to write a file to that is to appear at another one.

        Args:
            path: where it is to appear. A symbolic link is followed, not replaced.

        Returns:
            A new empty file in the same folder, with the same suffix.

        Raises:
            FskdError: the file cannot be written (no such folder, no permission).
        """
        check_writable(path)
        target = _resolved(Path(path))
        with _named_errors(Path(path)):
            remove_stale(target.parent)
            with deferred_signals():  # nothing may come between the file and its removal
                self._staged.append(_Staged(Path(path), target, TemporaryFile(target)))
        return self._staged[-1].file.path

    def restage(self, file: Path, path: Path) -> None:
        """Let a file that was staged appear at another path of the same folder.

        Args:
            file: what ``stage`` returned.
            path: where it is to appear.
        """
        staged = next(staged for staged in self._staged if staged.file.path == file)
        staged.name, staged.target = path, _resolved(path)

    def discard(self, file: Path) -> None:
        """Let a file that was staged not appear after all.

        Args:
            file: what ``stage`` returned.
        """
        staged = next(staged for staged in self._staged if staged.file.path == file)
        self._staged.remove(staged)
        staged.file.remove()

    def remove_afterwards(self, path: Path) -> None:
        """Remove a file that is of no use once all others are in their places.

        Args:
            path: the file; it stays if the call reads it.
        """
        if path.exists() and not any(path.samefile(read) for read in self._read if read.exists()):
            self._obsolete.append(path)

    def write_text(self, path: str | Path, text: str) -> None:
        """Stage a text as UTF-8 with plain newlines.

        Args:
            path: where it is to appear.
            text: all of its content.

        Raises:
            FskdError: the file cannot be written.
        """
        temporary = self.stage(path)
        with _named_errors(Path(path)):
            temporary.write_text(text, encoding="utf-8", newline="\n")

    def __enter__(self) -> OutputFiles:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put all files in their places, or none where the block or a file fails.

        Raises:
            FskdError: a file cannot be put in its place.
        """
        try:
            if isinstance(error, OSError) and self._staged:
                name = self._staged[-1].name
                raise FskdError(_cannot_be_written(name, error)) from error
            if error is None:
                for staged in self._staged:
                    with _named_errors(staged.name):
                        _sync(staged.file.path, os.O_RDWR)
                with deferred_signals():
                    self._put_in_place()
        finally:
            with deferred_signals():
                for staged in self._staged:
                    staged.file.remove()

    def _put_in_place(self) -> None:
        try:
            for staged in self._staged:
                with _named_errors(staged.name):
                    staged.backup = _second_link(staged.target)
            for staged in self._staged:
                with _named_errors(staged.name):
                    staged.file.path.replace(staged.target)
                staged.placed = True
        except BaseException:
            for staged in reversed(self._staged):
                _take_back(staged)
            raise
        finally:
            for staged in self._staged:
                if staged.backup is not None:
                    staged.backup.unlink(missing_ok=True)
        for folder in {staged.target.parent for staged in self._staged}:
            _sync_folder(folder)
        for path in self._obsolete:
            path.unlink(missing_ok=True)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 with plain newlines, whole or not at all.

    Args:
        path: the file that is to appear.
        text: all of its content.

    Raises:
        FskdError: the file cannot be written.
    """
    with OutputFiles() as files:
        files.write_text(path, text)


def _take_back(staged: _Staged) -> None:
    """Bring back what was at a place before."""
    if not staged.placed:
        return
    if staged.backup is not None:
        staged.backup.replace(staged.target)
    else:
        staged.target.unlink(missing_ok=True)


def _second_link(target: Path) -> Path | None:
    """Give a file a second name, under which it outlives its replacement; None without a file."""
    if not target.exists():
        return None
    placeholder = TemporaryFile(target)
    placeholder.remove()
    try:
        os.link(target, placeholder.path)
    except OSError:  # a file system without links: then it cannot be brought back
        return None
    return placeholder.path


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system into one that names the file that is to appear."""
    try:
        yield
    except OSError as error:
        raise FskdError(_cannot_be_written(path, error)) from error


def _cannot_be_written(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror or error}); choose another place"


def _resolved(path: Path) -> Path:
    """Return the real path of a file.

    Raises:
        FskdError: its links lead in a circle, or the system has no such names.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise FskdError(f"{path}: is no usable path ({error}); choose another one") from error


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make renames durable; Windows has no such call for folders."""
    if os.name == "posix":
        _sync(folder, os.O_RDONLY)
