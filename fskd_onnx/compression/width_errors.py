"""The error that a refit leaves where only some channels of a unit stay.

A reader of a unit has the weights M and reads channels of the centred second moments R. Where the
channels S stay, the best linear reconstruction of all of them is B x_S with B = R_:S R_SS^-1, which
the reader's own refit contains (He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", 2017). With H = M M' the reader is off by::

    tr(H (R - B R_S: - R_:S B' + B R_SS B')) / tr(H R)

B comes from some samples and R, in this, from others, so that few samples promise no more than they
keep. Without samples all channels vary alike and none tells of another: R = I, B = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

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

    def error(self, kept: Sequence[int]) -> float:
        """Return the relative error of what the reader gives, 0..1.

        Args:
            kept: channels that stay, ascending; one at least.
        """
        if not self._whole > 0:
            return 0.0
        some = np.asarray(kept)
        own = self.fitted[np.ix_(some, some)]
        mean = float(np.trace(own)) / len(own)
        own = own + (_RIDGE * mean if mean > 0 else 1.0) * np.eye(len(own))
        lower = scipy.linalg.cho_factor(own, lower=True, check_finite=False)
        # What stays is there as it is; the others are reconstructed.
        gone = np.setdiff1d(np.arange(len(self.fitted)), some)
        found = scipy.linalg.cho_solve(lower, self.fitted[np.ix_(some, gone)], check_finite=False)
        cross = self.judged[np.ix_(gone, some)] @ found
        left = self.judged[np.ix_(gone, gone)] - cross - cross.T
        left += found.T @ self.judged[np.ix_(some, some)] @ found
        lost = float(np.sum(self.weights[np.ix_(gone, gone)] * left))
        return min(max(lost / self._whole, 0.0), 1.0)

    @cached_property
    def _whole(self) -> float:
        """What the reader's response varies by."""
        return float(np.sum(self.weights * self.judged))
