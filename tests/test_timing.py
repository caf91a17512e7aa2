"""Seconds go to the stage that runs, and to no two at once; time is a counter here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fskd_onnx import timing as module
from fskd_onnx.timing import StageTimer


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
    clock = StageTimer()
    time.now += 1
    for _ in range(3):
        with clock("solve"):
            time.now += 2
    time.now += 4
    assert clock.spent("solve") == 6
    assert clock.spent("fuse") == 0
    assert clock.total == 11


def test_a_stage_inside_another_stops_its_clock(time: Time) -> None:
    clock = StageTimer()
    with clock("capture"):
        time.now += 1
        with clock("solve"):
            time.now += 2
            with clock("capture"):
                time.now += 4
            time.now += 8
        time.now += 16
    assert clock.spent("capture") == 1 + 4 + 16
    assert clock.spent("solve") == 2 + 8
    assert clock.total == clock.spent("capture") + clock.spent("solve")


def test_a_stage_that_fails_counts_too(time: Time) -> None:
    clock = StageTimer()
    with clock("capture"):
        with pytest.raises(ValueError, match="broken"), clock("solve"):
            time.now += 1
            raise ValueError("broken")
        time.now += 2
    assert clock.spent("solve") == 1
    assert clock.spent("capture") == 2


def test_a_running_stage_is_not_counted_before_it_ends(time: Time) -> None:
    clock = StageTimer()
    with clock("solve"):
        time.now += 1
        assert clock.spent("solve") == 0
        assert clock.total == 1
