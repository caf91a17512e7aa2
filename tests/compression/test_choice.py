"""Choices are within their budget and close to the best that there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fskd_onnx.compression.choice import Choice, CostTerm, choose
from fskd_onnx.compression.level_search import LevelSearch

Problem = tuple[list[list[float]], list[CostTerm]]


def product_of(widths: list[list[float]], units: tuple[int, ...], factor: float) -> CostTerm:
    """A node that costs as much as the widths of all units that it depends on, multiplied."""

    def cost(levels: tuple[int, ...]) -> float:
        chosen = (widths[unit][level] for unit, level in zip(units, levels, strict=True))
        return factor * math.prod(chosen)

    return CostTerm(units, cost)


def random_problem(seed: int, units: int, levels: int) -> Problem:
    """A chain of nodes, and as many between any three units; some errors are not monotone."""
    rng = np.random.default_rng(seed)
    errors, widths = [], []
    for _ in range(units):
        steps = rng.exponential(1, levels - 1) * np.linspace(0.2, 2, levels - 1)
        rising = np.concatenate([[0], np.cumsum(steps)])
        loose = np.concatenate([[0], rng.random(levels - 1)])
        errors.append((rng.lognormal(0, 1.5) * (loose if rng.random() < 0.3 else rising)).tolist())
        widths.append(np.round(64 * np.linspace(1, 0.1, levels)).tolist())
    pairs = [(unit, unit + 1) for unit in range(units - 1)]
    count = min(3, units)
    others = [tuple(rng.choice(units, count, replace=False).tolist()) for _ in range(units)]
    return errors, [product_of(widths, u, rng.lognormal(0, 1)) for u in (*pairs, *others)]


def cost_of(problem: Problem, levels: tuple[int, ...]) -> float:
    return sum(term.cost(tuple(levels[unit] for unit in term.units)) for term in problem[1])


def best_error(problem: Problem, budget: float) -> float:
    """Try all levels of all units."""
    found = (
        sum(error[level] for error, level in zip(problem[0], levels, strict=True))
        for levels in itertools.product(*(range(len(error)) for error in problem[0]))
        if cost_of(problem, levels) <= budget
    )
    return min(found, default=math.inf)


@pytest.mark.parametrize("seed", range(40))
def test_small_problems_are_solved(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units, levels = int(rng.integers(1, 7)), int(rng.integers(2, 5))
    problem = random_problem(seed, units, levels)
    budget = cost_of(problem, (0,) * units) * rng.uniform(0.1, 0.9)
    best = best_error(problem, budget)
    choice = choose(*problem, budget)
    assert choice.cost == pytest.approx(cost_of(problem, choice.levels), rel=1e-9)
    if math.isinf(best):
        assert choice.cost > budget
    else:
        assert choice.cost <= budget * (1 + 1e-9)
        assert best * (1 - 1e-9) <= choice.error <= best * 1.05 + 1e-9


def test_large_problems_use_their_budget_and_beat_equal_levels() -> None:
    units, levels = 30, 10
    problem = random_problem(1, units, levels)
    for level in (2, 6):
        equal = (level,) * units
        budget = cost_of(problem, equal)
        choice = choose(*problem, budget)
        assert 0.99 * budget < choice.cost <= budget * (1 + 1e-9)
        uniform = sum(error[level] for error in problem[0])
        assert choice.error < 0.8 * uniform
    assert choose(*problem, budget) == choice


def test_what_fits_stays_whole() -> None:
    problem = random_problem(3, 4, 3)
    whole = (0,) * 4
    assert choose(*problem, cost_of(problem, whole)) == Choice(whole, cost_of(problem, whole), 0)


def test_the_cheapest_is_returned_where_nothing_fits() -> None:
    widths: list[list[float]] = [[8, 4], [8, 2]]
    terms = [product_of(widths, (0, 1), 1.0)]
    assert choose([[0, 1], [0, 1]], terms, 7) == Choice((1, 1), 8, 2)


def test_levels_above_the_hull_are_reached_too() -> None:
    # no multiplier prefers level 1, which is all that the budget allows
    cost = CostTerm((0,), lambda levels: (10.0, 6.0, 0.0)[levels[0]])
    assert choose([[0.0, 0.9, 1.0]], [cost], 6).levels == (1,)


def test_costs_need_not_fall_with_the_level() -> None:
    seconds = CostTerm((0,), lambda levels: (1.0, 2.0, 0.5)[levels[0]])
    assert choose([[0.0, 0.1, 0.2]], [seconds], 0.9).levels == (2,)


def test_a_block_that_goes_makes_the_rest_of_it_free() -> None:
    # unit 0 narrows the inside of the block that unit 1 drops
    cost = CostTerm((0, 1), lambda levels: 0.0 if levels[1] else (8.0, 4.0)[levels[0]])
    rest = CostTerm((2,), lambda levels: (8.0, 4.0)[levels[0]])
    errors = [[0.0, 0.5], [0.0, 0.7], [0.0, 3.0]]
    assert choose(errors, [cost, rest], 12).levels == (1, 0, 0)
    assert choose(errors, [cost, rest], 9).levels == (0, 1, 0)


def test_units_without_terms_and_terms_without_units() -> None:
    fixed = CostTerm((), lambda _: 5.0)
    term = CostTerm((1,), lambda levels: (4.0, 1.0)[levels[0]])
    choice = choose([[0.0, 1.0], [0.0, 2.0]], [fixed, term], 6)
    assert choice == Choice((0, 1), 6, 2)
    assert choose([], [fixed], 9) == Choice((), 5, 0)


def test_only_terms_of_a_unit_are_looked_at_when_it_changes() -> None:
    asked: list[tuple[int, ...]] = []

    def cost(levels: tuple[int, ...]) -> float:
        asked.append(levels)
        return 4.0 - levels[0]

    search = LevelSearch([[0.0, 1.0], [0.0, 1.0]], [CostTerm((0,), cost)], 5.0)
    for levels in ([0, 0], [0, 1], [1, 1]):
        search.profile(0, levels)
        search.profile(1, levels)
    assert asked == [(0,), (1,)]


@pytest.mark.parametrize("errors", [[[]], [[0.0, math.nan]], [[0.0, math.inf]]])
def test_errors_that_are_no_numbers_are_refused(errors: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="errors that are finite"):
        choose(errors, [], 1)
