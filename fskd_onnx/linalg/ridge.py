"""Moments -> adapter: ridge regression towards the student as it is, chosen by cross-validation.

Both families of adapters are one problem, on different regressors x and with different priors A::

    min over B, c of  ||B X + c - Y||^2 + ridge ||B - A||^2
    B = A + (Cyx - A Gxx) (Gxx + ridge I)^-1,    c = mean(Y) - B mean(X)      (centred moments)

    pointwise   x = block output W p + b   A = I   fused: W' = B W, b' = B b + c
    kernel      x = input patch p          A = W   fused: W' = B,   b' = c

The pointwise family is the paper's (Li et al. 2020, equation 4), with a shift and a ridge. The
kernel family contains it, and also makes up for *inputs* that the block has lost.

Regressors that lie in a subspace are read in an orthonormal basis V of it, x = V z. The change then
is B - A = D V' with D the change of the map of z, and ||D|| = ||B - A||: the same problem, smaller.
A block with more outputs than inputs per patch has such outputs, W = V T, and few columns span such
patches.

A kernel that is mostly zeros is solved on its support, row by row, and keeps its zeros.

The ridge pulls towards the student as it is, not towards zero: ten samples, or a singular Gxx,
leave the directions they say nothing about alone. The shift is never pulled. Strengths are relative
to the mean diagonal of Gxx, so that one grid serves all blocks.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backend import Array, backend
from fskd_onnx.linalg.moments import Moments, sum_moments
from fskd_onnx.passes.analysis.affine import AffineMap

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

RIDGES: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-6, 2))

# A system of this many unknowns is factorized in a millisecond. Costlier ones are tested on fewer
# folds: the held-out error of two folds already orders the ridges.
_CHEAP = 128
_SPARSE = 0.5
_FOLDS_IF_COSTLY = 2
# All targets of a block share regressors and ridge, so that this many tell which ridge is best.
_TESTED_TARGETS = 64


def is_sparse(matrix: NDArray[np.floating]) -> bool:
    """Whether a kernel was pruned weight by weight, so that its zeros are worth keeping.

    Patterns of two in four and sparser count; a kernel with fewer zeros runs as a dense one anyway.
    """
    return float(np.mean(matrix == 0)) >= _SPARSE


def is_identity(matrices: Array) -> bool:
    """Whether each of some matrices is the identity."""
    _, n, m = matrices.shape
    return n == m and bool((matrices == np.eye(n)).all())


def span(block_map: Array) -> tuple[Array, Array]:
    """Factorize a block's map into an orthonormal basis of its outputs and coordinates in it.

    Args:
        block_map: (groups, n, m).

    Returns:
        V and T with W = V T: the identity and W itself where n <= m, else (groups, n, m) and
        (groups, m, m).
    """
    groups, n, m = block_map.shape
    if n <= m:
        return np.broadcast_to(np.eye(n), (groups, n, n)), block_map
    basis, coordinates = np.linalg.qr(block_map)
    return basis, coordinates


@dataclass(frozen=True)
class Family:
    """A family of adapters, as regressors z and a prior: the block as it is gives prior z + bias.

    Attributes:
        name: "pointwise" or "kernel".
        prior: (groups, n, r) what the ridge pulls towards.
        bias: (groups, n) of the block as it is.
        reading: (groups, r, m), z is ``reading`` times the captured regressors; None: z is these.
        basis: (groups, full, r) orthonormal V of the module's docstring; None: z is everything.
        support: (groups, n, r) where a sparse kernel has weights, which is where it may have them;
            None: everywhere.
    """

    name: str
    prior: Array
    bias: Array
    reading: Array | None = None
    basis: Array | None = None
    support: Mask | None = None

    @staticmethod
    def kernel(
        block_map: Array, bias: Array, basis: Array | None = None, sparse: bool = False
    ) -> Family:
        """Return the family of new kernels.

        Args:
            block_map: (groups, n, r) the block as a map of the captured regressors.
            bias: (groups, n) of the block.
            basis: (groups, p, r) of the captured regressors, where they are not the patches.
            sparse: whether to keep the zeros of the map, whose regressors then are patches.
        """
        support = block_map != 0 if sparse else None
        return Family("kernel", block_map, bias, basis=basis, support=support)

    @staticmethod
    def pointwise(block_map: Array, bias: Array, orthonormal: bool = False) -> Family:
        """Return the family of 1x1 adapters behind the block.

        Args:
            block_map: (groups, n, r) the block as a map of the captured regressors.
            bias: (groups, n) of the block.
            orthonormal: whether the columns of the map are; no other regressors are needed then.
        """
        basis, reading = (block_map, None) if orthonormal else span(block_map)
        whole = is_identity(basis)
        return Family("pointwise", basis, bias, reading, None if whole else basis)

    @property
    def unchanged(self) -> AffineMap:
        """The map of the family's regressors that leaves the block as it is."""
        return AffineMap(self.prior, self.bias)

    def fused(self, adapter: AffineMap, matrix: Array) -> AffineMap:
        """Return a block with an adapter in it, W' and b', as a map of its patches.

        The change of a 1x1 adapter is (B - A) V' W; Q itself, of n x n numbers, is not needed.

        Args:
            adapter: map of the family's regressors.
            matrix: the block's W, as a map of its patches, (groups, n, p).
        """
        change = adapter.matrix - self.prior
        turned = None if self.basis is None else np.swapaxes(self.basis, 1, 2)
        if self.name == "pointwise":
            change = change @ (matrix if turned is None else turned @ matrix)
        elif turned is not None:
            change = change @ turned
        return AffineMap(matrix + change, adapter.shift)

    def problem(self, moments: Moments, rows: Indices | None = None) -> Ridge:
        """Set up the family's problem for moments of its regressors, and some of its targets."""
        some = slice(None) if rows is None else rows
        support = None if self.support is None else self.support[:, some]
        return Ridge(moments, self.prior[:, some], support)

    def regress(self, moments: Moments, known: Moments | None = None) -> Moments:
        """Return moments of the family's regressors, from those of the captured ones.

        Args:
            moments: of the captured regressors.
            known: moments of the family's, of the same columns with other targets.
        """
        return moments if self.reading is None else moments.of_regressors(self.reading, known)

    def lift(self, adapter: AffineMap) -> AffineMap:
        """Express a fitted adapter as a map of the captured regressors."""
        if self.reading is None:
            return adapter
        return AffineMap(adapter.matrix @ self.reading, adapter.shift)


