"""Seconds go to the stage that runs, and to no two at once; time is a counter here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest

from fskd_onnx import timing as module
from fskd_onnx.timing import CompressStage, FitStage, StageTimer


class Time:
    """Stands in for the module ``time``."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    fake = Time()
    monkeypatch.setattr(module, "time", fake)
    yield fake


def test_stages_add_up(time: Time) -> None:
    timer = StageTimer()
    time.now += 1
    for _ in range(3):
        with timer("solve"):
            time.now += 2
    time.now += 4
    assert timer.spent("solve") == 6
    assert timer.spent("fuse") == 0
    assert timer.total == 11


def test_a_stage_inside_another_stops_its_time(time: Time) -> None:
    timer = StageTimer()
    with timer("capture"):
        time.now += 1
        with timer("solve"):
            time.now += 2
            with timer("capture"):
                time.now += 4
            time.now += 8
        time.now += 16
    assert timer.spent("capture") == 1 + 4 + 16
    assert timer.spent("solve") == 2 + 8
    assert timer.total == timer.spent("capture") + timer.spent("solve")


def test_a_stage_that_fails_counts_too(time: Time) -> None:
    timer = StageTimer()
    with timer("capture"):
        with pytest.raises(ValueError, match="broken"), timer("solve"):
            time.now += 1
            raise ValueError("broken")
        time.now += 2
    assert timer.spent("solve") == 1
    assert timer.spent("capture") == 2


@pytest.mark.parametrize(
    ("stages", "told"),
    [(FitStage, StageTimer.report), (CompressStage, StageTimer.compression)],
    ids=["fit", "compress"],
)
def test_every_stage_is_reported(
    time: Time, stages: Any, told: Callable[[StageTimer], Any]
) -> None:
    timer = StageTimer()
    spent: dict[str, float] = {}
    for number, stage in enumerate(get_args(stages), 1):
        with timer(stage):
            time.now += number
        spent[stage] = number
    assert dataclasses.asdict(told(timer)) == {"total": sum(spent.values()), **spent}


def test_a_running_stage_is_not_counted_before_it_ends(time: Time) -> None:
    timer = StageTimer()
    with timer("solve"):
        time.now += 1
        assert timer.spent("solve") == 0
        assert timer.total == 1
