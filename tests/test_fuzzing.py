"""Mutated files are read or refused by name; the fuzzer sees what is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzzing.__main__ import main
from tests.fuzzing.targets import TARGETS


def test_a_short_run_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    status = main(["--executions", "100", "--seed", "0", "--json", str(record)])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "faults: 0 kinds" in out
    found = json.loads(record.read_text(encoding="utf-8"))
    assert set(found["executions"]) == set(TARGETS)
    assert set(found["executions"].values()) == {100}
    assert all(count > 30 for count in found["lines"].values())
