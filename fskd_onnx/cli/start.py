"""The first steps of the program, before anything of weight is loaded.

What cannot be loaded, and a signal that comes meanwhile, ends in one line.
"""

from __future__ import annotations

import os
import sys

from fskd_onnx.cli.signals import signals_leave


def main() -> None:
    """Run one command and exit with its status."""
    signals_leave()
    _open_standard_streams()
    try:
        from fskd_onnx.cli.app import run
    except (ImportError, OSError, MemoryError) as error:
        # NumPy says on many lines what to do about it, and last what has happened.
        what = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        # An exit with a text is that text on stderr, and status 1.
        sys.exit(
            f"error: the libraries of fskd-onnx cannot be loaded ({what}); give the process more "
            "memory and open files (ulimit), or install it again"
        )
    run()


def _open_standard_streams() -> None:
    """Open streams that the caller has closed: else the next file that is opened becomes stdout."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
