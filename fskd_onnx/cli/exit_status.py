"""Errors become exit statuses: the one place that decides how a command ends.

0 is success; 1 an input or the machine at fault; 2 wrong usage (typer's own); 3 a fit that brings
the student no closer to its teacher; 130 an interrupt. Each error class knows its status
(``FskdError.exit_status``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fskd_onnx.errors import FskdError

_INTERRUPTED = 130  # what shells give a process that SIGINT ended


@contextmanager
def exits_with_status() -> Iterator[None]:
    """Turn the errors of a ``with`` block into one line on stderr and an exit status.

    Raises:
        typer.Exit: the block raised an `FskdError` or was interrupted.
    """
    try:
        yield
    except FskdError as error:
        # One line, whatever a library's message inside of it looks like.
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(error.exit_status) from error
    except (KeyboardInterrupt, ImportError) as error:
        # A compiled module that is just being loaded turns the one into the other.
        if KeyboardInterrupt not in (type(error), type(error.__cause__)):
            raise
        typer.echo("error: interrupted", err=True)
        raise typer.Exit(_INTERRUPTED) from error
