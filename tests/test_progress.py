"""Progress is for terminals and for those who ask."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fskd_onnx.progress import (
    done,
    observed_by,
    observer,
    share,
    shown_on,
    time_left,
    with_prefix,
)


def shown(terminal: bool, quiet: bool = False) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, quiet=quiet, width=100)
    with shown_on(console):
        for block in (1, 2):
            observer().start(f"block {block} of 2", 30)
            observer().advance(10)
            observer().advance(20)
    return screen.getvalue()


def test_a_terminal_shows_blocks_samples_and_their_rate() -> None:
    screen = shown(terminal=True)
    assert "block 2 of 2" in screen
    assert "30/30 samples" in screen
    assert "/s" in screen


def test_stages_may_be_named_by_what_they_are_part_of() -> None:
    told: list[tuple[str, int]] = []

    class Listener:
        def start(self, stage: str, samples: int) -> None:
            told.append((stage, samples))

        def advance(self, samples: int) -> None:
            told.append(("", samples))

    with observed_by(Listener()):
        with with_prefix("trial 2 of 5, "):
            observer().start("block 1 of 2", 30)
            observer().advance(10)
        observer().start("the last block", 20)
    assert told == [("trial 2 of 5, block 1 of 2", 30), ("", 10), ("the last block", 20)]


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_nothing_else_shows_anything(terminal: bool, quiet: bool) -> None:
    assert shown(terminal, quiet) == ""


def test_nobody_is_told_once_the_work_is_over() -> None:
    silent = observer()
    shown(terminal=True)
    assert observer() is silent


def test_parts_of_parts_are_parts_of_the_whole() -> None:
    assert done(0.5) == 0.5
    with share(0.5, 1.0):
        assert done(0.0) == 0.5
        with share(1 / 2, 3 / 4):
            assert done(0.0) == 0.75
            assert done(0.5) == pytest.approx(0.8125)
            assert done(2.0) == pytest.approx(0.875)
        assert done(1.0) == 1.0
    assert done(0.25) == 0.25


@pytest.mark.parametrize(
    ("fraction", "seconds", "text"),
    [
        (0.5, 60, "about 1:00 left"),
        (0.9, 3600, "about 6:40 left"),
        (0.01, 60, ""),
        (0.5, 1, ""),
        (1.0, 60, "about 0:00 left"),
    ],
)
def test_the_time_that_is_left_is_told_once_it_is_no_guess(
    fraction: float, seconds: float, text: str
) -> None:
    assert time_left(fraction, seconds) == text


def test_a_terminal_shows_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 30))
    monkeypatch.setattr("fskd_onnx.progress.monotonic", lambda: next(clock))
    assert "left" in shown(terminal=True)