@dataclass(frozen=True)
class Solution:
    """What cross-validation says of a family.

    Attributes:
        family: of adapters.
        moments: of its regressors, over all folds.
        ridge: the chosen strength, relative to the mean diagonal of Gxx.
        error_before: ||student - teacher||^2 of the block as it is.
        error_after: the same of adapters fitted without the fold that they are tested on.
        energy: ||teacher - mean||^2 over the same folds.
    """

    family: Family
    moments: Moments
    ridge: float
    error_before: float
    error_after: float
    energy: float


def tested_targets(targets: int) -> Indices:
    """Return the targets, of so many, that stand for all where a choice is made."""
    return np.arange(0, targets, -(-targets // _TESTED_TARGETS))


def cross_validate(folds: Sequence[Moments], family: Family, rows: Indices) -> Solution:
    """Choose the ridge of a family by the error on held-out folds.

    The error has one minimum along the ridge in all that was measured, so the search starts in the
    middle and walks downhill.

    Args:
        folds: moments of the captured regressors, at least two folds that share no sample.
        family: of adapters.
        rows: which of the family's targets those of the moments are.
    """
    some = tested_targets(len(rows))
    parts = [family.regress(fold.of_targets(some)) for fold in folds]
    rows = rows[some]
    everything = sum_moments(parts)
    tested = parts[: None if family.prior.shape[2] <= _CHEAP else _FOLDS_IF_COSTLY]
    others = [everything - part for part in tested]
    problems = [family.problem(rest, rows) for rest in others]

    def held_out(ridge: float) -> float:
        return sum(
            part.error(problem.solver(ridge)(rest))
            for part, rest, problem in zip(tested, others, problems, strict=True)
        )

    best, error = _walk_downhill(held_out)
    return Solution(
        family=family,
        moments=everything,
        ridge=best,
        error_before=sum(part.error(family.unchanged.of_targets(rows)) for part in tested),
        error_after=error,
        energy=sum(part.target_energy for part in tested),
    )


class Ridge:
    """The problem of the module's docstring, with what it has in common for all strengths."""

    def __init__(self, moments: Moments, prior: Array, support: Mask | None = None) -> None:
        """Set up.

        Args:
            moments: whose regressors to use.
            prior: (groups, n, m), what the ridge pulls towards.
            support: (groups, n, m), where the solution may differ from the prior; None: everywhere.
                Rows of the same support share a factor.
        """
        self._prior, self._support = prior, support
        self._gram = moments.centered_gram
        self._pull = self._gram if is_identity(prior) else prior @ self._gram

    def solver(self, ridge: float) -> Callable[[Moments], AffineMap]:
        """Factorize; return what solves for the targets of moments over the same columns.

        Args:
            ridge: strength relative to the mean diagonal of the Gram matrix.
        """
        groups, m, _ = self._gram.shape
        mean_diagonal = float(np.einsum("gii->", self._gram)) / (groups * m)
        # Without any variance there is nothing to fit but the shift, and any strength gives that.
        strength = ridge * mean_diagonal if mean_diagonal > 0 else 1.0
        together = None
        if self._support is None and groups > 1 and m <= _CHEAP:
            # Depthwise blocks have as many systems as channels, each of a few unknowns.
            together = backend().cholesky_all(self._gram + strength * np.eye(m))
        factors = [
            (group, block, _factorize(part[_square(block[1])], strength))
            for group, part in enumerate(self._gram if together is None else ())
            for block in _supports(None if self._support is None else self._support[group])
        ]

        def solve(moments: Moments) -> AffineMap:
            right = moments.centered_cross - self._pull
            step = np.zeros_like(right) if together is None else together(right)
            for group, block, solve_one in factors:
                step[group][block] = solve_one(right[group][block])
            matrix = self._prior + step
            shift = moments.mean_y - np.einsum("gij,gj->gi", matrix, moments.mean_x)
            return AffineMap(matrix, shift)

        return solve


_Index = Any  # slices, or arrays of indices; NumPy's own type for them is private


def _supports(support: Mask | None) -> Iterator[tuple[_Index, _Index]]:
    """Yield an index of the rows that share a support and its columns; rows without any are out."""
    if support is None:
        yield slice(None), slice(None)
        return
    patterns, members = np.unique(support, axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        if pattern.any():
            yield np.ix_(members.reshape(-1) == index, pattern)


def _square(columns: _Index) -> tuple[_Index, _Index]:
    """Return an index of the rows and columns of a matrix that some columns name."""
    if isinstance(columns, slice):
        return columns, columns
    flat = columns.reshape(-1)
    return np.ix_(flat, flat)


def _walk_downhill(error: Callable[[float], float]) -> tuple[float, float]:
    """Return the ridge of least error, and that; among equals the strongest, departing least."""
    known = functools.cache(error)
    at = len(RIDGES) // 2
    while True:
        near = [i for i in (at + 1, at, at - 1) if 0 <= i < len(RIDGES)]
        best = min(near, key=lambda i: known(RIDGES[i]))
        if best == at:
            return RIDGES[at], known(RIDGES[at])
        at = best


def _factorize(gram: Array, strength: float) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram + strength I)."""
    regular = gram.copy()
    regular.flat[:: len(regular) + 1] += strength
    solve = backend().cholesky(regular)
    if solve is not None:
        return solve
    logger.info("a system of %d unknowns has no Cholesky factor: solved by SVD", len(regular))
    inverse = backend().pseudo_inverse(regular)
    return lambda right: right @ inverse
