"""A monotone alignment of two partially ordered sets of nodes.

Node i of a student may stand for node j of a teacher with the evidence e(i, j); what must not be is
-inf. An alignment pairs each node at most once and keeps the order: i is in front of k in the
student if and only if their partners are in the teacher. Parallel branches are not in order with
each other, so they stay apart; nodes may be left out on either side (dropped blocks, the inner
nodes of a decomposed one).

The value of a pair is that of the heaviest chain of pairs through it, by dynamic programming from
both ends, as in the alignment of partial orders (Lee, Grasso, Sharlow 2002)::

    F(i, j) = e(i, j) + max(0, max of F(k, l) over k before i, l before j)      B likewise, behind
    V(i, j) = F(i, j) + B(i, j) - e(i, j)

The certainty of a pair is its share, exp(V / T), among all pairs of the same student node, and of
the same teacher node. Pairs are fixed in the order of their certainty; each rules out what does not
fit with it, and the rest is valued anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Order = NDArray[np.bool_]

# Two places as good as each other have a share of 1/2, a difference T one of 3/4.
_TEMPERATURE = 0.1
CERTAIN = 0.6


@dataclass(frozen=True)
class Pair:
    """A student's node and its teacher's, as numbers.

    Attributes:
        student: the student's node.
        teacher: the teacher's.
        certainty: between 0 and 1.
    """

    student: int
    teacher: int
    certainty: float


class Alignment:
    """The pairs of two orders that are fixed so far, and what they leave open."""

    def __init__(self, evidence: Floats, student: Order, teacher: Order) -> None:
        """Begin without any pair.

        Args:
            evidence: (n, m), -inf for what must not be.
            student: (n, n), whether the one node is in front of the other.
            teacher: (m, m) likewise.
        """
        self.pairs: dict[int, Pair] = {}
        self._evidence = evidence.astype(np.float64, copy=True)
        self._student, self._teacher = student, teacher

    def fix(self, student: int, teacher: int, certainty: float) -> None:
        """Fix a pair, and rule out all that does not fit with it."""
        self.pairs[student] = Pair(student, teacher, certainty)
        order, wanted = self._student, self._teacher
        fits = (order[student][:, np.newaxis] == wanted[teacher]) & (
            order[:, student][:, np.newaxis] == wanted[:, teacher]
        )
        fits[student], fits[:, teacher] = False, False
        fits[student, teacher] = True
        self._evidence[~fits] = -np.inf

    def leave_out(self, student: int) -> None:
        """Rule out that a node of the student has a partner."""
        self._evidence[student] = -np.inf

    def settle(self, bonus: Floats | None = None) -> list[Pair]:
        """Fix pairs as long as there are certain ones.

        Args:
            bonus: (n, m) more evidence on what is open, such as a name in common.

        Returns:
            The new pairs.
        """
        before = set(self.pairs)
        evidence = 0.0 if bonus is None else bonus
        while not self._is_complete and (found := self._certain(self.values(evidence))):
            for pair in found:
                if self.is_open(pair.student, pair.teacher):
                    self.fix(pair.student, pair.teacher, pair.certainty)
        return [pair for student, pair in self.pairs.items() if student not in before]

    def is_open(self, student: int, teacher: int) -> bool:
        """Whether neither has a partner, and they fit with all pairs that are fixed."""
        return student not in self.pairs and bool(self._evidence[student, teacher] > -np.inf)

    def values(self, bonus: Floats | float = 0.0) -> Floats:
        """Return V, (n, m): the heaviest chain through each pair; -inf for what is ruled out."""
        evidence = self._evidence + bonus
        ahead = _heaviest(evidence, self._student, self._teacher)
        behind = _heaviest(evidence[::-1, ::-1], *(_reversed(o) for o in self._orders))[::-1, ::-1]
        possible = np.isfinite(evidence)
        return np.where(possible, ahead + behind - np.where(possible, evidence, 0.0), -np.inf)

    @property
    def _is_complete(self) -> bool:
        """Whether all of the student's nodes have a partner."""
        return len(self.pairs) == len(self._evidence)

    @property
    def _orders(self) -> tuple[Order, Order]:
        return self._student, self._teacher

    def _certain(self, values: Floats) -> list[Pair]:
        """Return the certain pairs that are not fixed yet, the most certain first."""
        shares = np.minimum(_shares(values), _shares(values.T).T)
        shares[list(self.pairs)] = 0.0
        shares[self._evidence <= 0] = 0.0  # nothing speaks for them
        students, teachers = np.nonzero(shares > CERTAIN)
        pairs = [
            Pair(int(i), int(j), float(shares[i, j]))
            for i, j in zip(students, teachers, strict=True)
        ]
        return sorted(pairs, key=lambda pair: -pair.certainty)

    def rivals(self) -> Mapping[int, list[int]]:
        """Return the teacher's nodes that are as good as each other, for each open student's."""
        if self._is_complete:
            return {}
        values = np.where(self._evidence > 0, self.values(), -np.inf)
        best = values.max(axis=1, initial=-np.inf)
        return {
            i: [int(j) for j in np.flatnonzero(values[i] >= best[i] - _TEMPERATURE)]
            for i in range(len(values))
            if i not in self.pairs and np.isfinite(best[i])
        }


def _heaviest(evidence: Floats, student: Order, teacher: Order) -> Floats:
    """Return F; nodes are in a topological order on both sides."""
    heaviest = np.full(evidence.shape, -np.inf)
    behind = np.where(teacher, 0.0, -np.inf).T  # (m, m): of each node, those in front of it
    for i, row in enumerate(evidence):
        front = heaviest[student[:, i]].max(axis=0, initial=0.0)
        reached = (behind + front).max(axis=1, initial=0.0)
        heaviest[i] = row + np.maximum(reached, 0.0)
    return heaviest


def _reversed(order: Order) -> Order:
    """Return the order from behind, of nodes that are counted from behind."""
    return order.T[::-1, ::-1]


def _shares(values: Floats) -> Floats:
    """Return the share of each value in its row."""
    best = values.max(axis=1, keepdims=True, initial=-np.inf)
    best = np.where(np.isfinite(best), best, 0.0)
    weights = np.exp(np.minimum((values - best) / _TEMPERATURE, 0.0))
    shares: Floats = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return shares
