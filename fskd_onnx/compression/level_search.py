"""Levels of units, what they cost, and steps to better ones; see ``choice.py`` for the problem."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TINY = 1e-200
"""In place of a cost of zero that something is divided by."""

# Exchanges that are tried before none is found.
_TRIED = 64
# What rounding of a sum may take.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class CostTerm:
    """A part of the cost that depends on the levels of a few units.

    Attributes:
        units: numbers of the units, none of them twice.
        cost: of the level of each of these, in order.
    """

    units: tuple[int, ...]
    cost: Callable[[tuple[int, ...]], float]


class _Line:
    """A term as one of its units sees it: the cost of each level, while the others stay."""

    def __init__(self, term: CostTerm, place: int, count: int) -> None:
        """Ask nothing yet.

        Args:
            term: the term.
            place: of the unit among those of the term.
            count: number of the unit's levels.
        """
        self._term, self._place, self._count = term, place, count
        others = (*term.units[:place], *term.units[place + 1 :])
        # One level comes as it is, several as a tuple: either is a key.
        self._key = itemgetter(*others) if others else None
        self._only = len(others) == 1
        self._known: dict[object, Floats] = {}

    def __call__(self, levels: Sequence[int]) -> Floats:
        """Return the costs, which are asked for once."""
        key = () if self._key is None else self._key(levels)
        found = self._known.get(key)
        if found is None:
            others = (key,) if self._only else key
            front, back = others[: self._place], others[self._place :]
            cost = self._term.cost
            found = np.array([cost((*front, level, *back)) for level in range(self._count)], float)
            self._known[key] = found
        return found


class LevelSearch:
    """Levels, their costs, and steps from one choice to a better one."""

    def __init__(
        self, errors: Sequence[Sequence[float]], terms: Sequence[CostTerm], budget: float
    ) -> None:
        """Prepare what is asked again and again.

        Raises:
            ValueError: a unit has no level, or an error is not finite.
        """
        self.errors = [np.asarray(list(levels), np.float64) for levels in errors]
        if not all(len(levels) and np.isfinite(levels).all() for levels in self.errors):
            raise ValueError("each unit needs a level, and errors that are finite")
        self.budget = budget + _ROUNDING * abs(budget)
        self._fixed = math.fsum(term.cost(()) for term in terms if not term.units)
        self._firsts: list[tuple[int, _Line]] = []
        self._of_unit: list[list[_Line]] = [[] for _ in errors]
        self.beside: list[set[int]] = [set() for _ in errors]
        for term in terms:
            for place, unit in enumerate(term.units):
                line = _Line(term, place, len(self.errors[unit]))
                self._of_unit[unit].append(line)
                self.beside[unit].update(term.units)
                if place == 0:
                    self._firsts.append((unit, line))

    def error(self, levels: Sequence[int]) -> float:
        """Return the error of all units."""
        chosen = zip(self.errors, levels, strict=True)
        return math.fsum(float(errors[level]) for errors, level in chosen)

    def cost(self, levels: Sequence[int]) -> float:
        """Return the cost of all terms."""
        return self._fixed + math.fsum(line(levels)[levels[unit]] for unit, line in self._firsts)

    def is_within(self, levels: Sequence[int]) -> bool:
        """Whether levels cost no more than the budget."""
        return self.cost(levels) <= self.budget

    def profile(self, unit: int, levels: Sequence[int]) -> Floats:
        """Return what the terms of a unit cost for each of its levels, while the others stay."""
        total = np.zeros(len(self.errors[unit]))
        for line in self._of_unit[unit]:
            total += line(levels)
        return total

    def descend(self, start: Sequence[int], weight: float, multiplier: float) -> list[int]:
        """Return levels of which no single one lowers ``weight * error + multiplier * cost``.

        Levels that are equally good leave a unit as it is.
        """
        levels = list(start)
        open_units = list(range(len(levels)))
        while open_units:
            changed: set[int] = set()
            for unit in open_units:
                objective = weight * self.errors[unit] + multiplier * self.profile(unit, levels)
                best, now = int(objective.argmin()), float(objective[levels[unit]])
                if objective[best] < now - _ROUNDING * abs(now):
                    levels[unit] = best
                    changed |= self.beside[unit] - {unit}
            open_units = sorted(changed)
        return levels


class Steps:
    """Levels, and all steps of one unit to another level: what each adds while the others stay.

    Steps lie side by side, those of the first unit first. A step to the level that a unit has adds
    nothing.
    """

    def __init__(self, search: LevelSearch, levels: Sequence[int]) -> None:
        """Start from some levels."""
        self._search = search
        self.levels = list(levels)
        counts = [len(errors) for errors in search.errors]
        self._ends = np.cumsum(counts).tolist()
        self._units = np.repeat(np.arange(len(counts)), counts)
        self._new = np.concatenate([np.arange(count) for count in counts])
        self._errors, self._costs = np.empty(len(self._new)), np.empty(len(self._new))
        self._frozen = np.zeros(len(self._new), bool)
        self._total = search.cost(levels)
        self._renew(range(len(counts)))

    @property
    def slack(self) -> float:
        """What is left of the budget."""
        return self._search.budget - self._total

    def copy(self) -> Steps:
        """Return the same steps, to be taken apart from these."""
        other = copy.copy(self)
        other.levels = list(self.levels)
        for name in ("_errors", "_costs", "_frozen"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def _renew(self, units: Iterable[int]) -> None:
        for unit in units:
            errors, level = self._search.errors[unit], self.levels[unit]
            own = slice(self._ends[unit] - len(errors), self._ends[unit])
            costs = self._search.profile(unit, self.levels)
            self._errors[own] = errors - errors[level]
            self._costs[own] = costs - costs[level]

    def take(self, step: int) -> None:
        """Take a step."""
        unit = int(self._units[step])
        self._total += float(self._costs[step])
        self.levels[unit] = int(self._new[step])
        self._renew({unit, *self._search.beside[unit]})

    def freeze(self, step: int) -> None:
        """Take a step, and let no other step be one of the same unit."""
        self.take(step)
        self._frozen |= self._units == self._units[step]

    def thawed(self) -> Steps:
        """Return the same steps, all of which may be taken."""
        other = self.copy()
        other._frozen[:] = False
        other.improve()
        return other

    def by_price(self, multiplier: float) -> list[int]:
        """Return the steps to other levels, those first that lose least error and cost."""
        other = np.flatnonzero(self._new != np.asarray(self.levels)[self._units])
        loss = self._errors[other] + multiplier * self._costs[other]
        return [int(step) for step in other[np.argsort(loss, kind="stable")]]

    def repair(self) -> None:
        """Come below the budget, by the steps that add least error for what they save."""
        while self.slack < 0:
            saves = (self._costs < 0) & ~self._frozen
            if not saves.any():
                return
            # What is enough on its own may be cheaper than what saves most for its error.
            saved = np.where(saves, np.minimum(-self._costs, -self.slack), 1.0)
            prices = np.where(saves, self._errors / saved, np.inf)
            self.take(int(prices.argmin()))

    def improve(self) -> None:
        """Fill what is left of the budget, then exchange, until neither lowers the error."""
        while self._fill() or self._exchange():
            pass

    def _fill(self) -> bool:
        """Take the step that saves most error for its cost; return whether there was one."""
        fits = (self._errors < 0) & (self._costs <= self.slack) & ~self._frozen
        if not fits.any():
            return False
        # What costs nothing comes first, the most error of it.
        gains = np.where(fits, -self._errors / np.maximum(self._costs, TINY), -np.inf)
        self.take(int(gains.argmax()))
        return True

    def _exchange(self) -> bool:
        """Let one unit have more and another one less, if that lowers the error; return whether.

        Steps are judged one by one, as if the other was not taken; what both come to is checked.
        """
        usable = np.flatnonzero(~self._frozen)
        order = usable[np.argsort(self._costs[usable], kind="stable")]
        # Of all steps that cost no more than one of them, the one that adds least error.
        errors = self._errors[order]
        lowest = np.minimum.accumulate(errors)
        first = np.maximum.accumulate(np.where(errors <= lowest, np.arange(len(order)), 0))
        gaining = usable[self._errors[usable] < 0]
        room = self.slack - self._costs[gaining]
        reach = np.searchsorted(self._costs[order], room, side="right") - 1
        gaining, reach = gaining[reach >= 0], reach[reach >= 0]
        partners = order[first[reach]]
        gains = self._errors[gaining] + self._errors[partners]
        for at in np.argsort(gains, kind="stable")[:_TRIED]:
            if gains[at] >= 0:
                break
            one, other = int(gaining[at]), int(partners[at])
            if self._units[one] == self._units[other]:
                continue
            unit, before = int(self._units[one]), self.levels[int(self._units[one])]
            self.take(one)
            if self._costs[other] <= self.slack:
                self.take(other)
                return True
            self.take(self._ends[unit] - len(self._search.errors[unit]) + before)
        return False
