"""Margins of assignments are those over every other assignment."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.matching.assignment import assign, assign_in_doubt, assign_in_order
from tests.helpers import Array

SEEDS = st.integers(0, 999)


def drawn(seed: int, rows: int, columns: int) -> Array:
    return np.random.default_rng(seed).exponential(size=(rows, columns))


def best_margins(cost: Array, in_order: bool) -> tuple[tuple[int, ...], Array]:
    """Return the best assignment and the margin of each row, from all assignments."""
    rows = np.arange(len(cost))
    found = [c for c in permutations(range(cost.shape[1]), len(cost)) if not in_order or _rising(c)]
    sums = np.array([cost[rows, list(columns)].sum() for columns in found])
    best = found[int(sums.argmin())]
    margins = [
        min(
            (s for c, s in zip(found, sums, strict=True) if c[row] != best[row]),
            default=np.inf,
        )
        for row in rows
    ]
    return best, np.array(margins) - sums.min()


def _rising(columns: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(columns))


@given(seed=SEEDS, rows=st.integers(1, 4), more=st.integers(0, 2))
@settings(max_examples=60)
def test_no_margin_is_larger_than_it_is(seed: int, rows: int, more: int) -> None:
    cost = drawn(seed, rows, rows + more)
    columns, margins = best_margins(cost, in_order=False)
    found = assign(cost)
    assert tuple(found.columns) == columns
    assert (found.margins <= margins + 1e-12).all()
    assert ((found.rivals != found.columns) | np.isinf(found.margins)).all()


@given(seed=SEEDS, rows=st.integers(1, 4), more=st.integers(0, 3))
@settings(max_examples=60)
def test_margins_among_assignments_in_order_are_exact(seed: int, rows: int, more: int) -> None:
    cost = drawn(seed, rows, rows + more)
    columns, margins = best_margins(cost, in_order=True)
    found = assign_in_order(cost)
    assert tuple(found.columns) == columns
    np.testing.assert_allclose(found.margins, margins, atol=1e-12)


def test_each_column_is_taken_once() -> None:
    found = assign(np.array([[0.1, 0.2, 1.0], [0.1, 0.9, 1.0]]))
    assert found.columns.tolist() == [1, 0]


def test_columns_that_cost_the_same_are_given_in_order_and_without_a_margin() -> None:
    found = assign(np.zeros((3, 4)))
    assert found.columns.tolist() == sorted(found.columns)
    assert found.margin == 0


def test_an_exchange_counts_by_what_both_rows_lose() -> None:
    # Row 0 has column 1 nearly as soon, but row 1 has no other than that.
    cost = np.array([[0.0, 1.0], [50.0, 0.0]])
    assert assign(cost).margins.tolist() == [51.0, 51.0]


def test_copies_are_no_rivals() -> None:
    cost = np.array([[0.0, 0.0, 7.0]])
    assert assign(cost).margin == 0
    assert assign(cost, np.array([0, 0, 2])).margin == 7


@pytest.mark.parametrize("doubtful", [(2,), (2, 5), (0, 7)])
def test_rows_in_doubt_are_between_those_that_are_not(doubtful: tuple[int, ...]) -> None:
    cost = np.full((8, 16), 100.0)
    cost[np.arange(8), 2 * np.arange(8)] = 0
    cost[list(doubtful)] = 100.0
    for row in doubtful:
        # Its own place and some that others have passed cost the same.
        cost[row, [2 * row, 15 - 2 * row if row != 7 else 3]] = 0
    assert assign(cost).margin == 0
    found = assign_in_doubt(cost, limit=10.0)
    assert found.columns.tolist() == list(range(0, 16, 2))
    assert found.margin >= 10


def test_rows_that_are_not_in_order_say_nothing_of_others() -> None:
    cost = np.full((8, 16), 100.0)
    cost[np.arange(8), [0, 2, 4, 6, 8, 12, 10, 14]] = 0
    cost[2, 15] = 0
    assert assign_in_doubt(cost, limit=10.0).margin == 0
