"""Runs that are killed lose and leave nothing; ``python -m tests.kills`` kills many more."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.kills import COMMANDS, Outcome, Stage, killed_at, killed_in, steps_of, table


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give the command with most outputs; what it starts hears SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Stage(tmp_path_factory.mktemp("kills") / "0", COMMANDS[1])
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_run_that_is_killed_while_it_works(stage: Stage, share: float) -> None:
    assert killed_at(stage, signal.SIGKILL, share * stage.seconds).faults == []


def test_runs_that_are_killed_while_they_write(stage: Stage) -> None:
    steps = steps_of(stage)
    assert steps > 20
    for share, number, when in (
        (0.5, signal.SIGKILL, "before"),
        (0.7, signal.SIGINT, "after"),
        (0.8, signal.SIGKILL, "before"),
        (0.9, signal.SIGTERM, "after"),
    ):
        assert killed_in(stage, number, when, round(share * steps)).faults == []


def test_the_table_counts_results_and_faults() -> None:
    found = [
        Outcome("fit", "SIGTERM", "1 s", "old"),
        Outcome("fit", "SIGTERM", "2 s", "new", ["left behind: a"]),
        Outcome("match", "SIGKILL", "1 s", "old"),
    ]
    head, *rows = table(found).splitlines()
    assert head.split() == ["command", "signal", "new", "old", "faults"]
    assert [row.split() for row in rows] == [
        ["fit", "SIGTERM", "1", "1", "1"],
        ["match", "SIGKILL", "0", "1", "0"],
    ]
