"""Moments -> adapter: ridge regression towards the student as it is, chosen by cross-validation.

Both families of adapters are one problem, on different regressors x and with different priors A::

    min over B, c of  ||B X + c - Y||^2 + ridge ||B - A||^2
    B = A + (Cyx - A Gxx) (Gxx + ridge I)^-1,    c = mean(Y) - B mean(X)      (centred moments)

    pointwise   x = block output W p + b   A = I   fused: W' = B W, b' = B b + c
    kernel      x = input patch p          A = W   fused: W' = B,   b' = c

The pointwise family is the paper's (Li et al. 2020, equation 4), with a shift and a ridge.

The kernel family contains the pointwise one, and also makes up for *inputs* that the block has
lost.

A kernel that is mostly zeros is solved on its support, row by row, and keeps its zeros.

The ridge pulls towards the student as it is, not towards zero: ten samples, or a singular Gxx,
leave the directions they say nothing about alone. The shift is never pulled. Strengths are relative
to the mean diagonal of Gxx, so that one grid serves all blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.errors import FskdError
from fskd_onnx.moments import Affine, Array, Moments, total

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

RIDGES: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-6, 2))

# A system of this many unknowns is factorized in milliseconds. Costlier ones are tested on fewer
# folds: the held-out error of two folds already orders the ridges.
_CHEAP = 640
_SPARSE = 0.5
_FOLDS_IF_COSTLY = 2
# All targets of a block share regressors and ridge, so that this many tell which ridge is best.
_TESTED_TARGETS = 256


def is_sparse(matrix: Array) -> bool:
    """Whether a kernel was pruned weight by weight, so that its zeros are worth keeping.

    Patterns of two in four and sparser count; a kernel with fewer zeros runs as a dense one anyway.
    """
    return float(np.mean(matrix == 0)) >= _SPARSE


@dataclass(frozen=True)
class Family:
    """A family of adapters, as regressors and a prior.

    Attributes:
        name: "pointwise" or "kernel".
        block: the block as it is, as a map of the captured regressors.
        on_outputs: whether the family acts on the block's outputs while patches are captured.
    """

    name: str
    block: Affine
    on_outputs: bool

    @property
    def unchanged(self) -> Affine:
        """The map of the family's regressors that leaves the block as it is."""
        if not self.on_outputs:
            return self.block
        return Affine(self.prior, np.zeros_like(self.block.shift))

    @property
    def prior(self) -> Array:
        """What the ridge pulls towards."""
        if self.on_outputs:
            groups, n, _ = self.block.matrix.shape
            return np.broadcast_to(np.eye(n), (groups, n, n))
        return self.block.matrix

    @property
    def support(self) -> Mask | None:
        """Where a sparse kernel has weights, which is where it may have them; None if dense."""
        # The identity that a pointwise adapter starts from is no pruned kernel.
        if self.name != "kernel" or not is_sparse(self.block.matrix):
            return None
        support: Mask = self.block.matrix != 0
        return support

    def ridge(self, moments: Moments, ridge: float, rows: Indices | None = None) -> Ridge:
        """Set up the family's problem for moments of its regressors, and some of its targets."""
        some = slice(None) if rows is None else rows
        support = None if self.support is None else self.support[:, some]
        return Ridge(moments, self.prior[:, some], ridge, support)

    def regress(self, moments: Moments) -> Moments:
        """Return moments of the family's regressors, from those of the captured ones."""
        return moments.of_outputs(self.block) if self.on_outputs else moments

    def lift(self, adapter: Affine) -> Affine:
        """Express a fitted adapter as a map of the captured regressors."""
        if not self.on_outputs:
            return adapter
        shift = np.einsum("gij,gj->gi", adapter.matrix, self.block.shift) + adapter.shift
        return Affine(adapter.matrix @ self.block.matrix, shift)


@dataclass(frozen=True)
class Solution:
    """An adapter and what cross-validation says of it.

    Attributes:
        family: that it belongs to.
        adapter: map of the family's regressors, fitted on all folds.
        ridge: the chosen strength, relative to the mean diagonal of Gxx.
        error_before: ||student - teacher||^2 of the block as it is.
        error_after: the same of adapters fitted without the fold that they are tested on.
        energy: ||teacher - mean||^2 over the same folds.
    """

    family: Family
    adapter: Affine
    ridge: float
    error_before: float
    error_after: float
    energy: float


