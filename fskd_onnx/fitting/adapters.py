"""Families of adapters: what a block may become, as ridge regression towards the block as it is.

Families are one problem (``linalg.ridge``) on different regressors x and with different priors A::

    pointwise   x = block output W p + b   A = I   fused: W' = B W, b' = B b + c
    kernel      x = input patch p          A = W   fused: W' = B,   b' = c

The pointwise family is the paper's (Li et al. 2020, equation 4), with a shift and a ridge. The
kernel family contains it, and also makes up for *inputs* that the block has lost. The ridge pulls
towards the student as it is, not towards zero: ten samples, or a singular Gxx, leave the directions
that they say nothing about as they are.

Regressors that lie in a subspace are expressed in an orthonormal basis V of it, x = V z. The change
then is B - A = D V' with D the change of the map of z, and ||D|| = ||B - A||: the same problem,
smaller. A block with more outputs than inputs per patch has such outputs, W = V T, and few columns
span such patches.

A kernel that is mostly zeros is solved on its support, row by row, and keeps its zeros.

A decomposed block is several nodes that are one linear map of its patches p. Its last factors are
fitted as a kernel is, on what they see of the patches, z = T p; all factors together are no ridge
regression but a problem of their own on the same moments (``linalg.factorization``)::

    kernel      x = T p   A = the last factors   fused: the last factors = B
    factors     x = p     pulled to the teacher's kernel, or to the composed one

To add a family: a subclass of ``Family`` with its class attributes, ``of`` and ``weight_change``,
its name in ``AdapterName``, and a line in ``FAMILIES``. What it fuses to has to be weights of the
block's shape. A family that only shifts would be::

    class Shift(Family):
        name = "shift"
        needs_patches = keeps_zeros = can_change_targets = False

        @classmethod
        def of(cls, block: BlockRegressors) -> Shift:
            # No weight may change; the shift of a ridge regression is free.
            return cls(block.block_map, block.bias, support=np.zeros(block.block_map.shape, bool))

        def weight_change(self, change: Array, matrix: Array) -> Array:
            return np.zeros_like(matrix)

    FAMILIES = {..., AdapterName.SHIFT: (Shift,)}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.family import BlockRegressors, Family, Indices, tested_targets
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factor_fit import fit_factors
from fskd_onnx.linalg.factor_step import Target
from fskd_onnx.linalg.factorization import Factorization
from fskd_onnx.linalg.moments import GramMoments, Moments, sum_moments
from fskd_onnx.linalg.ridge import (
    CrossValidation,
    RidgeChoice,
    cross_validate,
    is_identity,
    regular_solver,
    relative_strength,
    span,
)
from fskd_onnx.options import AdapterName
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear

_SPARSE = 0.5


class Pointwise(Family):
    """1x1 adapters behind the block."""

    name = AdapterName.POINTWISE.value
    needs_patches = False
    keeps_zeros = False
    can_change_targets = False

    @classmethod
    def of(cls, block: BlockRegressors) -> Pointwise:
        """Return the adapters of a block."""
        basis, regressor_map = (
            (block.block_map, None) if block.of_outputs else span(block.block_map)
        )
        whole = is_identity(basis)
        return cls(basis, block.bias, regressor_map, None if whole else basis)

    def weight_change(self, change: Array, matrix: Array) -> Array:
        """Return (B - A) V' W; the n x n numbers of Q are not needed."""
        if self.basis is not None:
            matrix = np.swapaxes(self.basis, 1, 2) @ matrix
        return change @ matrix


class Kernel(Family):
    """New kernels for the block."""

    name = AdapterName.KERNEL.value
    needs_patches = True
    keeps_zeros = True
    can_change_targets = True

    @classmethod
    def of(cls, block: BlockRegressors) -> Kernel:
        """Return the adapters of a block."""
        if block.factors is not None:
            factors, mask = block.factors, block.factors.last_mask
            basis = np.eye(factors.kernel.shape[1]) if block.basis is None else block.basis[0]
            return cls(
                prior=factors.last_matrix[np.newaxis],
                bias=block.bias,
                regressor_map=factors.last_patches.of(basis)[np.newaxis],
                support=None if mask is None else mask[np.newaxis],
            )
        support = block.block_map != 0 if block.keep_zeros else None
        return cls(block.block_map, block.bias, basis=block.basis, support=support)

    def weight_change(self, change: Array, matrix: Array) -> Array:
        """Return (B - A) V', for new kernels are the map of the patches itself."""
        return change if self.basis is None else change @ np.swapaxes(self.basis, 1, 2)


@dataclass(frozen=True)
class FactoredMap(AffineMap):
    """The map of a decomposed block, with the factors that it is composed of."""

    factors: Factorization


