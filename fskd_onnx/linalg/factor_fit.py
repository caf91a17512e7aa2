"""The factors of a kernel that are best for given moments.

Let W(theta) be the kernel of a ``Factorization``, (n, p) on patches P. A fit minimizes, with G' and
C' the centred moments of P and of the targets, the ridge towards a prior W0 included
(``linalg.ridge``)::

    tr(W G' W') - 2 tr(W C')          G' = G + ridge I,   C' = C + ridge W0

The ridge acts on W, so that how a product is scaled between its factors makes no difference. The
objective is quadratic in each factor alone. What is before a factor, L, turns patches into what the
factor and all behind it see of its input, z = T P, with moments T G T' and C T'. The last factors
of all chains are one ordinary regression on z (``linalg.last_factors``); for others see
``linalg.factor_step``. Sweeps over all factors go on as long as they gain. Like pairs that are
summed are one pair with the inner channels of all. Of two factors of which the last has one tap, as
two matrices have, the best pair is known at once: with B = C' G'^-1 the solution without a limit of
rank and U the first eigenvectors of B C'', it is W = U U' B (reduced-rank regression, Izenman
1975).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.linalg

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factor_step import Target, regular, solve_factor
from fskd_onnx.linalg.factorization import Factorization, apart, product_of, side_by_side
from fskd_onnx.linalg.last_factors import LastFactors

_SWEEPS, _FIRST_SWEEPS = 1, 6
# A sweep that takes off less than this part of what is left is the last one.
_WORTH_A_SWEEP = 1e-3
# Relative to the largest; what is less is no direction at all.
_NOTHING = 1e-9


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
    if (wide := side_by_side(start)) is not None:
        return apart(fit_factors(wide, target, solve, warm=warm), start)
    if _is_low_rank(start):
        return _reduced_rank(start, target, solve)
    problem = LastFactors(start, target)
    found, error, last = start, problem.error(start), problem.best()
    for _ in range(_SWEEPS if warm else _FIRST_SWEEPS):
        problem = LastFactors(_sweep(last, target), target)
        last = problem.best()
        before, error = error, problem.error(last)
        if not error < before:
            break
        found = last
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
    block: Factorization, target: Target, solve: Callable[[Array], Array]
) -> Factorization:
    """Return the best pair of factors of the block's rank."""
    first, last = block.chains[0]
    left, right = _best_of_rank(len(first.weights), target, solve)
    weights = right.reshape(len(right), -1, block.taps)
    placed = np.zeros((len(first.weights), *first.weights.shape[1:]))
    placed[: len(weights)] = weights[..., block.flat(0, first.offsets)]
    outer = np.zeros(last.weights.shape)
    outer[:, : left.shape[1], 0] = left
    pair = replace(first, weights=placed), replace(last, weights=outer)
    return replace(block, chains=(pair,))


def _best_of_rank(
    rank: int, target: Target, solve: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Return the best map of patches of a rank as two, of outputs and of patches."""
    n, p = target.cross.shape
    if n <= p:
        unlimited = solve(target.cross)
        values, vectors = np.linalg.eigh(unlimited @ target.cross.T)
        left, right = vectors, vectors.T @ unlimited
    else:
        # As of a classifier of thousands of classes. C'' C' v = s G' v has the eigenvalues s of
        # B C''; with v' G' v = 1 the eigenvectors are C' v, and W is the sum of (C' v) v'.
        values, vectors = scipy.linalg.eigh(target.cross.T @ target.cross, regular(target.gram))
        sizes = np.sqrt(np.maximum(values, 0.0))
        sizes = np.where(sizes > _NOTHING * sizes.max(initial=0.0), sizes, 1.0)
        left, right = target.cross @ vectors / sizes, (vectors * sizes).T
    chosen = np.argsort(values)[::-1][:rank]
    scale = np.sqrt(np.sqrt(np.maximum(values[chosen], 0.0)))
    scale = np.where(scale > _NOTHING * scale.max(initial=0.0), scale, 1.0)
    return left[:, chosen] * scale, right[chosen] / scale[:, np.newaxis]


def _sweep(block: Factorization, target: Target) -> Factorization:
    """Solve for every factor but the last ones, where these are solved for."""
    for number, chain in enumerate(block.chains):
        for index in reversed(range(len(chain) - 1)):
            others = block.kernel - block.of_chain(number) if len(block.chains) > 1 else None
            cross = target.cross if others is None else target.cross - others @ target.gram
            seen = _seen(block, number, index, replace(target, cross=cross))
            behind = product_of(block.chains[number][index + 1 :])
            new = solve_factor(block.chains[number][index], behind, seen)
            block = block.replaced(number, index, new)
    return block


def _seen(block: Factorization, number: int, index: int, target: Target) -> Target:
    """Return moments of what a factor sees, see ``Factorization.patches``."""
    if index:
        return target.seen_by(block.patches(number, index))
    places = block.places(number)
    if np.array_equal(places, np.arange(len(target.gram))):
        return target
    gram, cross = target.gram[np.ix_(places, places)], target.cross[:, places]
    return replace(target, gram=gram, cross=cross)
