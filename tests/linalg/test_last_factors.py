"""The regression of the last factors of a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.linalg.factor_step import Target
from fskd_onnx.linalg.last_factors import LastFactors
from tests.factors import FORMS, drawn


@pytest.mark.parametrize("form", FORMS)
def test_the_last_factors_are_those_of_least_squares(form: str) -> None:
    block, rng = drawn(form, 0), np.random.default_rng(1)
    n, p = block.kernel.shape
    x, y = rng.standard_normal((p, 4 * p)), rng.standard_normal((n, 4 * p))
    target = Target(x @ x.T, y @ x.T, float(np.sum(y**2)))
    problem = LastFactors(block, target)
    best = problem.best()
    seen, mask = block.last_patches.of(x), block.last_mask
    for channel, weights in enumerate(best.last_matrix):
        own = np.ones(len(weights), bool) if mask is None else mask[channel]
        # Branches can stand for each other: what they sum to is known, not their parts.
        expected = np.linalg.lstsq(seen[own].T, y[channel])[0] @ seen[own]
        np.testing.assert_allclose(weights @ seen, expected, rtol=0, atol=1e-6)
        assert not weights[~own].any()
    for some in (block, best):
        assert problem.error(some) == pytest.approx(float(np.sum((some.kernel @ x - y) ** 2)))
