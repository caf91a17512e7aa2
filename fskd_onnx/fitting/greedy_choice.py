"""The greedy choice of channels: those from which all are best reconstructed, as readers see them.

With R the centred Gram matrix of what a reader reads, M its weights and H = M M', the choice takes
the channel of the largest gain and eliminates it, until there are enough::

    gain(j) = sum over readers of  R_j' H R_j / R_jj / tr(H R)        R := R - R_j R_j' / R_jj

(pivoted Cholesky elimination; R_j is column j of R).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels


def choose_channels(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Choose the channels that reconstruct all others best, as their readers see them.

    Args:
        evidence: R, the centred Gram matrix, and H = M M' of each reader, (channels, channels).
        width: how many to choose.

    Returns:
        (width,) channels, ascending.
    """
    return np.sort(order_of_choice(evidence, width))


def order_of_choice(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Return the channels that ``choose_channels`` takes, the best one first.

    Args:
        evidence: as of ``choose_channels``.
        width: how many to choose.
    """
    residuals = [gram.copy() for gram, _ in evidence]
    # seen = H R, kept up to date along with R, makes every pick quadratic instead of cubic.
    seen = [weight @ gram for gram, weight in evidence]
    scales = [1.0 / max(float(np.trace(part)), np.finfo(float).tiny) for part in seen]
    floors = [1e-10 * max(float(np.diag(gram).max()), np.finfo(float).tiny) for gram, _ in evidence]
    left = np.ones(len(residuals[0]), dtype=bool)
    picks = np.empty(width, np.intp)
    for place in range(width):
        gains = np.zeros(len(left))
        for residual, part, scale, floor in zip(residuals, seen, scales, floors, strict=True):
            pivots = np.diag(residual)
            energy = np.einsum("ij,ij->j", residual, part)
            gains += scale * np.where(pivots > floor, energy / np.maximum(pivots, floor), 0.0)
        pick = int(np.argmax(np.where(left, gains, -np.inf)))
        left[pick], picks[place] = False, pick
        for residual, part, floor in zip(residuals, seen, floors, strict=True):
            pivot = residual[pick, pick]
            if pivot > floor:
                column = residual[:, pick].copy()
                part -= np.outer(part[:, pick].copy(), column / pivot)
                residual -= np.outer(column, column / pivot)
    return picks
