"""Blocks of every form of factors, with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from fskd_onnx.linalg.factorization import Factor, Factorization

CHANNELS, WIDTH = 6, 9


def factor(m: int, q: int, kernel: Sequence[int], groups: int = 1) -> Factor:
    taps = list(itertools.product(*map(range, kernel)))
    offsets = np.array(taps, np.intp).reshape(len(taps), len(kernel))
    return Factor(np.zeros((m, q, len(taps))), offsets, groups)


# Chains of (channels out, in, kernel, groups), and the window of their kernel.
FORMS: dict[str, tuple[list[list[Factor]], tuple[int, ...]]] = {
    "k x 1, 1 x k": ([[factor(4, 6, (3, 1)), factor(9, 4, (1, 3))]], (3, 3)),
    "k x k, 1 x 1": ([[factor(4, 6, (3, 3)), factor(9, 4, (1, 1))]], (3, 3)),
    "1 x 1, k x k": ([[factor(4, 6, (1, 1)), factor(9, 4, (3, 3))]], (3, 3)),
    "Tucker": (
        [[factor(3, 6, (1, 1)), factor(4, 3, (3, 3)), factor(9, 4, (1, 1))]],
        (3, 3),
    ),
    "depthwise, pointwise": ([[factor(6, 6, (3, 3), 6), factor(9, 6, (1, 1))]], (3, 3)),
    "pointwise, depthwise": ([[factor(9, 6, (1, 1)), factor(9, 9, (3, 3), 9)]], (3, 3)),
    "pointwise, grouped": ([[factor(6, 6, (1, 1)), factor(9, 6, (3, 3), 3)]], (3, 3)),
    "two branches": (
        [
            [factor(6, 6, (3, 3), 6), factor(9, 6, (1, 1))],
            [factor(2, 6, (1, 1)), factor(9, 2, (1, 1))],
        ],
        (3, 3),
    ),
    "like branches": (
        [
            [factor(6, 6, (3, 3), 6), factor(9, 6, (1, 1))],
            [factor(12, 6, (3, 3), 6), factor(9, 12, (1, 1))],
        ],
        (3, 3),
    ),
    "grouped": ([[factor(8, 6, (3,), 2), factor(9, 8, (1,))]], (3,)),
    "matrices": ([[factor(3, 6, ()), factor(9, 3, ())]], ()),
}


def drawn(form: str, seed: int) -> Factorization:
    """Give a block with random weights."""
    chains, window = FORMS[form]
    rng = np.random.default_rng(seed)
    filled = tuple(
        tuple(f.with_matrix(rng.standard_normal(f.matrix.shape)) for f in chain) for chain in chains
    )
    # Branches of one tap see the middle of the window.
    starts = tuple(
        tuple((size - extent) // 2 for size, extent in zip(window, _extents(chain), strict=True))
        for chain in chains
    )
    return Factorization(filled, starts, window)


def _extents(chain: Sequence[Factor]) -> list[int]:
    """Give the taps of a chain's kernel along each axis."""
    return [
        int(1 + sum(factor.offsets.max(axis=0)[axis] for factor in chain))
        for axis in range(chain[0].offsets.shape[1])
    ]
