"""Kernels that are sums of products of factors.

A chain of linear nodes with nothing between them applies one kernel to the patches of its input,
and a sum of such chains the sum of their kernels::

    W(theta) = sum over chains of  F_k * ... * F_2 * F_1       W: (n, p), on patches P of p values

    (F_2 * F_1)[n, c, a + b]  +=  sum over m of  F_2[n, m, b] F_1[m, c, a]

Chains of factors as layers: k x k then 1 x 1 (Denton et al. 2014; Zhang et al. 2016), k x 1 then
1 x k (Jaderberg et al. 2014), 1 x 1, k x k, 1 x 1 (Kim et al. 2016), sums of depthwise and
pointwise pairs (Guo et al. 2018). ``linalg.factor_fit`` finds the best ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Factor:
    """One linear node of a chain.

    Attributes:
        weights: (m, q, taps), zeros between channels of different groups.
        offsets: (taps, axes) where each tap is, in steps of the composed kernel.
        groups: that its channels are divided into; m and q are multiples of it.
    """

    weights: Array
    offsets: Indices
    groups: int = 1

    def behind(self, first: Factor) -> Factor:
        """Return the product of this factor and the one in front of it."""
        offsets, scatter = meeting(self.offsets, first.offsets)
        (n, m, b), (_, q, a) = self.weights.shape, first.weights.shape
        parts = self.weights.transpose(0, 2, 1).reshape(n * b, m) @ first.weights.reshape(m, q * a)
        parts = parts.reshape(n, b, q, a).swapaxes(1, 2).reshape(n * q, b * a)
        return Factor((parts @ scatter).reshape(n, q, -1), offsets)

    @property
    def mask(self) -> Mask:
        """(m, q) which channels are of one group."""
        m, q, _ = self.weights.shape
        group = np.arange(m) * self.groups // m, np.arange(q) * self.groups // q
        return np.asarray(np.equal.outer(*group))

    @property
    def matrix(self) -> Array:
        """The weights that may differ from 0, as (groups, m / groups, q / groups * taps)."""
        m, q, taps = self.weights.shape
        each = self.groups, m // self.groups, self.groups, q // self.groups, taps
        blocks = np.einsum("gmgqt->gmqt", self.weights.reshape(each))
        return np.ascontiguousarray(blocks.reshape(self.groups, m // self.groups, -1))

    def with_matrix(self, matrix: Array) -> Factor:
        """Return the factor with other weights, as of ``matrix``."""
        m, q, taps = self.weights.shape
        weights = np.zeros((self.groups, m // self.groups, self.groups, q // self.groups, taps))
        own = np.arange(self.groups)
        weights[own, :, own] = matrix.reshape(self.groups, m // self.groups, -1, taps)
        return replace(self, weights=weights.reshape(m, q, taps))


def meeting(one: Indices, other: Indices) -> tuple[Indices, Array]:
    """Return the sums of two sets of offsets, and which pairs (of both, flat) give each."""
    sums = (one[:, np.newaxis] + other).reshape(len(one) * len(other), -1)
    least = sums.min(axis=0)
    extents = tuple(sums.max(axis=0) - least + 1)
    # Numbers are sorted in no time where rows are not.
    flat = np.ravel_multi_index(tuple((sums - least).T), extents) if extents else np.zeros(1, int)
    found, where = np.unique(flat, return_inverse=True)
    scatter = np.zeros((len(sums), len(found)))
    scatter[np.arange(len(sums)), where] = 1.0
    if not extents:
        return np.zeros((1, 0), np.intp), scatter
    return np.stack(np.unravel_index(found, extents), axis=1) + least, scatter


@dataclass(frozen=True)
class PatchMap:
    """What factors see of their inputs, as a map T of patches of which nearly all is zeros.

    Attributes:
        parts: of each factor, the product of what is in front of it, and, for each tap that it and
            all behind it see, (taps seen, taps of the product) which taps of a patch that reads.
        taps: of a patch.
    """

    parts: tuple[tuple[Factor, Indices], ...]
    taps: int

    def of(self, patches: Array) -> Array:
        """Return T P, (channels seen * taps seen, columns) of all factors.

        Args:
            patches: P, (inputs * taps, columns).
        """
        by_tap = patches.reshape(-1, self.taps, patches.shape[1])
        return np.concatenate([self._seen(*part, by_tap) for part in self.parts])

    @property
    def matrix(self) -> Array:
        """T itself, (channels seen * taps seen, inputs * taps)."""
        return np.concatenate([self._placed(*part) for part in self.parts])

    def _placed(self, before: Factor, reads: Indices) -> Array:
        m, q, _ = before.weights.shape
        found = np.zeros((m, len(reads), q, self.taps))
        for at, read in enumerate(reads):
            found[:, at][..., read] = before.weights
        return found.reshape(m * len(reads), q * self.taps)

    @staticmethod
    def _seen(before: Factor, reads: Indices, by_tap: Array) -> Array:
        columns = by_tap.shape[2]
        found = np.empty((len(before.weights), len(reads), columns))
        for at, read in enumerate(reads):
            values = by_tap[:, read].reshape(before.groups, -1, columns)
            found[:, at] = (before.matrix @ values).reshape(-1, columns)
        return found.reshape(-1, columns)


Chain = tuple[Factor, ...]


@dataclass(frozen=True)
class Factorization:
    """A sum of chains of factors.

    Attributes:
        chains: the factors of each, the first one reads the input.
        starts: where the patch of each chain begins in the composed one, per axis.
        window: taps of the composed kernel, per axis.
    """

    chains: tuple[Chain, ...]
    starts: tuple[tuple[int, ...], ...]
    window: tuple[int, ...]

    @cached_property
    def inputs(self) -> int:
        """Channels that it reads."""
        return int(self.chains[0][0].weights.shape[1])

    @cached_property
    def taps(self) -> int:
        """Taps of the composed kernel."""
        return int(np.prod(self.window, dtype=int))

    @property
    def kernel(self) -> Array:
        """The composed kernel, (n, inputs * taps)."""
        return sum(map(self.of_chain, range(len(self.chains))), np.zeros(()))

    def of_chain(self, number: int) -> Array:
        """Return the kernel of one chain, (n, inputs * taps)."""
        return self._placed(number, product_of(self.chains[number]))

    def _placed(self, number: int, product: Factor) -> Array:
        n, q, _ = product.weights.shape
        placed = np.zeros((n, q, self.taps))
        placed[..., self.flat(number, product.offsets)] = product.weights
        return placed.reshape(n, q * self.taps)

    def flat(self, number: int, offsets: Indices) -> Indices:
        """Return the taps of the composed kernel that some of a chain are."""
        if not self.window:
            return np.zeros(len(offsets), np.intp)
        at = (offsets + np.array(self.starts[number])).T
        return np.asarray(np.ravel_multi_index(tuple(at), self.window), np.intp)

    def patches(self, number: int, index: int) -> PatchMap:
        """Return what a factor, and all behind it, see of its input, as a map of patches."""
        return PatchMap((self._seen(number, index),), self.taps)

    def _seen(self, number: int, index: int) -> tuple[Factor, Indices]:
        chain = self.chains[number]
        seen = product_of(chain[index:]).offsets
        before = product_of(chain[:index]) if index else _identity(chain[0])
        return before, np.stack([self.flat(number, before.offsets + offset) for offset in seen])

    def places(self, number: int) -> Indices:
        """Return which values of a patch the first factor of a chain, and all behind it, see."""
        flat = self.flat(number, product_of(self.chains[number]).offsets)
        return (np.arange(self.inputs)[:, np.newaxis] * self.taps + flat).reshape(-1)

    def replaced(self, number: int, index: int, factor: Factor) -> Factorization:
        """Return the same with another factor."""
        chain = self.chains[number]
        new = (*chain[:index], factor, *chain[index + 1 :])
        return replace(self, chains=(*self.chains[:number], new, *self.chains[number + 1 :]))

    @property
    def last(self) -> list[Factor]:
        """The last factor of each chain."""
        return [chain[-1] for chain in self.chains]

    @property
    def last_matrix(self) -> Array:
        """The weights of the last factors side by side, (n, r)."""
        return np.concatenate([f.weights.reshape(len(f.weights), -1) for f in self.last], axis=1)

    @property
    def last_mask(self) -> Mask | None:
        """Where the last factors may differ from zero, (n, r); None: everywhere."""
        if all(factor.groups == 1 for factor in self.last):
            return None
        masks = [np.repeat(f.mask, f.weights.shape[2], axis=1) for f in self.last]
        return np.concatenate(masks, axis=1)

    @property
    def last_patches(self) -> PatchMap:
        """What the last factors see, side by side, as a map of patches."""
        parts = (self._seen(number, len(chain) - 1) for number, chain in enumerate(self.chains))
        return PatchMap(tuple(parts), self.taps)

    def with_last(self, matrix: Array) -> Factorization:
        """Return the same with other last factors, as of ``last_matrix``."""
        sizes = [f.weights.shape[1] * f.weights.shape[2] for f in self.last]
        found = self
        for number, part in enumerate(np.split(matrix, np.cumsum(sizes)[:-1], axis=1)):
            last = self.last[number]
            new = replace(last, weights=part.reshape(last.weights.shape))
            found = found.replaced(number, len(self.chains[number]) - 1, new)
        return found


def side_by_side(block: Factorization) -> Factorization | None:
    """Return a sum of pairs as one pair, their inner channels side by side, group by group.

    Returns:
        None where there is one chain, or where the chains are not alike.
    """
    if len(block.chains) == 1 or any(len(chain) != 2 for chain in block.chains):
        return None
    firsts, lasts = zip(*block.chains, strict=True)
    groups = firsts[0].groups
    alike = len(set(block.starts)) == 1 and all(
        one.groups == factors[0].groups and np.array_equal(one.offsets, factors[0].offsets)
        for factors in (firsts, lasts)
        for one in factors
    )
    if not alike or lasts[0].groups > 1:
        return None
    first = np.concatenate([_by_group(f.weights, groups, 0) for f in firsts], axis=1)
    last = np.concatenate([_by_group(f.weights, groups, 1) for f in lasts], axis=2)
    pair = (
        replace(firsts[0], weights=first.reshape(-1, *firsts[0].weights.shape[1:])),
        replace(lasts[0], weights=last.reshape(len(last), -1, last.shape[-1])),
    )
    return Factorization((pair,), block.starts[:1], block.window)


def apart(wide: Factorization, like: Factorization) -> Factorization:
    """Return the pairs of which ``side_by_side`` has made one.

    Args:
        wide: the one.
        like: the block that it was made from.
    """
    first, last = wide.chains[0]
    each = [len(chain[0].weights) // first.groups for chain in like.chains]
    ends = np.cumsum(each)[:-1]
    firsts = np.split(_by_group(first.weights, first.groups, 0), ends, axis=1)
    lasts = np.split(_by_group(last.weights, first.groups, 1), ends, axis=2)
    chains = tuple(
        tuple(
            replace(factor, weights=part.reshape(factor.weights.shape))
            for factor, part in zip(chain, parts, strict=True)
        )
        for chain, *parts in zip(like.chains, firsts, lasts, strict=True)
    )
    return replace(like, chains=chains)


def _by_group(weights: Array, groups: int, axis: int) -> Array:
    """Return weights with one axis divided into groups and the channels of each."""
    shape = weights.shape
    return weights.reshape(*shape[:axis], groups, -1, *shape[axis + 1 :])


def _identity(factor: Factor) -> Factor:
    """Return the factor that gives what another one reads as it is."""
    _, q, _ = factor.weights.shape
    return Factor(np.eye(q)[..., np.newaxis], np.zeros((1, factor.offsets.shape[1]), np.intp), q)


def product_of(factors: Sequence[Factor]) -> Factor:
    """Return the product of some factors, the first one in front."""
    return reduce(lambda first, second: second.behind(first), factors)
