"""How unlikely it is that rows of weights are noisy ones of a teacher's.

Errors of weights are normal, with one variance in a block; those of biases with another. With RSS
the sum of N squared errors in the most likely assignment, the profile likelihood says that another
row in the place of one costs ``N / 2 * log(1 + (its error - that of the one) / RSS)``. Nothing else
is known of the variances, so few rows of few inputs say little.

Rows have the length of their teacher's, or each a factor where a BatchNormalization was folded:
then they are compared at unit length, which one degree of freedom of each row pays for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.assignment import Channels, cheapest

Rows = tuple[Array, NDArray[np.floating]]
"""Rows of weights, (groups, n, p), and their biases, (groups, n)."""

# Errors of weights are not independent: a row says no more than so many independent ones would.
_MOST_WEIGHTS = 64
# Where factors of rows explain this much of the errors, they are there.
_FACTORS_EXPLAIN = 4.0
# Roundings of folding a BatchNormalization, in units of the type's precision.
_ROUNDINGS = 4.0
# Likelihoods and assignments hardly change after so many turns.
_TURNS = 3
# The shortest row that a factor is told of, by its square in units of the mean.
_SHORTEST = 1e-6
# Stands for zero where a logarithm is taken, or a quotient.
_TINY = 1e-60
# Of the single row of a block, another error may be nothing in comparison.
_LEAST = 1e-12 - 1
# Distances are differences of products in float64, to so much of a length.
_LEAST_PRECISION = 1e-7


def row_costs(own: Rows, columns: Rows, precision: float) -> Array:
    """Return how unlikely it is that rows of a student are noisy ones of a teacher's.

    Args:
        own: (groups, n, p) rows of the student and their (groups, n) biases.
        columns: (groups, m, p) of the teacher, in the same groups, and their biases.
        precision: of the type that stores them.

    Returns:
        (groups, n, m) costs in nats.
    """
    (rows, own_biases), (others, others_biases) = own, columns
    rounding = (_ROUNDINGS * max(precision, _LEAST_PRECISION)) ** 2
    degrees, energy = rows.shape[2], float(np.square(rows).sum(axis=2).mean())
    equal = np.ones((len(others), 1, others.shape[1]))
    biases = None
    if own_biases.any() or others_biases.any():
        gaps = np.square(own_biases[:, :, np.newaxis] - others_biases[:, np.newaxis])
        rounded = rounding * float(np.square(others_biases).mean())
        biases = _Errors(gaps, 1, rounded, equal)
    lengths = [np.square(part).sum(axis=2) for part in (rows, others)]
    products = rows @ np.swapaxes(others, 1, 2)
    distances = lengths[0][..., np.newaxis] + lengths[1][:, np.newaxis] - 2 * products
    whole = _Errors(np.maximum(distances, 0.0), degrees, rounding * energy, equal)
    fitted, nats = _fitted(whole, biases)
    if degrees > 1:
        # The same error turns a short row by a larger angle.
        ratios = lengths[1][:, np.newaxis] / max(float(lengths[1].mean()), _TINY)
        angles = _Errors(
            _squared_sines(products, lengths),
            degrees - 1,
            rounding,
            np.maximum(ratios, _SHORTEST),
        )
        explained = min(
            angles.variance(columns)
            for columns in (fitted, np.array([cheapest(part) for part in angles.squares]))
        )
        if _FACTORS_EXPLAIN * explained * energy < whole.variance(fitted):
            _, nats = _fitted(angles, biases)
    return nats


@dataclass(frozen=True)
class _Errors:
    """Squared errors of rows in the place of others.

    Attributes:
        squares: (groups, n, m).
        degrees: of freedom of each.
        rounding: what of a square may be rounding.
        precision: (groups, 1, m) what squares are to be multiplied by to be of one variance.
    """

    squares: Array
    degrees: int
    rounding: float
    precision: Array

    @property
    def start(self) -> Array:
        """The squares in units of their mean, before anything is known of a variance."""
        return self.squares / max(float(self.squares.mean()), self.rounding, _TINY)

    def variance(self, columns: Channels) -> float:
        """Return the variance that an assignment of (groups, n) columns shows."""
        own = _chosen(self.precision * self.squares, columns)
        return (float(own.mean()) + self.rounding + _TINY) / self.degrees

    def nats(self, columns: Channels) -> Array:
        """Return the costs of all columns under the variance of an assignment.

        A row whose own error is larger than the mean says less by as much.
        """
        squares = self.precision * self.squares
        own = _chosen(squares, columns)
        noise = np.maximum(own, own.mean()) + self.rounding + _TINY
        more = (squares - own[..., np.newaxis]) / (own.size * noise[..., np.newaxis])
        more = np.maximum(more, _LEAST)
        nats: Array = self._counted * (own.size * np.log1p(more) - np.log(self.precision))
        return nats

    def unlikelihood(self, columns: Channels) -> float:
        """Return the negative logarithm of the likelihood of an assignment."""
        precision = np.broadcast_to(self.precision, self.squares.shape)
        wide = -np.log(_chosen(precision, columns)).sum()
        return self._counted * float(columns.size * math.log(self.variance(columns)) + wide)

    @property
    def _counted(self) -> float:
        return min(self.degrees, _MOST_WEIGHTS) / 2


def _chosen(values: Array, columns: Channels) -> Array:
    """Return the (groups, n) values of some columns."""
    found: Array = np.take_along_axis(values, columns[..., np.newaxis], axis=2)[..., 0]
    return found


def _nats(weights: _Errors, biases: _Errors | None, columns: Channels) -> Array:
    nats = weights.nats(columns)
    return nats if biases is None else nats + biases.nats(columns)


def _fitted(weights: _Errors, biases: _Errors | None) -> tuple[Channels, Array]:
    """Return the most likely assignment of (groups, n) columns, and the costs of all under it.

    Assignment and variances are found in turns, from weights alone and from both together.
    """
    starts = [weights.start]
    if biases is not None:
        starts.append(weights.degrees * weights.start + biases.start)
    found: list[tuple[float, int, Channels, Array]] = []
    for cost in starts:
        columns = np.array([cheapest(part) for part in cost])
        if any(np.array_equal(columns, other) for _, _, other, _ in found):
            continue
        for _ in range(_TURNS):
            before = columns
            nats = _nats(weights, biases, columns)
            columns = np.array([cheapest(part) for part in nats])
            if np.array_equal(columns, before):
                break
        else:
            nats = _nats(weights, biases, columns)
        unlikely = weights.unlikelihood(columns)
        if biases is not None:
            unlikely += biases.unlikelihood(columns)
        found.append((unlikely, len(found), columns, nats))
    _, _, columns, nats = min(found, key=lambda one: one[:2])
    return columns, nats


def _squared_sines(products: Array, lengths: Sequence[Array]) -> Array:
    """Return 1 less the (groups, n, m) squared cosines, of which negative ones count as 0.

    Rows of zeros agree, a dead filter with a dead one.

    Args:
        products: (groups, n, m) inner products.
        lengths: (groups, n) and (groups, m) squared lengths.
    """
    both = lengths[0][..., np.newaxis] * lengths[1][:, np.newaxis]
    cosines = np.square(np.maximum(products, 0.0))
    np.divide(cosines, both, out=cosines, where=both > 0)
    dead = (lengths[0] == 0)[..., np.newaxis] & (lengths[1] == 0)[:, np.newaxis]
    sines: Array = np.clip(1 - cosines - dead, 0.0, 1.0)
    return sines
