"""The levels of all units with the least error under a budget; no ONNX in here.

A unit u (channels, a node that may be factorized, a block that may go) has levels; level l has an
error e_u(l), and errors add up. The cost is a sum of terms, each of the levels of a few units: what
a node costs depends on the channels that it reads, those that it writes, and its factors::

    minimize  sum_u e_u(l_u)   subject to   cost(l) = sum_t c_t(l_u : u in t) <= budget

For a multiplier m the budget goes into the objective, sum_u e_u + m cost, which coordinate descent
lowers: a unit takes the level that is best while the others stay, and only terms of that unit are
looked at. The least error under a budget lies where m is just large enough (Everett 1963,
"Generalized Lagrange multiplier method"); m is found by bisection. Levels that no m reaches, those
above the lower convex hull, come in afterwards: what is left of the budget is filled by the steps
that save most error for what they cost, then by exchanges, of one unit that gets more and another
that gets less. At last single units are held at other levels that come close, and the rest is
filled anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fskd_onnx.compression.level_search import TINY, CostTerm, LevelSearch, Steps

__all__ = ["Choice", "CostTerm", "choose"]

_BISECTIONS = 24
# Factor of the multiplier's first search, and how often it is applied.
_STEP, _MOST_STEPS = 8.0, 40
# Choices that are filled up, and levels that units are held at.
_FILLED, _HELD = 8, 96


@dataclass(frozen=True)
class Choice:
    """A level for each unit.

    Attributes:
        levels: in the order of the units.
        cost: of all terms; above the budget where no levels were found that are within it.
        error: of all units.
    """

    levels: tuple[int, ...]
    cost: float
    error: float


def choose(errors: Sequence[Sequence[float]], terms: Sequence[CostTerm], budget: float) -> Choice:
    """Return levels with the least error that was found whose cost is within a budget.

    Args:
        errors: of each unit, the error of each level; level 0 leaves the unit whole.
        terms: of the cost.
        budget: the most that all terms may cost together.

    Returns:
        The choice; the cheapest that was found where none is within the budget.

    Raises:
        ValueError: a unit has no level, or an error is not finite.
    """
    search = LevelSearch(errors, terms, budget)
    whole = [0] * len(errors)
    if search.is_within(whole):
        return _choice(search, whole)
    last = [len(levels) - 1 for levels in search.errors]
    starts = [search.descend(start, 0.0, 1.0) for start in (whole, last)]
    cheapest = min(starts, key=search.cost)
    if not search.is_within(cheapest):
        return _choice(search, cheapest)
    multiplier, found = _along_the_hull(search, whole, cheapest)
    nearest = sorted(found, key=lambda levels: (abs(search.cost(levels) - budget), levels))
    filled = [_filled(search, levels) for levels in (*nearest[:_FILLED], cheapest)]
    within = [steps for steps in filled if search.is_within(steps.levels)]
    steps = min(within, key=lambda steps: (search.error(steps.levels), steps.levels))
    return _choice(search, _with_others(search, steps, multiplier).levels)


def _choice(search: LevelSearch, levels: Sequence[int]) -> Choice:
    return Choice(tuple(levels), search.cost(levels), search.error(levels))


def _filled(search: LevelSearch, levels: Sequence[int]) -> Steps:
    """Return levels within the budget that take all of it that they can use."""
    steps = Steps(search, levels)
    steps.repair()
    steps.improve()
    return steps


def _with_others(search: LevelSearch, best: Steps, multiplier: float) -> Steps:
    """Return levels that are better once one unit has been held at another level, if any are."""
    tried = 0
    while True:
        before, start = search.error(best.levels), best
        for step in start.by_price(multiplier):
            if (tried := tried + 1) > _HELD:
                return best
            other = start.copy()
            other.freeze(step)
            other.repair()
            other.improve()
            if search.is_within(other.levels) and search.error(other.levels) < before:
                best = other.thawed()
                break
        if best is start:
            return best


def _along_the_hull(
    search: LevelSearch, whole: list[int], cheapest: list[int]
) -> tuple[float, set[tuple[int, ...]]]:
    """Return the multiplier that the budget comes to, and the choices on the way to it."""
    found = {tuple(cheapest)}
    worst = math.fsum(float(errors.max()) for errors in search.errors)
    low, high = 0.0, (worst or 1.0) / max(search.cost(whole), TINY)
    within = cheapest
    for _ in range(_MOST_STEPS):
        levels = search.descend(whole, 1.0, high)
        found.add(tuple(levels))
        if search.is_within(levels):
            within = levels
            break
        low, high = high, high * _STEP
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high) if low else high / _STEP
        tried = [search.descend(start, 1.0, middle) for start in (whole, within)]
        found |= set(map(tuple, tried))
        levels = min(tried, key=lambda t: search.error(t) + middle * search.cost(t))
        if search.is_within(levels):
            high, within = middle, levels
        else:
            low = middle
    return high, found
