"""Progress is for terminals and for those who ask."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fskd_onnx.progress import observed_by, observer, shown_on, with_prefix


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
