"""Wall-clock seconds per stage of a fit."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimer:
    """Adds up seconds per stage; a stage inside another stops the other's clock."""

    def __init__(self) -> None:
        """Start the total."""
        self._started = self._switched = time.perf_counter()
        self._stages: list[str] = []
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the seconds of a ``with`` block to a stage."""
        self._switch()
        self._stages.append(stage)
        try:
            yield
        finally:
            self._switch()
            self._stages.pop()

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started

    def spent(self, stage: str) -> float:
        """Return the seconds of a stage."""
        return self._spent[stage]

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stages:
            self._spent[self._stages[-1]] += now - self._switched
        self._switched = now