@dataclass(frozen=True)
class Factors(Family):
    """New factors for a decomposed block, all of them.

    Attributes:
        factors: of the block as it is, or to start from.
        towards: (1, n, p) what the ridge pulls the composed kernel to.
        is_warm: whether the factors were fitted to nearly the same moments.
    """

    factors: Factorization | None = None
    towards: Array | None = None
    is_warm: bool = False

    name = AdapterName.FACTORS.value
    needs_patches = True
    keeps_zeros = False
    can_change_targets = True
    most_repeats = 3  # further ones lower the error of the block, not that of the network

    @classmethod
    def of(cls, block: BlockRegressors) -> Factors:
        """Return the adapters of a decomposed block."""
        assert block.factors is not None  # `families_for` has looked
        kernel = block.factors.kernel[np.newaxis]
        return cls(
            prior=kernel,
            bias=block.bias,
            regressor_map=block.basis,
            factors=block.factors,
            towards=kernel if block.prior is None else block.prior,
        )

    def solver(
        self, moments: GramMoments, ridge: float, rows: Indices | None = None
    ) -> Callable[[Moments], AffineMap]:
        """Return what solves for targets, all of them, one set of targets after another."""
        assert self.factors is not None
        assert self.towards is not None
        towards, found = self.towards[0], self.factors
        gram = moments.centered_gram
        strength = relative_strength(gram, ridge)
        regular, warm = gram[0] + strength * np.eye(len(gram[0])), self.is_warm
        # Of no use to most forms, and as dear as a part of their sweep.
        inverse = cache(lambda: regular_solver(gram[0], strength))

        def solve(moments: Moments) -> FactoredMap:
            nonlocal found, warm
            cross = moments.centered_cross[0] + strength * towards
            energy = moments.target_energy + strength * float(np.sum(towards**2))
            target = Target(regular, cross, energy)
            found = fit_factors(found, target, lambda right: inverse()(right), warm=warm)
            warm = True
            kernel = found.kernel[np.newaxis]
            shift = moments.mean_y - np.einsum("gij,gj->gi", kernel, moments.of_x.mean_x)
            return FactoredMap(kernel, shift, found)

        return solve

    def choose_ridge(
        self, folds: Sequence[Moments], rows: Indices, tested: int | None
    ) -> RidgeChoice:
        """Choose the ridge as for any kernel."""
        some = tested_targets(len(rows))
        return self._choose([self.moments(fold.of_targets(some)) for fold in folds], some, tested)

    def _choose(self, parts: Sequence[Moments], rows: Indices, tested: int | None) -> RidgeChoice:
        """Choose the ridge by moments of the family's regressors, and of some targets."""
        prior = AffineMap(self.prior if self.towards is None else self.towards, self.bias)
        return cross_validate(parts, prior.of_targets(rows), tested).choice

    def cross_validate(
        self, folds: Sequence[Moments], rows: Indices, tested: int | None
    ) -> CrossValidation:
        """Choose the ridge, and fit factors with it without each of the tested folds.

        All targets have a say in the factors. The errors are of those that all families are
        compared by.
        """
        some = tested_targets(len(rows))
        parts = [self.moments(fold) for fold in folds]
        choice = self._choose([part.of_targets(some) for part in parts], some, tested)
        everything = sum_moments(parts)
        fits = []
        for part in parts[:tested]:
            rest = everything - part
            fits.append(self.solver(rest.of_x, choice.ridge)(rest))
        held_out = [part.of_targets(some) for part in parts[:tested]]
        unchanged = self.unchanged.of_targets(some)
        return CrossValidation(
            folds=parts,
            choice=choice,
            error_before=sum(part.error(unchanged) for part in held_out),
            error_after=sum(
                part.error(fitted.of_targets(some))
                for part, fitted in zip(held_out, fits, strict=True)
            ),
            energy=sum(part.target_energy for part in held_out),
            without_first=fits[0],
        )

    def from_adapter(self, adapter: AffineMap) -> Factors:
        """Let fits start from the factors of an adapter."""
        assert isinstance(adapter, FactoredMap)
        return replace(self, factors=adapter.factors, is_warm=True)

    def fused_factors(self, adapter: AffineMap, factors: Factorization) -> Factorization:
        """Return the new factors."""
        assert isinstance(adapter, FactoredMap)
        return adapter.factors

    def weight_change(self, change: Array, matrix: Array) -> Array:
        """Return what the composed kernel changes by."""
        return change


Families = tuple[type[Family], ...]

FAMILIES: Mapping[AdapterName, Families] = {
    AdapterName.POINTWISE: (Pointwise,),
    AdapterName.KERNEL: (Kernel,),
    AdapterName.FACTORS: (Factors,),
    AdapterName.AUTO: (Pointwise, Kernel, Factors),
}
"""The families that each option tries, the better one by held-out error being taken."""


def families_of(adapter: str) -> Families:
    """Return the families of an ``AdapterName``."""
    return FAMILIES[AdapterName(adapter)]


def need_patches(families: Families) -> bool:
    """Whether any of some families is a regression on patches."""
    return any(family.needs_patches for family in families)


def fit_factors_too(families: Families) -> bool:
    """Whether any of some families fits all nodes of a decomposed block, not the last one alone."""
    return Factors in families


def families_for(
    linear: Linear, families: Families, factors: Factorization | None = None
) -> tuple[Families, bool]:
    """Return which families to try on a block, and whether they keep zeros of its kernel.

    Args:
        linear: the block.
        families: what may be tried.
        factors: of a decomposed block.

    Raises:
        MatchError: the kernel is sparse, and all families would fill its zeros.
    """
    if factors is not None:
        # A 1x1 adapter behind a grouped factor would connect its groups.
        some = tuple(f for f in families if factors.last_mask is None or f is not Pointwise)
        if not some:
            raise MatchError("an adapter would connect the groups of its last node")
        return some, False
    # A block of one node is its own only factor.
    families = tuple(dict.fromkeys(Kernel if f is Factors else f for f in families))
    if not is_sparse(linear.native):
        return families, False
    keeping = tuple(family for family in families if family.keeps_zeros)
    if keeping:
        return keeping, True
    if linear.width == linear.groups:  # an adapter of a single channel only scales
        return families, False
    zeros = np.mean(linear.native == 0)
    raise MatchError(
        f"its kernel is {zeros:.0%} zeros, which a {families[0].name} adapter would fill; "
        f"a {Kernel.name} adapter keeps them"
    )


def is_sparse(matrix: NDArray[np.floating]) -> bool:
    """Whether a kernel was pruned weight by weight, so that its zeros are worth keeping.

    Patterns of two in four and sparser count; a kernel with fewer zeros runs as a dense one anyway.
    """
    return float(np.mean(matrix == 0)) >= _SPARSE
