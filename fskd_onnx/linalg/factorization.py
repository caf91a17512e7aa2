"""Kernels that are sums of products of factors, and the factors that are best for given moments.

A chain of linear nodes with nothing between them applies one kernel to the patches of its input,
and a sum of such chains the sum of their kernels::

    W(theta) = sum over chains of  F_k * ... * F_2 * F_1       W: (n, p), on patches P of p values

    (F_2 * F_1)[n, c, a + b]  +=  sum over m of  F_2[n, m, b] F_1[m, c, a]

A fit minimizes, with G' and C' the centred moments of P and of the targets, the ridge towards a
prior W0 included (``linalg.ridge``)::

    tr(W G' W') - 2 tr(W C')          G' = G + ridge I,   C' = C + ridge W0

The ridge acts on W, so that how a product is scaled between its factors makes no difference. The
objective is quadratic in each factor alone. What is before a factor, L, turns patches into what the
factor and all behind it see of its input, z = T P, with moments T G T' and C T'; what is behind it
is R. So a factor f solves  min tr(K Gz K') - 2 tr(K Cz'),  K = R * f::

    the last factors    R = I     one system for all chains together: ordinary regression on z
    R of one tap                  f = (R'R)^-1 R' Cz Gz^-1
    else                          conjugate gradients, preconditioned by (sum of R'R) x (mean of Gz)

Sweeps over all factors go on as long as they gain. Of two factors of which the last has one tap, as
two matrices have, the best pair is known at once: with B = C' G'^-1 the solution without a limit of
rank and U the first eigenvectors of B C'', it is W = U U' B (reduced-rank regression, Izenman
1975).

Chains of factors as layers: k x k then 1 x 1 (Denton et al. 2014; Zhang et al. 2016), k x 1 then
1 x k (Jaderberg et al. 2014), 1 x 1, k x k, 1 x 1 (Kim et al. 2016), sums of depthwise and
pointwise pairs (Guo et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array, backend

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

_SWEEPS, _FIRST_SWEEPS = 4, 12
# A sweep that takes off less than this part of what is left is the last one.
_WORTH_A_SWEEP = 1e-3
_STEPS = 10
# Conjugate gradients stop where the residual is this part of what it was.
_SOLVED = 1e-4
# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = 1e-9


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
        offsets, scatter = _meeting(self.offsets, first.offsets)
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


def _meeting(one: Indices, other: Indices) -> tuple[Indices, Array]:
    """Return the sums of two sets of offsets, and which pairs (of both, flat) give each."""
    sums = (one[:, np.newaxis] + other).reshape(len(one) * len(other), -1)
    if not sums.shape[1]:
        return np.zeros((1, 0), np.intp), np.ones((len(sums), 1))
    offsets, where = np.unique(sums, axis=0, return_inverse=True)
    scatter = np.zeros((len(sums), len(offsets)))
    scatter[np.arange(len(sums)), where.reshape(-1)] = 1.0
    return offsets, scatter


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
        return sum(map(self._of_chain, range(len(self.chains))), np.zeros(()))

    def _of_chain(self, number: int) -> Array:
        return self._placed(number, _product(self.chains[number]))

    def _placed(self, number: int, product: Factor) -> Array:
        n, q, _ = product.weights.shape
        placed = np.zeros((n, q, self.taps))
        placed[..., self._flat(number, product.offsets)] = product.weights
        return placed.reshape(n, q * self.taps)

    def _flat(self, number: int, offsets: Indices) -> Indices:
        """Return the taps of the composed kernel that some of a chain are."""
        if not self.window:
            return np.zeros(len(offsets), np.intp)
        at = (offsets + np.array(self.starts[number])).T
        return np.asarray(np.ravel_multi_index(tuple(at), self.window), np.intp)

    def patches(self, number: int, index: int) -> Array:
        """Return T: what a factor, and all behind it, see of its input, as a map of patches.

        Returns:
            (q * taps of the product of the factor and all behind it, p).
        """
        if not index:
            return np.eye(self.inputs * self.taps)[self._places(number)]
        chain = self.chains[number]
        seen, before = _product(chain[index:]).offsets, _product(chain[:index])
        q, c, _ = before.weights.shape
        found = np.zeros((q, len(seen), c, self.taps))
        for at, offset in enumerate(seen):
            flat = self._flat(number, before.offsets + offset)
            found[:, at, :, flat] += before.weights.transpose(2, 0, 1)
        return found.reshape(q * len(seen), c * self.taps)

    def _places(self, number: int) -> Indices:
        """Return which values of a patch the first factor of a chain, and all behind it, see."""
        flat = self._flat(number, _product(self.chains[number]).offsets)
        return (np.arange(self.inputs)[:, np.newaxis] * self.taps + flat).reshape(-1)

    def seen(self, target: Target, number: int, index: int) -> Target:
        """Return moments of what a factor sees, see `patches`."""
        if index:
            return target.seen_by(self.patches(number, index))
        places = self._places(number)
        if np.array_equal(places, np.arange(len(target.gram))):
            return target
        return replace(
            target, gram=target.gram[np.ix_(places, places)], cross=target.cross[:, places]
        )

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
    def last_patches(self) -> Array:
        """What the last factors see, side by side, as a map of patches, (r, p)."""
        parts = [self.patches(number, len(chain) - 1) for number, chain in enumerate(self.chains)]
        return np.concatenate(parts)

    def with_last(self, matrix: Array) -> Factorization:
        """Return the same with other last factors, as of ``last_matrix``."""
        sizes = [f.weights.shape[1] * f.weights.shape[2] for f in self.last]
        found = self
        for number, part in enumerate(np.split(matrix, np.cumsum(sizes)[:-1], axis=1)):
            last = self.last[number]
            new = replace(last, weights=part.reshape(last.weights.shape))
            found = found.replaced(number, len(self.chains[number]) - 1, new)
        return found


def _product(factors: Sequence[Factor]) -> Factor:
    return reduce(lambda first, second: second.behind(first), factors)


@dataclass(frozen=True)
class Target:
    """What a factorization is fitted to.

    Attributes:
        gram: (p, p) G' of the module's docstring.
        cross: (n, p) C'.
        energy: of the targets, so that the objective and this are an error, 0 at least.
    """

    gram: Array
    cross: Array
    energy: float

    def error(self, kernel: Array) -> float:
        """Return the error of a kernel, (n, p)."""
        return self.energy + float(np.sum((kernel @ self.gram - 2.0 * self.cross) * kernel))

    def seen_by(self, patches: Array) -> Target:
        """Return the same for a map of what is seen of the patches."""
        return Target(patches @ self.gram @ patches.T, self.cross @ patches.T, self.energy)


def fit_factors(
    start: Factorization, target: Target, solve: Callable[[Array], Array], *, warm: bool = False
) -> Factorization:
    """Return the factors that are best for moments, as far as sweeps from a start find them.

    Args:
        start: the structure, and factors to start from.
        target: the moments.
        solve: R -> R inverse(G').
        warm: whether the start was fitted to nearly the same moments.
    """
    if _is_low_rank(start):
        return _reduced_rank(start, target.cross, solve)
    found, error = start, target.error(start.kernel)
    for _ in range(_SWEEPS if warm else _FIRST_SWEEPS):
        new = _sweep(found, target)
        before, error = error, target.error(new.kernel)
        if not error < before:
            break
        found = new
        if before - error < _WORTH_A_SWEEP * before:
            break
    return found


def _is_low_rank(block: Factorization) -> bool:
    """Whether any kernel of a rank, on all patches, is one of the block's."""
    if len(block.chains) != 1 or len(block.chains[0]) != 2:
        return False
    first, last = block.chains[0]
    whole = first.weights.shape[2] == block.taps and last.weights.shape[2] == 1
    return whole and first.groups == last.groups == 1


def _reduced_rank(
    block: Factorization, cross: Array, solve: Callable[[Array], Array]
) -> Factorization:
    """Return the best pair of factors of the block's rank."""
    first, last = block.chains[0]
    unlimited = solve(cross)
    values, vectors = np.linalg.eigh(unlimited @ cross.T)
    rank = len(first.weights)
    chosen = np.argsort(values)[::-1][:rank]
    scale = np.sqrt(np.sqrt(np.maximum(values[chosen], 0.0)))
    scale = np.where(scale > _JITTER * scale.max(initial=0.0), scale, 1.0)
    left, right = vectors[:, chosen] * scale, vectors[:, chosen].T / scale[:, np.newaxis]
    weights = (right @ unlimited).reshape(len(right), -1, block.taps)
    placed = np.zeros((rank, *first.weights.shape[1:]))
    placed[: len(weights)] = weights[..., block._flat(0, first.offsets)]
    outer = np.zeros(last.weights.shape)
    outer[:, : left.shape[1], 0] = left
    pair = replace(first, weights=placed), replace(last, weights=outer)
    return replace(block, chains=(pair,))


def _sweep(block: Factorization, target: Target) -> Factorization:
    """Solve for every factor, the last ones first: they make up for what is in front of them."""
    block = _with_best_last(block, target)
    for number, chain in enumerate(block.chains):
        for index in reversed(range(len(chain) - 1)):
            others = block.kernel - block._of_chain(number) if len(block.chains) > 1 else None
            cross = target.cross if others is None else target.cross - others @ target.gram
            seen = block.seen(replace(target, cross=cross), number, index)
            behind = _product(block.chains[number][index + 1 :])
            new = _solve(block.chains[number][index], behind, seen)
            block = block.replaced(number, index, new)
    return _with_best_last(block, target)


def _with_best_last(block: Factorization, target: Target) -> Factorization:
    seen, mask = target.seen_by(block.last_patches), block.last_mask
    gram = _regular(seen.gram)
    if mask is None:
        return block.with_last(_inverse(gram)(seen.cross))
    matrix = np.zeros(seen.cross.shape)
    patterns, members = np.unique(mask, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = np.ix_(members.reshape(-1) == number, pattern)
        matrix[rows] = _inverse(gram[np.ix_(pattern, pattern)])(seen.cross[rows])
    return block.with_last(matrix)


def _solve(factor: Factor, behind: Factor, seen: Target) -> Factor:
    """Return the best factor, given what is behind it."""
    (n, m, r), (_, q, a) = behind.weights.shape, factor.weights.shape
    offsets, scatter = _meeting(behind.offsets, factor.offsets)
    rows = behind.weights.transpose(0, 2, 1).reshape(n * r, m)
    inner = np.einsum("nmr,nkr->mk", behind.weights, behind.weights, optimize=True)
    gram = _regular(seen.gram)
    if r == 1 and factor.groups == 1:
        right = _inverse(_regular(inner))((rows.T @ seen.cross).T).T
        return replace(factor, weights=_inverse(gram)(right).reshape(m, q, a))
    places = scatter.reshape(r, a, len(offsets)).argmax(axis=2)

    def forward(f: Array) -> Array:
        parts = (rows @ f.reshape(m, q * a)).reshape(n, r, q, a).swapaxes(1, 2)
        return np.asarray(parts.reshape(n * q, r * a) @ scatter).reshape(n, -1)

    def adjoint(k: Array) -> Array:
        parts = (k.reshape(n * q, -1) @ scatter.T).reshape(n, q, r, a).swapaxes(1, 2)
        return (rows.T @ parts.reshape(n * r, q * a)).reshape(m, q, a)

    mask = factor.mask[..., np.newaxis]
    apart = gram.reshape(q, len(offsets), q, len(offsets))
    mean = sum(apart[:, taps][:, :, :, taps] for taps in places) / r
    precondition = _preconditioner(factor.groups, _regular(inner), np.asarray(mean))
    solution = _conjugate_gradients(
        lambda f: adjoint(forward(f) @ gram) * mask,
        adjoint(seen.cross) * mask,
        factor.weights,
        precondition,
    )
    return replace(factor, weights=solution)


def _preconditioner(groups: int, inner: Array, gram: Array) -> Callable[[Array], Array]:
    """Return the inverse of (inner x gram), group by group.

    Args:
        groups: of the factor.
        inner: (m, m).
        gram: (q, taps, q, taps).
    """
    m, (q, taps, _, _) = len(inner), gram.shape
    rows, columns = m // groups, q // groups * taps
    blocks = np.einsum("gqtgps->gqtps", gram.reshape(groups, q // groups, taps, groups, -1, taps))
    of_inputs = _regular_all(blocks.reshape(groups, columns, columns))
    of_outputs = np.einsum("gmgk->gmk", inner.reshape(groups, rows, groups, rows))
    inverses = np.linalg.inv(of_outputs), np.linalg.inv(of_inputs)

    def apply(f: Array) -> Array:
        own = np.arange(groups)
        parts = f.reshape(groups, rows, groups, q // groups, taps)[own, :, own]
        solved = inverses[0] @ parts.reshape(groups, rows, columns) @ inverses[1]
        result = np.zeros((groups, rows, groups, q // groups, taps))
        result[own, :, own] = solved.reshape(groups, rows, -1, taps)
        return result.reshape(m, q, taps)

    return apply


def _conjugate_gradients(
    multiply: Callable[[Array], Array],
    right: Array,
    start: Array,
    precondition: Callable[[Array], Array],
) -> Array:
    """Return a few steps towards the solution of a symmetric positive system."""
    solution = start.copy()
    residual = right - multiply(solution)
    towards = direction = precondition(residual)
    size = first = float(np.vdot(residual, towards))
    for _ in range(_STEPS):
        if not size > _SOLVED**2 * first:
            break
        image = multiply(direction)
        curvature = float(np.vdot(direction, image))
        if not curvature > 0:
            break
        solution += size / curvature * direction
        residual = residual - size / curvature * image
        towards = precondition(residual)
        before, size = size, float(np.vdot(residual, towards))
        direction = towards + size / before * direction
    return solution


def _regular(gram: Array) -> Array:
    regular: Array = _regular_all(gram[np.newaxis])[0]
    return regular


def _regular_all(grams: Array) -> Array:
    """Return (groups, m, m) matrices that have an inverse."""
    size = grams.shape[1]
    mean = np.einsum("gii->g", grams) / size
    shift = np.where(mean > 0, _JITTER * mean, 1.0)
    regular: Array = grams + shift[:, np.newaxis, np.newaxis] * np.eye(size)
    return regular


def _inverse(gram: Array) -> Callable[[Array], Array]:
    solve = backend().cholesky(gram)
    if solve is not None:
        return solve
    inverse = backend().pseudo_inverse(gram)
    return lambda right: np.asarray(right @ inverse)
