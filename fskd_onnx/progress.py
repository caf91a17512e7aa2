"""Report the progress of long work to an observer; without one, nothing is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
    )

    class Bar:
        """One bar that begins anew with each stage."""

        def start(self, stage: str, samples: int) -> None:
            bars.reset(bar, description=stage, total=samples, rate="", visible=True)

        def advance(self, samples: int) -> None:
            bars.advance(bar, samples)
            task = bars.tasks[0]
            if task.elapsed:
                bars.update(bar, rate=f"{task.completed / task.elapsed:,.0f}/s")

    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=1, rate="", visible=False)
        with observed_by(Bar()):
            yield
