"""The channels that stay: which may, and which are best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.passes.analysis.channel_unit import ChannelUnit


def unit_of(width: int, groups: int = 1, reason: str = "", *parts: tuple[int, ...]) -> ChannelUnit:
    return ChannelUnit(
        "u", ("u",), (), width, groups, reason, {"u": tuple(range(width))}, tuple(parts)
    )


@pytest.mark.parametrize(
    ("unit", "kept", "why"),
    [
        (unit_of(4), [0, 3], ""),
        (unit_of(4), (), "one at least has to stay"),
        (unit_of(4), [4], "they are not numbers of 0..3, ascending"),
        (unit_of(4), [1, 0], "they are not numbers of 0..3, ascending"),
        (unit_of(4, reason="so"), range(4), ""),
        (unit_of(4, reason="so"), [0], "none of them can go: so"),
        (unit_of(6, 3), [0, 3, 5], ""),
        (unit_of(6, 3), [0, 1, 3, 5], "as many have to stay of each 2 in a row"),
        (
            unit_of(9, 1, "", tuple(range(1, 8))),
            [0, 8],
            "one at least of 1, 2, 3, 4, 5, ... has to stay, for a node takes these alone",
        ),
    ],
)
def test_channels_that_cannot_be_those_that_stay_are_told(
    unit: ChannelUnit, kept: list[int], why: str
) -> None:
    assert unit.why_not(kept) == why


def test_rows_are_those_of_the_channels_that_stay() -> None:
    unit = ChannelUnit("a", ("a", "b"), (), 3, 1, "", {"a": (0, 1, 2), "b": (0, 0, 2, 2, 1)})
    assert unit.rows("a", [0, 2]) == (0, 2)
    assert unit.rows("b", [0, 2]) == (0, 1, 2, 3)


@given(st.data())
def test_the_best_channels_are_those_with_the_highest_scores_that_may_stay(
    data: st.DataObject,
) -> None:
    groups, run = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    width = groups * run
    parts = data.draw(st.lists(st.sets(st.integers(0, width - 1), min_size=1), max_size=3))
    unit = ChannelUnit(
        "u", ("u",), (), width, groups, "", {"u": tuple(range(width))}, tuple(map(tuple, parts))
    )
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=width, max_size=width)))
    count = data.draw(st.integers(1, width))
    kept = unit.best(scores, count)
    assert unit.why_not(kept) == ""
    if not parts:
        assert len(kept) == groups * max(1, count // groups)
        for start in range(0, width, run):
            own = [k for k in kept if start <= k < start + run]
            best = sorted(scores[start : start + run], reverse=True)[: len(own)]
            assert sorted(scores[own], reverse=True) == best
