"""The errors that a refit leaves where only some channels of a unit stay.

A reader of a unit has the weights M and reads channels of the centred second moments R. Where the
channels S stay, the best linear reconstruction of all of them is B x_S with B = R_:S R_SS^-1, which
the reader's own refit contains (He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", 2017). With H = M M' the reader is off by::

    tr(H (R - B R_S: - R_:S B' + B R_SS B')) / tr(H R)

B comes from some samples and R, in this, from others, so that few samples promise no more than they
keep: C of those, J of these. Without samples all channels vary alike and none tells of another:
R = I, B = 0.

Of one order of the channels, whose first ones stay, one factor C = L L' tells the error of every
number k of them. L^-1 takes what the first ones tell out of the others, so that behind the first k
rows and columns its image of J is that of what is left, and L leads back to the channels::

    error(k)  =  sum over i, j >= k of  (L^-1 J L^-T)_ij (L' H L)_ij  /  tr(H J)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import Array

# Relative to the mean diagonal of R, as a fit has it that pulls towards the weights it began with.
_RIDGE = 0.01


@dataclass(frozen=True)
class Reading:
    """What a reader makes of the channels of a unit.

    Attributes:
        reader: name of the linear node.
        weights: H of the module's docstring, (width, width).
        fitted: R of the samples to solve with, (width, width).
        judged: R of the samples to judge on.
    """

    reader: str
    weights: Array
    fitted: Array
    judged: Array

    def errors(self, nested: Sequence[Sequence[int]]) -> list[float]:
        """Return the relative errors of what the reader gives, 0..1.

        Args:
            nested: sets of channels that stay, each one channel at least; of two sets one holds the
                other, so that the channels have one order of which each set is the beginning.
        """
        if not nested or not self._whole > 0:
            return [0.0] * len(nested)
        order = np.argsort(-self._times_kept(nested), kind="stable")
        ordered = np.ix_(order, order)
        own, mean = self.fitted[ordered], float(np.trace(self.fitted)) / len(self.fitted)
        own[np.diag_indices_from(own)] += _RIDGE * mean if mean > 0 else 1.0
        lower = scipy.linalg.cholesky(own, lower=True, check_finite=False)
        half = scipy.linalg.solve_triangular(
            lower, self.judged[ordered], lower=True, check_finite=False
        )
        terms = scipy.linalg.solve_triangular(lower, half.T, lower=True, check_finite=False)
        terms *= lower.T @ self.weights[ordered] @ lower
        lost = [float(terms[len(kept) :, len(kept) :].sum()) / self._whole for kept in nested]
        return [min(max(error, 0.0), 1.0) for error in lost]

    def _times_kept(self, sets: Sequence[Sequence[int]]) -> NDArray[np.intp]:
        """Return how many of the sets each channel is in."""
        together = np.concatenate([np.asarray(kept, np.intp) for kept in sets])
        return np.bincount(together, minlength=len(self.fitted))

    @cached_property
    def _whole(self) -> float:
        """What the reader's response varies by."""
        return float(np.sum(self.weights * self.judged))
