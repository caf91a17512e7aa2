"""The factors of a kernel that are best for given moments.

Let W(theta) be the kernel of a ``Factorization``, (n, p) on patches P. A fit minimizes, with G' and
C' the centred moments of P and of the targets, the ridge towards a prior W0 included
(``linalg.ridge``)::

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
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fskd_onnx.linalg.backends import Array, backend
from fskd_onnx.linalg.factorization import Factor, Factorization, meeting, product_of

_SWEEPS, _FIRST_SWEEPS = 4, 12
# A sweep that takes off less than this part of what is left is the last one.
_WORTH_A_SWEEP = 1e-3
_STEPS = 10
# Conjugate gradients stop where the residual is this part of what it was.
_SOLVED = 1e-4
# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = 1e-9


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
    placed[: len(weights)] = weights[..., block.flat(0, first.offsets)]
    outer = np.zeros(last.weights.shape)
    outer[:, : left.shape[1], 0] = left
    pair = replace(first, weights=placed), replace(last, weights=outer)
    return replace(block, chains=(pair,))


def _sweep(block: Factorization, target: Target) -> Factorization:
    """Solve for every factor, the last ones first: they make up for what is in front of them."""
    block = _with_best_last(block, target)
    for number, chain in enumerate(block.chains):
        for index in reversed(range(len(chain) - 1)):
            others = block.kernel - block.of_chain(number) if len(block.chains) > 1 else None
            cross = target.cross if others is None else target.cross - others @ target.gram
            seen = _seen(block, number, index, replace(target, cross=cross))
            behind = product_of(block.chains[number][index + 1 :])
            new = _solve(block.chains[number][index], behind, seen)
            block = block.replaced(number, index, new)
    return _with_best_last(block, target)


def _seen(block: Factorization, number: int, index: int, target: Target) -> Target:
    """Return moments of what a factor sees, see ``Factorization.patches``."""
    if index:
        return target.seen_by(block.patches(number, index))
    places = block.places(number)
    if np.array_equal(places, np.arange(len(target.gram))):
        return target
    gram, cross = target.gram[np.ix_(places, places)], target.cross[:, places]
    return replace(target, gram=gram, cross=cross)


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
    offsets, scatter = meeting(behind.offsets, factor.offsets)
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
