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
from fskd_onnx.linalg.factorization import Factor, Indices, meeting

_STEPS = 10
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

    def seen_by(self, patches: Array) -> Target:
        """Return the same for a map of what is seen of the patches."""
        return Target(patches @ self.gram @ patches.T, self.cross @ patches.T, self.energy)


def solve_factor(factor: Factor, behind: Factor, seen: Target) -> Factor:
    """Return the best factor, or one that is nearer to it.

    Args:
        factor: the structure, and where to start from.
        behind: R of the module's docstring.
        seen: moments of its input, (q * taps of the product, the same), and of targets with it.
    """
    (n, m, r), (_, q, a) = behind.weights.shape, factor.weights.shape
    offsets, scatter = meeting(behind.offsets, factor.offsets)
    rows = behind.weights.transpose(0, 2, 1).reshape(n * r, m)
    inner = np.einsum("nmr,nkr->mk", behind.weights, behind.weights, optimize=True)
    gram = regular(seen.gram)
    if r == 1 and factor.groups == 1:
        right = inverse_of(regular(inner))((rows.T @ seen.cross).T).T
        return replace(factor, weights=inverse_of(gram)(right).reshape(m, q, a))
    places = scatter.reshape(r, a, len(offsets)).argmax(axis=2)
    apart = gram.reshape(q, len(offsets), q, len(offsets))

    def forward(f: Array) -> Array:
        parts = (rows @ f.reshape(m, q * a)).reshape(n, r, q, a).swapaxes(1, 2)
        return np.asarray(parts.reshape(n * q, r * a) @ scatter).reshape(n, -1)

    def adjoint(k: Array) -> Array:
        parts = (k.reshape(n * q, -1) @ scatter.T).reshape(n, q, r, a).swapaxes(1, 2)
        return (rows.T @ parts.reshape(n * r, q * a)).reshape(m, q, a)

    mask = factor.mask[..., np.newaxis]
    right = adjoint(seen.cross) * mask
    if factor.groups == 1 and behind.groups == m:
        return replace(factor, weights=_channel_by_channel(behind.weights, apart, places, right))
    if r == 1 and m * q * a <= factor.groups * _FEW:
        return replace(factor, weights=_at_once(factor, inner, gram, right))
    mean = sum(apart[:, taps][:, :, :, taps] for taps in places) / r
    precondition = _preconditioner(factor.groups, regular(inner), np.asarray(mean))
    solution = _conjugate_gradients(
        lambda f: adjoint(forward(f) @ gram) * mask,
        right,
        factor.weights,
        precondition,
    )
    return replace(factor, weights=solution)


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
    parts = gram[:, places][..., places]  # (q, r, a, q, r, a)
    flat = parts.transpose(1, 4, 0, 2, 3, 5).reshape(r * r, -1)
    systems = regular_all((inner.reshape(m, r * r) @ flat).reshape(m, q * a, q * a))
    return np.asarray(np.linalg.solve(systems, right.reshape(m, q * a, 1)).reshape(m, q, a))


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
    of_inputs = regular_all(blocks.reshape(groups, columns, columns))
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


def regular(gram: Array) -> Array:
    """Return an (m, m) matrix that has an inverse, at most rounding away from one."""
    found: Array = regular_all(gram[np.newaxis])[0]
    return found


def regular_all(grams: Array) -> Array:
    """Return (groups, m, m) matrices that have an inverse."""
    size = grams.shape[1]
    mean = np.einsum("gii->g", grams) / size
    shift = np.where(mean > 0, _JITTER * mean, 1.0)
    found: Array = grams + shift[:, np.newaxis, np.newaxis] * np.eye(size)
    return found


def inverse_of(gram: Array) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram)."""
    solve = backend().cholesky(gram)
    if solve is not None:
        return solve
    inverse = backend().pseudo_inverse(gram)
    return lambda right: np.asarray(right @ inverse)
