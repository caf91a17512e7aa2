"""The greedy choice of channels: those from which all are best reconstructed, as readers see them.

With R the centred Gram matrix of what a reader reads, M its weights and H = M M', the choice takes
the channel of the largest gain and eliminates it, until there are enough::

    gain(j) = sum over readers of  e_j / R_jj / tr(H R)        e_j = R_j' H R_j

R := R - R_j R_j' / R_jj, pivoted Cholesky elimination, in which R_j is column j of R. A pick of
column c changes the energies of all channels by what products with vectors tell::

    e_j := e_j - 2 t_j v_j + t_j^2 c' H c        v = R H c        t = c / c_j

R, R H and R H R are formed anew after some picks, by products of matrices. In between R is the one
that was formed less the l_k l_k' of the columns l_k = c / sqrt(c_j) that have gone since, and the
others follow from H l_k and R H l_k. Of a channel that has gone, rows and columns of R are zero, so
the matrices shrink to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg.blas
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels

_PICKS_BETWEEN = 32
# Matrices shrink, which copies them, where they become that much smaller.
_SMALLER = 0.9
_ROUNDING = 1e-14


def choose_channels(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Choose the channels that reconstruct all others best, as their readers see them.

    Args:
        evidence: R, the centred Gram matrix, and H = M M' of each reader, (channels, channels).
            Readers of the same columns have the same array R.
        width: how many to choose.

    Returns:
        (width,) channels, ascending.
    """
    return np.sort(order_of_choice(evidence, width))


def order_of_choice(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Return the channels that ``choose_channels`` takes, the best one first.

    Args:
        evidence: as of ``choose_channels``.
        width: how many to choose.
    """
    grams = {id(gram): gram for gram, _ in evidence}
    # Gains are linear in H, so what reads the same columns is one reader.
    weights: dict[int, Array] = {}
    for gram, weight in evidence:
        seen = float(np.vdot(weight, gram))
        # Of what does not vary, or what it has no weights for, a reader sees rounding.
        if seen <= _ROUNDING * float(np.linalg.norm(weight)) * float(np.linalg.norm(gram)):
            share = np.zeros_like(weight)
        else:
            share = weight / seen
        weights[id(gram)] = weights[id(gram)] + share if id(gram) in weights else share
    readers = [_Reader(gram, weights[key]) for key, gram in grams.items()]
    left = np.ones(len(evidence[0][0]), dtype=bool)
    picks = np.empty(width, np.intp)
    for place in range(width):
        gains = np.sum([reader.gains() for reader in readers], axis=0)
        pick = int(np.argmax(np.where(left, gains, -np.inf)))
        left[pick], picks[place] = False, pick
        for reader in readers:
            reader.eliminate(pick)
    return picks


class _Reader:
    """What readers of the same columns miss of the channels, as they are eliminated."""

    def __init__(self, gram: Array, weight: Array) -> None:
        """Start with all channels missed.

        Args:
            gram: R of the module's docstring.
            weight: H, the sum of those of all readers.
        """
        self._channels = len(gram)
        # What is known of channels is known of some, ascending: those that have not gone are there.
        self._known = np.arange(len(gram))
        self._taken = np.zeros(len(gram), dtype=bool)
        self._gram = gram.copy()
        self._seen = gram @ weight
        self._both = self._seen @ gram
        self._pivots = np.diag(gram).copy()
        self._floor = 1e-10 * max(float(self._pivots.max()), np.finfo(float).tiny)
        self._energy = np.diag(self._both).copy()
        # l_k, H l_k and R H l_k, with R as it was formed, of each k.
        self._gone = np.empty((3, _PICKS_BETWEEN, len(gram)))
        self._count = 0

    def gains(self) -> Array:
        """Return what each channel would add, (channels,)."""
        large = self._pivots > self._floor
        gain = self._energy / np.maximum(self._pivots, self._floor)
        gains = np.zeros(self._channels)
        gains[self._known] = np.where(large, np.maximum(gain, 0.0), 0.0)
        return gains

    def eliminate(self, channel: int) -> None:
        """Take what a channel tells out of all others."""
        pick = int(np.searchsorted(self._known, channel))
        self._taken[pick] = True
        pivot = self._pivots[pick]
        if not pivot > self._floor:
            return
        gone = self._gone[:, : self._count]
        formed = np.stack([self._gram[pick], self._seen[pick], self._both[pick]])
        formed -= gone[0, :, pick] @ gone
        column, felt, missed = formed
        missed = missed - (gone[0] @ felt) @ gone[0]
        share = column / pivot
        self._energy += share * (share * (column @ felt) - 2.0 * missed)
        self._pivots -= column * share
        self._gone[:, self._count] = formed / np.sqrt(pivot)
        self._count += 1
        if self._count == _PICKS_BETWEEN:
            self._form()

    def _form(self) -> None:
        """Form the matrices anew, without what has gone."""
        columns, felt, missed = self._gone
        missed -= 0.5 * (felt @ columns.T) @ columns
        self._gram = _less_product(self._gram, columns, columns)
        self._seen = _less_product(self._seen, columns, felt)
        self._both = _less_product(
            self._both, np.concatenate([columns, missed]), np.concatenate([missed, columns])
        )
        self._count = 0
        left = np.flatnonzero(~self._taken)
        if len(left) < _SMALLER * len(self._known):
            self._shrink(left)

    def _shrink(self, left: NDArray[np.intp]) -> None:
        """Go on with some of what is known."""
        both_ways = np.ix_(left, left)
        self._gram, self._seen, self._both = (
            matrix[both_ways] for matrix in (self._gram, self._seen, self._both)
        )
        self._known = self._known[left]
        self._pivots, self._energy = self._pivots[left], self._energy[left]
        self._taken = np.zeros(len(left), dtype=bool)
        self._gone = np.empty((3, _PICKS_BETWEEN, len(left)))


def _less_product(matrix: Array, left: Array, right: Array) -> Array:
    """Return ``matrix - left.T @ right`` in the place of the matrix, without a copy of its size."""
    # What is in rows here is in columns there.
    changed: Array = scipy.linalg.blas.dgemm(
        -1.0, right.T, left.T, beta=1.0, c=matrix.T, trans_b=True, overwrite_c=True
    )
    return changed.T
