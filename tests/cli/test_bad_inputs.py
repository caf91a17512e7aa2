"""Whatever a command is fed, it says one line that names the culprit, and leaves all as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_inputs.check import Trial, complaints
from tests.bad_inputs.row import COMPARE, FIT, MATCH, Row
from tests.bad_inputs.server import Server
from tests.bad_inputs.table import ROWS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def test_the_table_is_long_and_its_names_are_its_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 100


@pytest.mark.parametrize("arguments", [FIT, MATCH, COMPARE], ids=lambda arguments: arguments[0])
def test_the_files_are_good_before_a_row_spoils_them(
    arguments: tuple[str, ...], tmp_path: Path, server: Server
) -> None:
    trial = Trial.prepare(Row("good", lambda folder: None, (), arguments), tmp_path)
    ended = server.run(trial.folder, trial.scratch, arguments)
    assert (ended.status, ended.stderr) == (0, "")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_bad_input_is_said_in_one_line_and_nothing_is_touched(
    row: Row, tmp_path: Path, server: Server
) -> None:
    ended, found = complaints(row, Trial.prepare(row, tmp_path), server)
    assert not found, f"{found}\n{ended.stderr}"
