"""Faults of the system end in one line; ``python -m tests.system_faults`` makes more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system_faults import FAULTS, Fault, outcome_of

QUICK = [fault for fault in FAULTS if fault.quick]


@pytest.mark.parametrize("fault", QUICK, ids=[fault.name for fault in QUICK])
def test_a_fault_ends_as_it_has_to(fault: Fault, tmp_path: Path) -> None:
    assert outcome_of(fault, tmp_path).faults == []
