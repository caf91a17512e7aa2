"""Which column each row of a table of costs gets, and by how much no other one would do as well.

Each column is given once, so a row's margin over another column takes into account what becomes of
the row that has it. Costs are in nats (negative logarithms of likelihoods, up to a constant), or in
any unit that adds up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fskd_onnx.linalg.backends import Array

Channels = NDArray[np.intp]

FORBIDDEN = 1e6
"""The cost of a column that a row cannot have."""

# Columns of equal cost are given in the order of rows. May not outweigh a difference of costs.
_ORDER_COUNTS = 1e-9
# So many rows are not in order by chance.
_ROWS_IN_ORDER = 6


@dataclass(frozen=True)
class Assignment:
    """A column for each row.

    Attributes:
        columns: (n,) each of them once.
        margins: (n,) by how much any assignment costs more, at least, that gives the row another
            column; inf where there is none, 0 or less where another one costs no more.
        rivals: (n,) the column that each row would get in the best of these.
    """

    columns: Channels
    margins: NDArray[np.float64]
    rivals: Channels

    @property
    def margin(self) -> float:
        """The least of the margins."""
        return float(self.margins.min(initial=np.inf))


def assign(cost: Array, copies: Channels | None = None) -> Assignment:
    """Give each row a column of its own, for the least sum of costs.

    Args:
        cost: (n, m), n <= m.
        copies: (m,) a number for each column; of columns with the same, each is as right as the
            others.
    """
    columns = cheapest(cost)
    rows = np.arange(len(cost))
    gaps = cost - cost[rows, columns][:, np.newaxis]
    _skip(gaps, columns, copies)
    # Whoever has the column has to leave it for another, and so on; and what the row itself leaves
    # may be what others would rather have.
    free = np.ones(cost.shape[1], bool)
    free[columns] = False
    others, least_free = gaps[:, columns], gaps[:, free].min(axis=1, initial=np.inf)
    behind = _least_ways(others, np.minimum(others.min(axis=1), least_free))
    in_front = np.minimum(_least_ways(others.T, others.min(axis=0)), 0.0)
    gaps[:, columns] += behind
    gaps += in_front[:, np.newaxis]
    rivals = gaps.argmin(axis=1)
    return Assignment(columns, gaps[rows, rivals], rivals)


def assign_in_doubt(cost: Array, limit: float, copies: Channels | None = None) -> Assignment:
    """Give each row a column, rows in doubt in the order of the others.

    Tools that prune keep the order of channels. Where all rows beyond doubt are in order, and there
    are enough of them that this is no accident, the others are taken to be in order too.

    Args:
        cost: (n, m), n <= m.
        limit: the margin from which on a row is beyond doubt.
        copies: see ``assign``.
    """
    free = assign(cost, copies)
    sure = free.margins >= limit
    if sure.all() or sure.sum() < _ROWS_IN_ORDER or (np.diff(free.columns[sure]) <= 0).any():
        return free
    ordered = assign_in_order(cost, copies)
    rows = np.arange(len(cost))
    dearer = (cost[rows, ordered.columns] - cost[rows, free.columns]).sum()
    # Each row in doubt may find a cheaper column among several by chance alone.
    allowed = limit + (~sure).sum()
    same = np.array_equal(ordered.columns[sure], free.columns[sure])
    return ordered if same and dearer <= allowed else free


def assign_in_order(cost: Array, copies: Channels | None = None) -> Assignment:
    """Give each row a column behind those of the rows in front of it, for the least sum of costs.

    The least sum through each place is that of all rows in front and of all behind it, each by
    dynamic programming; so margins are exact.

    Args:
        cost: (n, m), n <= m.
        copies: see ``assign``.
    """
    totals = _sums_in_front(cost) + _sums_in_front(cost[::-1, ::-1])[::-1, ::-1] + cost
    columns = totals.argmin(axis=1)
    # Of several that cost the same, the first in each row: these are in order as well.
    gaps = totals - totals.min(axis=1, keepdims=True)
    _skip(gaps, columns, copies)
    rivals = gaps.argmin(axis=1)
    return Assignment(columns, gaps[np.arange(len(cost)), rivals], rivals)


def cheapest(cost: Array) -> Channels:
    """Return the (n,) columns, each taken once, of the least sum of (n, m) costs, n <= m."""
    rows, count = cost.shape
    best: Channels = cost.argmin(axis=1)
    lowest = cost[np.arange(rows), best]
    if len(np.unique(best)) == rows and ((cost <= lowest[:, np.newaxis]).sum(axis=1) == 1).all():
        return best
    # Squares, so that keeping the order is strictly better than any exchange.
    order = (np.arange(rows)[:, np.newaxis] / rows - np.arange(count) / count) ** 2
    chosen: Channels = linear_sum_assignment(cost + _ORDER_COUNTS * order)[1]
    return chosen


def _least_ways(steps: Array, first: Array) -> Array:
    """Return the least sum of steps from each row, over one or more rows.

    Args:
        steps: (n, n) of one row to another; no way back to where it began has a negative sum.
        first: (n,) the least sums of a single step.
    """
    least = first
    for _ in first:
        if (least >= 0).all():
            break
        further = np.minimum(least, (steps + least).min(axis=1))
        if (further == least).all():
            break
        least = further
    return least


def _skip(gaps: Array, columns: Channels, copies: Channels | None) -> None:
    """Leave out each row's own column and its copies."""
    gaps[np.arange(len(gaps)), columns] = np.inf
    if copies is not None:
        gaps[copies[columns][:, np.newaxis] == copies] = np.inf


def _sums_in_front(cost: Array) -> Array:
    """Return the least sum of costs of the rows in front, all of them in columns in front."""
    sums: Array = np.zeros(cost.shape)
    for row in range(1, len(cost)):
        sums[row, 0] = np.inf
        sums[row, 1:] = np.minimum.accumulate(sums[row - 1] + cost[row - 1])[:-1]
    return sums
