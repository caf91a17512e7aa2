"""Regressions to solve: columns with a known map, and the backends that solve them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SOLVERS = ("numpy", "torch")


def draw(
    seed: int, count: int = 200, m: int = 6, n: int = 4, noise: float = 0.1
) -> tuple[Floats, Floats]:
    """Regressors (2, m, count) and targets (2, n, count): a map that is always the same, + 5."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, m, count)) + 1
    truth = np.random.default_rng(99).standard_normal((2, n, m))
    return x, truth @ x + noise * rng.standard_normal((2, n, count)) + 5
