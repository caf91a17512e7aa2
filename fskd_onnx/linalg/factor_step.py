"""One factor of a kernel, given all others: the best one for moments.

With what is in front of a factor f, its input z has the moments G and C, with targets. What is
behind it is R, so that f solves::

    min over f of  tr(K G K') - 2 tr(K C'),   K = R * f        (F_2 * F_1 of linalg.factorization)

The normal equations of f, (m, q, taps), with one weight (i, c, a) against another (j, d, b)::

    H = sum over taps s, t of R  of   (R_s' R_t)[i, j]  G[(c, a + s), (d, b + t)]

    R of one tap, f dense       f = (R' R)^-1 R' C G^-1
    R depthwise, f dense        a system for each i, for R_s' R_t is diagonal
    R of one tap, f grouped     one system of all its weights, where they are few
    else                        conjugate gradients, preconditioned by (sum of R' R) x (mean of G)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fskd_onnx.linalg.backends import Array, backend
from fskd_onnx.linalg.factorization import Factor, Indices, PatchMap, meeting

# Of conjugate gradients per factor. Twice as many take half as long again, and the errors on fresh
# samples are no less.
_STEPS = 5
# Conjugate gradients stop where the residual is this part of what it was.
_SOLVED = 1e-4
# Relative to the mean diagonal; keeps systems of dead channels regular.
_JITTER = 1e-9
# A system of that many unknowns costs no more than conjugate gradients.
_FEW = 1600


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

    def seen_by(self, patches: PatchMap) -> Target:
        """Return the same for what is seen of the patches."""
        gram = patches.of(patches.of(self.gram).T)
        return Target(gram, patches.of(self.cross.T).T, self.energy)


def solve_factor(factor: Factor, behind: Factor, seen: Target) -> Factor:
    """Return the best factor, or one that is nearer to it.

    Args:
        factor: the structure, and where to start from.
        behind: R of the module's docstring.
        seen: moments of its input, (q * taps of the product, the same), and of targets with it.
    """
    (_, m, r), (_, q, a) = behind.weights.shape, factor.weights.shape
    offsets, scatter = meeting(behind.offsets, factor.offsets)
    inner = np.einsum("nmr,nkr->mk", behind.weights, behind.weights, optimize=True)
    gram = regular(seen.gram)
    if r == 1 and factor.groups == 1:
        right = inverse_of(regular(inner))((behind.weights[..., 0].T @ seen.cross).T).T
        return replace(factor, weights=inverse_of(gram)(right).reshape(m, q, a))
    places = scatter.reshape(r, a, len(offsets)).argmax(axis=2)
    inputs = (np.arange(q)[:, np.newaxis] * len(offsets) + places[:, np.newaxis]).reshape(r, q * a)
    right = np.einsum("nmr,nrk->mk", behind.weights, seen.cross[:, inputs], optimize=True)
    right = right.reshape(m, q, a)
    if factor.groups == 1 and behind.groups == m:
        apart = gram.reshape(q, len(offsets), q, len(offsets))
        return replace(factor, weights=_channel_by_channel(behind.weights, apart, places, right))
    if r == 1 and m * q * a <= factor.groups * _FEW:
        return replace(factor, weights=_at_once(factor, inner, gram, right))
    by_tap = gram[inputs]
    mean = sum(part[:, read] for part, read in zip(by_tap, inputs, strict=True)) / r
    return factor.with_matrix(
        _conjugate_gradients(
            _multiplication(factor.groups, behind.weights, by_tap, inputs),
            replace(factor, weights=right).matrix,
            factor.matrix,
            _preconditioner(factor.groups, regular(inner), mean),
        )
    )


def _channel_by_channel(behind: Array, gram: Array, places: Indices, right: Array) -> Array:
    """Solve for the weights of each channel, where each is read by channels of its own.

    Args:
        behind: R, (n, m, r).
        gram: (q, taps, q, taps).
        places: (r, a) taps of the input that each of f's taps is at, for each of R's.
        right: (m, q, a).
    """
    (m, q, a), r = right.shape, len(places)
    inner = np.einsum("nms,nmt->mst", behind, behind, optimize=True)
    # The pair (s, t) has the weight of (t, s).
    pairs = [(s, t) for s in range(r) for t in range(s + 1)]
    parts = [gram[:, places[s]][..., places[t]].reshape(q * a, q * a) for s, t in pairs]
    both = [part if s == t else part + part.T for part, (s, t) in zip(parts, pairs, strict=True)]
    weights = inner[:, *np.transpose(pairs)]
    systems = np.tensordot(weights, both, axes=1)
    rights = right.reshape(m, 1, q * a)
    solved = [inverse_of(regular(one))(b) for one, b in zip(systems, rights, strict=True)]
    return np.concatenate(solved).reshape(m, q, a)


def _at_once(factor: Factor, inner: Array, gram: Array, right: Array) -> Array:
    """Solve for all weights that the groups of a factor leave room for.

    Args:
        factor: the factor.
        inner: R' R, (m, m), of one tap.
        gram: (q * a, the same).
        right: (m, q, a).
    """
    channels, *inputs = np.nonzero(np.broadcast_to(factor.mask[..., np.newaxis], right.shape))
    columns = np.ravel_multi_index(tuple(inputs), right.shape[1:])
    system = inner[np.ix_(channels, channels)] * gram[np.ix_(columns, columns)]
    solution = np.zeros(right.shape)
    solved = inverse_of(regular(system))(right[channels, *inputs][np.newaxis])
    solution[channels, *inputs] = solved[0]
    return solution


def _multiplication(
    groups: int, behind: Array, by_tap: Array, inputs: Indices
) -> Callable[[Array], Array]:
    """Return the product of H and weights, of either as ``Factor.matrix`` gives them.

    Nothing is as wide as the block's output: what f makes of G is brought together by R_s' R_t.

    Args:
        groups: of the factor.
        behind: R, (n, m, r).
        by_tap: (r, q * a, p) the rows of G that f reads for each tap of R.
        inputs: (r, q * a) which ones these are.
    """
    _, m, r = behind.shape
    pairs = np.einsum("njt,nis->stji", behind, behind, optimize=True)
    pairs = pairs.reshape(r, r * m, groups, m // groups).swapaxes(1, 2)
    grams = by_tap.reshape(r, groups, -1, by_tap.shape[2]).swapaxes(2, 3)

    def apply(f: Array) -> Array:
        made = grams @ f.swapaxes(1, 2)  # (r, groups, p, m / groups)
        made = made.transpose(2, 0, 1, 3).reshape(len(grams[0, 0]), r * m)
        parts = (
            made[read].reshape(groups, -1, r * m) @ pair
            for read, pair in zip(inputs, pairs, strict=True)
        )
        return np.asarray(sum(parts)).swapaxes(1, 2)

    return apply


def _preconditioner(groups: int, inner: Array, gram: Array) -> Callable[[Array], Array]:
    """Return the inverse of (inner x gram), group by group, of weights as ``Factor.matrix``.

    Args:
        groups: of the factor.
        inner: (m, m).
        gram: (q * taps, the same).
    """
    rows, columns = len(inner) // groups, len(gram) // groups
    of_inputs = np.einsum("gigj->gij", gram.reshape(groups, columns, groups, columns))
    of_outputs = np.einsum("gigj->gij", inner.reshape(groups, rows, groups, rows))
    left, right = np.linalg.inv(of_outputs), np.linalg.inv(regular_all(of_inputs))
    return lambda f: np.asarray(left @ f @ right)


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


def regular(gram: Array) -> Array:
    """Return an (m, m) matrix that has an inverse, at most rounding away from one."""
    found: Array = regular_all(gram[np.newaxis])[0]
    return found


def regular_all(grams: Array) -> Array:
    """Return (groups, m, m) matrices that have an inverse."""
    size = grams.shape[1]
    mean = np.einsum("gii->g", grams) / size
    shifted = grams.copy()  # matrices may be large: no third one
    np.einsum("gii->gi", shifted)[:] += np.where(mean > 0, _JITTER * mean, 1.0)[:, np.newaxis]
    return shifted


def inverse_of(gram: Array) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram)."""
    solve = backend().cholesky(gram)
    if solve is not None:
        return solve
    inverse = backend().pseudo_inverse(gram)
    return lambda right: np.asarray(right @ inverse)