def cross_validate(folds: Sequence[Moments], family: Family) -> Solution:
    """Fit an adapter; choose its ridge by the error on held-out folds.

    The error has one minimum along the ridge in all that was measured, so the search starts in the
    middle and walks downhill.

    Args:
        folds: moments of the captured regressors, at least two folds that share no sample.
        family: of adapters.
    """
    parts = [family.regress(fold) for fold in folds]
    everything = total(parts)
    _, n, m = family.prior.shape
    rows = np.arange(0, n, -(-n // _TESTED_TARGETS))
    tested = [part.of_targets(rows) for part in parts[: None if m <= _CHEAP else _FOLDS_IF_COSTLY]]
    others = [everything.of_targets(rows) - part for part in tested]
    errors: dict[float, float] = {}

    def held_out(ridge: float) -> float:
        if ridge not in errors:
            errors[ridge] = sum(
                part.error(family.ridge(rest, ridge, rows).fit(rest))
                for part, rest in zip(tested, others, strict=True)
            )
        return errors[ridge]

    best = _walk_downhill(held_out)
    return Solution(
        family=family,
        adapter=family.ridge(everything, best).fit(everything),
        ridge=best,
        error_before=sum(part.error(family.unchanged.of_targets(rows)) for part in tested),
        error_after=errors[best],
        energy=sum(part.target_energy for part in tested),
    )


class Ridge:
    """The problem of the module's docstring with its regressors and strength, factorized once."""

    def __init__(
        self, moments: Moments, prior: Array, ridge: float, support: Mask | None = None
    ) -> None:
        """Factorize.

        Args:
            moments: whose regressors to use.
            prior: (groups, n, m), what the ridge pulls towards.
            ridge: strength relative to the mean diagonal of the Gram matrix.
            support: (groups, n, m), where the solution may differ from the prior; None: everywhere.
                Rows of the same support share a factor.
        """
        self._prior = prior
        gram = moments.centered_gram
        groups, m, _ = gram.shape
        mean_diagonal = float(np.einsum("gii->", gram)) / (groups * m)
        identity = prior.shape == gram.shape and bool((prior == np.eye(m)).all())
        self._pull = gram if identity else prior @ gram
        # Without any variance there is nothing to fit but the shift, and any strength gives that.
        strength = ridge * mean_diagonal if mean_diagonal > 0 else 1.0
        self._factors = [
            (group, rows, columns, _factorize(part[columns[:, np.newaxis], columns], strength))
            for group, part in enumerate(gram)
            for rows, columns in _supports(
                prior[group], None if support is None else support[group]
            )
        ]

    def fit(self, moments: Moments) -> Affine:
        """Solve for the targets of some moments, over the same columns as the regressors."""
        right = moments.centered_cross - self._pull
        step = np.zeros_like(right)
        for group, rows, columns, solve in self._factors:
            block = rows[:, np.newaxis], columns
            step[group][block] = solve(right[group][block])
        matrix = self._prior + step
        shift = moments.mean_y - np.einsum("gij,gj->gi", matrix, moments.mean_x)
        return Affine(matrix, shift)


def _supports(prior: Array, support: Mask | None) -> Iterator[tuple[Indices, Indices]]:
    """Yield the rows that share a support, and its columns; rows without any are left out."""
    n, m = prior.shape
    if support is None:
        yield np.arange(n), np.arange(m)
        return
    patterns, members = np.unique(support, axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        if pattern.any():
            yield np.flatnonzero(members.reshape(-1) == index), np.flatnonzero(pattern)


def _walk_downhill(error: Callable[[float], float]) -> float:
    """Return the ridge of least error; among equals the strongest, which departs least."""
    at = len(RIDGES) // 2
    while True:
        near = [i for i in (at + 1, at, at - 1) if 0 <= i < len(RIDGES)]
        best = min(near, key=lambda i: error(RIDGES[i]))
        if best == at:
            return RIDGES[at]
        at = best


def _factorize(gram: Array, strength: float) -> Callable[[Array], Array]:
    """Return the map R -> R inverse(gram + strength I)."""
    backend = _BACKEND.get()
    regular = gram.copy()
    regular.flat[:: len(regular) + 1] += strength
    solve = backend.cholesky(regular)
    if solve is not None:
        return solve
    logger.info("a system of %d unknowns has no Cholesky factor: solved by SVD", len(regular))
    inverse = backend.pseudo_inverse(regular)
    return lambda right: right @ inverse


class Backend(Protocol):
    """The linear algebra that costs time; everything around it is NumPy."""

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        """Factorize a symmetric matrix; return R -> R inverse(matrix), None if it cannot be."""

    def pseudo_inverse(self, matrix: Array) -> Array:
        """Invert a symmetric matrix where it can be inverted."""


class _NumpyBackend:
    """NumPy and SciPy, on the CPU."""

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        try:
            factor = scipy.linalg.cho_factor(matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        return lambda right: scipy.linalg.cho_solve(factor, right.T, check_finite=False).T

    def pseudo_inverse(self, matrix: Array) -> Array:
        inverse: Array = np.linalg.pinv(matrix, hermitian=True).astype(np.float64, copy=False)
        return inverse


class _TorchBackend:
    """PyTorch, on the GPU if it sees one."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise FskdError(
                "--solver torch needs PyTorch, which is not installed; run "
                "'pip install fskd-onnx[torch]' or choose --solver numpy"
            ) from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("solving with PyTorch on %s", self._device)

    def cholesky(self, matrix: Array) -> Callable[[Array], Array] | None:
        torch = self._torch
        factor, failed = torch.linalg.cholesky_ex(torch.as_tensor(matrix, device=self._device))
        if int(failed):
            return None

        def solve(right: Array) -> Array:
            columns = torch.as_tensor(np.ascontiguousarray(right.T), device=self._device)
            solution: Array = torch.cholesky_solve(columns, factor).T.cpu().numpy()
            return solution

        return solve

    def pseudo_inverse(self, matrix: Array) -> Array:
        torch = self._torch
        there = torch.as_tensor(matrix, device=self._device)
        inverse: Array = torch.linalg.pinv(there, hermitian=True).cpu().numpy()
        return inverse


_BACKENDS: dict[str, Callable[[], Backend]] = {"numpy": _NumpyBackend, "torch": _TorchBackend}
_NUMPY = _NumpyBackend()
_BACKEND: ContextVar[Backend] = ContextVar("backend", default=_NUMPY)


@contextmanager
def solved_by(name: str) -> Iterator[None]:
    """Solve all systems of a ``with`` block by a backend, "numpy" or "torch".

    Raises:
        FskdError: it is not installed.
    """
    token = _BACKEND.set(_BACKENDS[name]())
    try:
        yield
    finally:
        _BACKEND.reset(token)
