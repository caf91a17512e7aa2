"""Report the progress of long work to an observer; without one, nothing is reported.

Work says besides which part of the whole it is (`share`), so that who watches knows how much is
left. Parts lie within parts: block 3 of 13 of trial 2 of 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Protocol

from rich.console import Console


class Observer(Protocol):
    """Receives progress; called from the thread that works, so it should return soon."""

    def start(self, stage: str, samples: int) -> None:
        """A stage begins, such as "block 3 of 13"; it runs ``samples``."""

    def advance(self, samples: int) -> None:
        """So many samples more have run through the current stage."""


class _Silent:
    def start(self, stage: str, samples: int) -> None:
        pass

    def advance(self, samples: int) -> None:
        pass


_SILENT = _Silent()
_OBSERVER: ContextVar[Observer] = ContextVar("observer", default=_SILENT)


_SPAN: ContextVar[tuple[float, float]] = ContextVar("span", default=(0.0, 1.0))

# The time that is left is told once so much has passed and is done: before it is a guess.
_LEAST_SECONDS, _LEAST_DONE = 3.0, 0.03


@contextmanager
def share(first: float, last: float) -> Iterator[None]:
    """Let a ``with`` block be a part of the present work, from one fraction of it to another."""
    start, end = _SPAN.get()
    size = end - start
    token = _SPAN.set((start + first * size, start + last * size))
    try:
        yield
    finally:
        _SPAN.reset(token)


def done(stage: float) -> float:
    """Return which fraction of the whole is done, when some of the present stage is.

    Args:
        stage: fraction of the stage that is done; it is all of the present part.
    """
    start, end = _SPAN.get()
    return start + min(max(stage, 0.0), 1.0) * (end - start)


def time_left(fraction: float, seconds: float) -> str:
    """Return how long the rest of the work takes if it goes on as it went; "" before that is known.

    Args:
        fraction: of the work that is done.
        seconds: that it took.
    """
    if fraction < _LEAST_DONE or seconds < _LEAST_SECONDS:
        return ""
    minutes, left = divmod(round(seconds * (1 - fraction) / fraction), 60)
    return f"about {minutes}:{left:02d} left"


def observer() -> Observer:
    """Return the observer of the present work."""
    return _OBSERVER.get()


@contextmanager
def observed_by(listener: Observer) -> Iterator[None]:
    """Report all work in a ``with`` block to an observer."""
    token = _OBSERVER.set(listener)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


@contextmanager
def with_prefix(text: str) -> Iterator[None]:
    """Put a text in front of the stages of a ``with`` block."""
    listener = observer()

    class Prefixed:
        """Passes everything on."""

        def start(self, stage: str, samples: int) -> None:
            listener.start(text + stage, samples)

        def advance(self, samples: int) -> None:
            listener.advance(samples)

    with observed_by(Prefixed()):
        yield


@contextmanager
def shown_on(console: Console) -> Iterator[None]:
    """Show a bar per stage on a terminal, gone when the work is; nothing where there is none."""
    if not console.is_terminal or console.quiet:
        yield
        return
    # Imported here: most commands, and every user of the library, do without.
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} samples"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    began = monotonic()
    furthest = 0.0

    class Bar:
        """One bar that begins anew with each stage."""

        def start(self, stage: str, samples: int) -> None:
            bars.reset(bar, description=stage, total=samples, rate="", left="", visible=True)
            self._tell(0.0)

        def advance(self, samples: int) -> None:
            bars.advance(bar, samples)
            task = bars.tasks[0]
            if task.elapsed:
                bars.update(bar, rate=f"{task.completed / task.elapsed:,.0f}/s")
            self._tell(task.completed / (task.total or 1))

        def _tell(self, stage: float) -> None:
            nonlocal furthest
            # What runs twice, as after a run that did not fit into memory, is not done twice.
            furthest = max(furthest, done(stage))
            bars.update(bar, left=time_left(furthest, monotonic() - began))

    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=1, rate="", left="", visible=False)
        with observed_by(Bar()):
            yield
