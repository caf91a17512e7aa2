"""What SIGINT and SIGTERM do: nothing is lost and nothing is left, and the exit status tells.

Before a command works, and after it, there is nothing to clean up: the process ends at once,
whatever it is importing. Within `SignalsUnwind` they raise, so that all that cleans up behind
itself does. This is in force before anything else is loaded, so hardly anything is imported here.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import TypeAlias

    Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

# The word that is said, and the status that shells give a process which the signal ended.
_ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
# Seconds after which a signal is tried again that came where errors are ignored.
_AGAIN = 0.01


class Signalled(BaseException):
    """A signal has come that ends the work.

    Attributes:
        word: what is said about it.
        status: with which the process ends.
    """

    def __init__(self, number: int) -> None:
        """Know the signal by its number."""
        self.word, self.status = _ENDINGS[signal.Signals(number)]
        super().__init__(self.word)


def signals_leave() -> None:
    """Let signals end the process at once, with one line and their status."""

    def leave(number: int, frame: FrameType | None) -> None:
        ending = Signalled(number)
        try:
            os.write(2, f"error: {ending.word}\n".encode())
        finally:
            os._exit(ending.status)

    _handle(leave)


class SignalsUnwind:
    """Lets signals unwind a ``with`` block, as `Signalled`."""

    def __enter__(self) -> None:
        """Handle signals from here on."""
        self._came: list[int] = []
        self._hook = sys.unraisablehook
        self._before = _handle(self._stop)
        if self._before and hasattr(signal, "setitimer"):
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop)
            sys.unraisablehook = self._not_ignored

    def __exit__(self, *exception: object) -> None:
        """Leave signals to who handled them before."""
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._came = self._came or [number]
        raise Signalled(self._came[0])

    def _not_ignored(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Try again: Python ignores what is raised in finalizers, and a signal may come there."""
        if isinstance(unraisable.exc_value, Signalled):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._hook(unraisable)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Handler]:
    """Set a handler for signals that are not ignored, as those of a job in the background are.

    Returns:
        What handled them before; nothing where this is not the main thread.
    """
    before: dict[signal.Signals, Handler] = {}
    for number in _ENDINGS:
        try:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        except ValueError:  # not the main thread
            break
    return before
