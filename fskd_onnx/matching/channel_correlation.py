"""Which of a teacher's channels a student's are, by the correlation of their activations.

A channel of the teacher that correlates with one of the student's by r leaves ``1 - r^2`` of its
variance unexplained. For N independent samples of normal numbers, the logarithm of the likelihood
is ``-N / 2 * log(1 - r^2)``, which makes two candidates comparable, whatever their correlation.
"""

from __future__ import annotations

import numpy as np

from fskd_onnx.errors import MatchError
from fskd_onnx.linalg.moments import Moments
from fskd_onnx.matching.assignment import Channels, assign
from fskd_onnx.matching.row_matching import LIMIT, confidence_of

# Below this a student's channel has no counterpart among the teacher's activations.
_LEAST_CORRELATION = 0.2
# Positions of one sample are not independent: columns say no more than so many that are.
_MOST_COLUMNS = 64
# Rounding of activations in single precision.
_ROUNDING = 1e-9


def channels_from_moments(moments: Moments) -> tuple[Channels, float]:
    """Find the teacher channel of each student channel from the correlation of their activations.

    Args:
        moments: of one group, with all channels of the teacher's block as targets.

    Returns:
        (n,) channels, each taken once, and the confidence in the least certain one, see
        ``fskd_onnx.results.BlockPair``.

    Raises:
        MatchError: a channel hardly correlates with any, or as well with another one; the message
            is half a sentence that names them.
    """
    correlation = moments.correlation()[0]
    unexplained = 1 - np.minimum(np.maximum(correlation, 0.0) ** 2, 1.0) + _ROUNDING
    found = assign(min(moments.count, _MOST_COLUMNS) / 2 * np.log(unexplained))
    own = correlation[np.arange(len(correlation)), found.columns]
    least, doubtful = int(own.argmin()), int(found.margins.argmin())
    if own[least] < _LEAST_CORRELATION:
        raise MatchError(
            f"channel {least} correlates with the teacher's {found.columns[least]} by only "
            f"{own[least]:.2f}"
        )
    if found.margin < LIMIT:
        rival = found.rivals[doubtful]
        raise MatchError(
            f"channel {doubtful} correlates with the teacher's {found.columns[doubtful]} by "
            f"{own[doubtful]:.3f} and with {rival} by {correlation[doubtful, rival]:.3f}, which "
            "leaves it open which of the two it is"
        )
    return found.columns, confidence_of(found.margin)
