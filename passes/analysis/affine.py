"""Affine maps of channels, group by group: ``y[g] = A[g] x[g] + c[g]``.

One type serves all that is affine in a fit: the weights of a linear node (x: its input patch), an
adapter (x: the block output), a ridge solution (x: the regressors), a BatchNormalization (one
group per channel). Maps compose::

    (A, c) after (B, d):    A (B x + d) + c  =  (A B) x + (A d + c)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class AffineMap:
    """The map ``matrix x + shift`` of each group.

    Attributes:
        matrix: (groups, n, m), from m inputs to n outputs of each group.
        shift: (groups, n).

    Raises:
        ValueError: the shapes do not agree.
    """

    matrix: NDArray[np.float64]
    shift: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.matrix.ndim != 3 or self.shift.shape != self.matrix.shape[:2]:
            msg = f"a matrix of {self.matrix.shape} takes no shift of {self.shift.shape}"
            raise ValueError(msg)

    @staticmethod
    def identity(groups: int, n: int) -> AffineMap:
        """Return the map that changes none of the ``n`` channels of each group."""
        return AffineMap(np.tile(np.eye(n), (groups, 1, 1)), np.zeros((groups, n)))

    @staticmethod
    def per_channel(scale: NDArray[np.float64], shift: NDArray[np.float64]) -> AffineMap:
        """Return the map that scales and shifts each channel by itself, as a group of its own.

        Args:
            scale: (channels,).
            shift: (channels,).
        """
        return AffineMap(scale[:, np.newaxis, np.newaxis], shift[:, np.newaxis])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(groups, n, m)."""
        groups, n, m = self.matrix.shape
        return groups, n, m

    def after(self, first: AffineMap) -> AffineMap:
        """Return the map that applies another one and then this one.

        Args:
            first: as many outputs as this one has inputs, in as many groups.
        """
        moved = (self.matrix @ first.shift[:, :, np.newaxis])[:, :, 0]
        return AffineMap(self.matrix @ first.matrix, moved + self.shift)

    def equals(self, other: AffineMap) -> bool:
        """Whether another map is the same, number by number."""
        return np.array_equal(self.matrix, other.matrix) and np.array_equal(self.shift, other.shift)

    def of_targets(self, rows: NDArray[np.intp]) -> AffineMap:
        """Return the map to some of the outputs only, the same ones in each group."""
        return AffineMap(self.matrix[:, rows], self.shift[:, rows])
