"""What a family of adapters is: a ridge regression on regressors of a block.

``fitting.adapters`` has the families, and says how to add one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factorization import Factorization
from fskd_onnx.linalg.moments import CrossMoments, GramMoments, Moments
from fskd_onnx.linalg.ridge import CrossValidation, Mask, Ridge, RidgeChoice, cross_validate
from fskd_onnx.passes.analysis.affine import AffineMap

Indices = NDArray[np.intp]

# All targets of a block share regressors and ridge, so that this many tell which ridge is best.
_TESTED_TARGETS = 64


@dataclass(frozen=True)
class BlockRegressors:
    """A block as a linear map of the regressors that are gathered for it.

    Attributes:
        block_map: (groups, n, r) the block's output is ``block_map`` times the regressors + bias.
        bias: (groups, n).
        basis: (groups, p, r) orthonormal: the patches are ``basis`` times the regressors. None
            where the regressors are the patches, or coordinates of the block's outputs.
        of_outputs: whether the regressors are coordinates of the outputs; the columns of
            ``block_map`` then are orthonormal.
        keep_zeros: whether zeros of ``block_map`` have to stay; the regressors then are patches.
        factors: of a decomposed block; the regressors then are patches, too.
        prior: (groups, n, p) what new factors are pulled to; None: to the block as it is.
    """

    block_map: Array
    bias: Array
    basis: Array | None = None
    of_outputs: bool = False
    keep_zeros: bool = False
    factors: Factorization | None = None
    prior: Array | None = None

    def express(self, block: AffineMap) -> AffineMap | None:
        """Return a map of patches as one of the regressors; None where these do not tell."""
        if self.of_outputs:
            return None
        return block if self.basis is None else AffineMap(block.matrix @ self.basis, block.shift)


@dataclass(frozen=True)
class Family(ABC):
    """Adapters of one family for one block: maps of its regressors z, and a prior.

    Attributes:
        prior: (groups, n, r) what the ridge pulls towards: the block as it is, prior z + bias.
        bias: (groups, n) of the block as it is.
        regressor_map: (groups, r, m), z is this times the gathered regressors; None: z is these.
        basis: (groups, full, r) orthonormal V of the module's docstring; None: z is everything.
        support: (groups, n, r) where a sparse kernel has weights, which is where it may have them;
            None: everywhere.
        name: as in options and reports.
        needs_patches: whether its regressors are patches; coordinates of the block's outputs are
            fewer, and enough for others.
        keeps_zeros: whether it can leave the zeros of a sparse kernel alone.
        can_change_targets: whether it can make up for channels that the block's own weights do not
            read, so that the block may aim at other channels than those that it was pruned to.
        most_repeats: how often a fit is repeated with targets that allow for the activation behind.
    """

    prior: Array
    bias: Array
    regressor_map: Array | None = None
    basis: Array | None = None
    support: Mask | None = None

    name: ClassVar[str]
    needs_patches: ClassVar[bool]
    keeps_zeros: ClassVar[bool]
    can_change_targets: ClassVar[bool]
    most_repeats: ClassVar[int] = 5

    @classmethod
    @abstractmethod
    def of(cls, block: BlockRegressors) -> Family:
        """Return the adapters of a block."""

    @property
    def unchanged(self) -> AffineMap:
        """The map of the family's regressors that leaves the block as it is."""
        return AffineMap(self.prior, self.bias)

    def fused(self, adapter: AffineMap, matrix: Array) -> AffineMap:
        """Return a block with an adapter in it, W' and b', as a map of its patches.

        Args:
            adapter: map of the family's regressors.
            matrix: the block's W, as a map of its patches, (groups, n, p).
        """
        change = self.weight_change(adapter.matrix - self.prior, matrix)
        return AffineMap(matrix + change, adapter.shift)

    def fused_factors(self, adapter: AffineMap, factors: Factorization) -> Factorization:
        """Return the factors of a decomposed block with an adapter in it.

        Args:
            adapter: map of the family's regressors.
            factors: of the block as it is.
        """
        last = factors.last_matrix[np.newaxis]
        change = self.weight_change(adapter.matrix - self.prior, last)
        return factors.with_last((last + change)[0])

    @abstractmethod
    def weight_change(self, change: Array, matrix: Array) -> Array:
        """Return what a block's weights change by, (groups, n, p), where its adapter changes.

        Args:
            change: (groups, n, r) B - A of the module's docstring, D in a basis.
            matrix: (groups, n, p) the block's W.
        """

    def solver(
        self, moments: GramMoments, ridge: float, rows: Indices | None = None
    ) -> Callable[[Moments], AffineMap]:
        """Return what solves for targets of moments over the same columns.

        Args:
            moments: of the family's regressors.
            ridge: strength, relative to the mean diagonal of the Gram matrix.
            rows: which of the family's targets those will be; None: all.
        """
        some = slice(None) if rows is None else rows
        support = None if self.support is None else self.support[:, some]
        return Ridge(moments, self.prior[:, some], support).solver(ridge)

    def cross_validate(
        self, folds: Sequence[Moments], rows: Indices, tested: int | None
    ) -> CrossValidation:
        """Choose the ridge by the error on held-out folds.

        Args:
            folds: moments of the gathered regressors, at least two folds that share no sample.
            rows: which of the family's targets those of the moments are.
            tested: on how many folds at most; None: on all.
        """
        some = tested_targets(len(rows))
        parts = [self.moments(fold.of_targets(some)) for fold in folds]
        rows = rows[some]
        support = None if self.support is None else self.support[:, rows]
        return cross_validate(parts, self.unchanged.of_targets(rows), tested, support)

    def choose_ridge(
        self, folds: Sequence[Moments], rows: Indices, tested: int | None
    ) -> RidgeChoice:
        """Return the ridge that ``cross_validate`` chooses."""
        return self.cross_validate(folds, rows, tested).choice

    def from_adapter(self, adapter: AffineMap) -> Family:
        """Return the family, such that what it solves for by steps starts from an adapter."""
        return self

    def moments(self, gathered: Moments) -> Moments:
        """Return moments of the family's regressors, from those of the gathered ones."""
        return gathered if self.regressor_map is None else gathered.mapped(self.regressor_map)

    def cross_moments(self, gathered: CrossMoments) -> CrossMoments:
        """Return the cross part of moments of the family's regressors."""
        return gathered if self.regressor_map is None else gathered.mapped(self.regressor_map)

    def as_block_map(self, adapter: AffineMap) -> AffineMap:
        """Express the block with an adapter as a map of the gathered regressors."""
        if self.regressor_map is None:
            return adapter
        return AffineMap(adapter.matrix @ self.regressor_map, adapter.shift)


def tested_targets(targets: int) -> Indices:
    """Return the targets, of so many, that stand for all where a choice is made."""
    return np.arange(0, targets, -(-targets // _TESTED_TARGETS))
