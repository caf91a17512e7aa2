"""Students of random graphs: valid, as small as asked for and planned, no worse when fitted.

``python -m tests.random_compressions --count 1000 --jobs 2`` judges any number; here are some.
"""

from __future__ import annotations

import pytest

from tests.random_compressions import LIMITS, judge, summary
from tests.random_graphs.judging import broken_limits

_CHUNK = 12
_CHUNKS = range(0, 48, _CHUNK)
# Nodes that read parts of the channels that go together, and shared weights.
_PARTS = (2001, 2029, 2098)


@pytest.mark.parametrize("first", _CHUNKS)
def test_no_random_student_breaks_a_limit(first: int) -> None:
    outcomes = [judge(seed) for seed in range(first, first + _CHUNK)]
    assert not broken_limits(LIMITS, outcomes), summary(outcomes)
    # A tool that makes no students would break no limit.
    assert sum(outcome.result == "accepted" for outcome in outcomes) > _CHUNK / 4


@pytest.mark.parametrize("seed", _PARTS)
def test_a_student_costs_what_its_plan_says(seed: int) -> None:
    assert judge(seed).faults == []
