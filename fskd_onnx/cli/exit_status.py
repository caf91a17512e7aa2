"""Errors become exit statuses: the one place that decides how a command ends.

0 is success; 1 an input or the machine at fault; 2 wrong usage (typer's own); 3 a fit that brings
the student no closer to its teacher; 130 an interrupt, 143 a termination. Each error class knows
its status (``FskdError.exit_status``).
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fskd_onnx.cli.signals import Signalled, SignalsUnwind
from fskd_onnx.errors import FskdError
from fskd_onnx.printable import printable

logger = logging.getLogger(__name__)

_FAULT = 1


@contextmanager
def exits_with_status() -> Iterator[None]:
    """Turn the errors of a ``with`` block into one line on stderr and an exit status.

    Raises:
        typer.Exit: the block raised an error that is not one of usage, or a signal ended it.
    """
    try:
        with SignalsUnwind():
            yield
    except FskdError as error:
        _say(str(error))
        raise typer.Exit(error.exit_status) from error
    except (Signalled, KeyboardInterrupt) as error:
        ending = error if isinstance(error, Signalled) else Signalled(signal.SIGINT)
        _say(ending.word)
        raise typer.Exit(ending.status) from error
    except MemoryError as error:
        _say("the machine has not enough memory; give fewer samples (--max-samples), or free some")
        raise typer.Exit(_FAULT) from error
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        # A compiled module that is just being loaded turns a signal into an ImportError.
        if isinstance(error.__cause__, Signalled):
            _say(error.__cause__.word)
            raise typer.Exit(error.__cause__.status) from error
        _report_unforeseen(error)
        raise typer.Exit(_FAULT) from error


def _say(message: str) -> None:
    """Write an error as one line, whatever a library's message inside of it looks like."""
    typer.echo(f"error: {printable(' '.join(message.split()))}", err=True)


def _report_unforeseen(error: Exception) -> None:
    """Say that an error was not foreseen; where it comes from is for the file of the log only."""
    logger.debug("unforeseen error", exc_info=error)
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    _say(
        f"this was not foreseen ({text}); please report it together with what --log-file FILE "
        "writes"
    )
