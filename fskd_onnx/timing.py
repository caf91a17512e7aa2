"""Wall-clock seconds per stage of a fit or a compression."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

from fskd_onnx.compress_results import CompressSeconds
from fskd_onnx.results import StageSeconds

FitStage: TypeAlias = Literal["capture", "solve", "fuse", "verify", "refine"]
"""A stage of a fit: a field of ``StageSeconds``, so that every one is reported."""

CompressStage: TypeAlias = Literal["analysis", "plan", "rewrite", "latency", "fit"]
"""A stage of a compression: a field of ``CompressSeconds``."""

StageName: TypeAlias = FitStage | CompressStage


class StageTimer:
    """Adds up seconds per stage; while a stage runs inside another, the other is not timed."""

    def __init__(self) -> None:
        """Start the total."""
        self._started = self._switched = time.perf_counter()
        self._stages: list[StageName] = []
        self._spent: defaultdict[StageName, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: StageName) -> Iterator[None]:
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
        """Seconds since the timer was made."""
        return time.perf_counter() - self._started

    def spent(self, stage: StageName) -> float:
        """Return the seconds of a stage."""
        return self._spent[stage]

    def compression(self) -> CompressSeconds:
        """Return the seconds of all stages of a compression."""
        return CompressSeconds(
            total=self.total,
            analysis=self.spent("analysis"),
            plan=self.spent("plan"),
            rewrite=self.spent("rewrite"),
            latency=self.spent("latency"),
            fit=self.spent("fit"),
        )

    def report(self) -> StageSeconds:
        """Return the seconds of all stages of a fit."""
        return StageSeconds(
            total=self.total,
            capture=self.spent("capture"),
            solve=self.spent("solve"),
            fuse=self.spent("fuse"),
            verify=self.spent("verify"),
            refine=self.spent("refine"),
        )

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stages:
            self._spent[self._stages[-1]] += now - self._switched
        self._switched = now
