"""The greedy choice of channels: those from which all are best reconstructed, as readers see them.

With R the centred Gram matrix of what a reader reads, M its weights and H = M M', the choice takes
the channel of the largest gain and eliminates it, until there are enough::

    gain(j) = sum over readers of  e_j / R_jj / tr(H R)        e_j = R_j' H R_j

R := R - R_j R_j' / R_jj, pivoted Cholesky elimination, in which R_j is column j of R. Neither R nor
H R is formed anew: with the columns l_k = R_k / sqrt(R_kk) of what has been eliminated, R is the
first one less their l_k l_k', and a pick of column c changes the energies of all channels by what
two products with vectors tell::

    e_j := e_j - 2 t_j v_j + t_j^2 c' H c        v = R H c        t = c / c_j
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels


def choose_channels(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Choose the channels that reconstruct all others best, as their readers see them.

    Args:
        evidence: R, the centred Gram matrix, and H = M M' of each reader, (channels, channels).
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
    readers = [_Reader(gram, weight, width) for gram, weight in evidence]
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
    """What a reader misses of the channels, as they are eliminated."""

    def __init__(self, gram: Array, weight: Array, most: int) -> None:
        """Start with all channels missed.

        Args:
            gram: R of the module's docstring.
            weight: H.
            most: channels to eliminate.
        """
        self._gram, self._weight = gram, weight
        seen = weight @ gram
        tiny = np.finfo(float).tiny
        self._scale = 1.0 / max(float(np.trace(seen)), tiny)
        self._pivots = np.diag(gram).copy()
        self._floor = 1e-10 * max(float(self._pivots.max()), tiny)
        self._energy = np.einsum("ij,ij->j", gram, seen)
        self._gone = np.empty((most, len(gram)))  # rows are the columns l_k
        self._count = 0

    def gains(self) -> Array:
        """Return what each channel would add, (channels,)."""
        large = self._pivots > self._floor
        gain = self._scale * self._energy / np.maximum(self._pivots, self._floor)
        return np.where(large, np.maximum(gain, 0.0), 0.0)

    def eliminate(self, pick: int) -> None:
        """Take what a channel tells out of all others."""
        pivot = self._pivots[pick]
        if not pivot > self._floor:
            return
        gone = self._gone[: self._count]
        column = self._gram[pick] - gone[:, pick] @ gone
        felt = self._weight @ column
        missed = self._gram @ felt - (gone @ felt) @ gone
        share = column / pivot
        self._energy += share * (share * (column @ felt) - 2.0 * missed)
        self._pivots -= column * share
        self._gone[self._count] = column / np.sqrt(pivot)
        self._count += 1
