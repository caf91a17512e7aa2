"""The first steps of the program, before anything of weight is loaded.

What cannot be loaded, and a signal that comes meanwhile, ends in one line.
"""

from __future__ import annotations

import io
import os
import sys

from fskd_onnx.cli.signals import signals_leave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Run one command and exit with its status."""
    signals_leave()
    _open_standard_streams()
    try:
        from fskd_onnx.cli.app import run

        run()  # loads what it needs to read the arguments
    except (ImportError, OSError, MemoryError) as error:
        # NumPy says on many lines what to do about it, and last what has happened.
        what = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        # An exit with a text is that text on stderr, and status 1.
        sys.exit(
            f"error: the libraries of fskd-onnx cannot be loaded ({what}); give the process more "
            "memory and open files (ulimit), or install it again"
        )


class _Unheard(io.FileIO):
    """A file whose failures nobody is told of: a closed pipe, a full disk.

    Who no longer reads what is printed changes nothing about the work and its status.
    """

    def write(self, data: Any) -> int:
        """Write, if that is possible."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _open_standard_streams() -> None:
    """Let nothing that is printed raise, whether stdout and stderr are closed, full or gone.

    Names of nodes and files may hold what the encoding has not. Where a stream is closed, its
    number is taken, else it would be that of the next file which is opened.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if descriptor > 0:
            raw = _Unheard(descriptor, "w", closefd=False)
            unheard = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=getattr(stream, "encoding", None),
                errors="backslashreplace",
                line_buffering=name == "stderr" or raw.isatty(),
            )
            setattr(sys, name, unheard)
