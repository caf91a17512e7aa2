"""One factor of a kernel, given all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fskd_onnx.linalg import factor_step
from fskd_onnx.linalg.factor_step import Target, solve_factor
from tests.factors import drawn


# Those that are no exact system come near to the best one by conjugate gradients.
@pytest.mark.parametrize(
    ("form", "slack"),
    [
        ("k x k, 1 x 1", 1e-8),
        ("pointwise, depthwise", 1e-8),
        ("depthwise, pointwise", 1e-8),
        ("grouped", 1e-8),
        ("k x 1, 1 x k", 1e-3),
        ("1 x 1, k x k", 1e-3),
    ],
)
def test_no_weight_of_a_solved_factor_can_gain(form: str, slack: float) -> None:
    assert_no_weight_can_gain(form, slack)


@pytest.mark.parametrize("form", ["depthwise, pointwise", "grouped"])
def test_factors_of_many_groups_come_near_to_the_best(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_step, "_FEW", 0)
    monkeypatch.setattr(factor_step, "_STEPS", 10)  # a fit takes fewer, sweep after sweep
    assert_no_weight_can_gain(form, 1e-3)


def assert_no_weight_can_gain(form: str, slack: float) -> None:
    rng = np.random.default_rng(0)
    block = drawn(form, 1)
    n, p = block.kernel.shape
    columns = rng.standard_normal((p, 3 * p))
    gram = columns @ columns.T / (3 * p)
    target = Target(gram, rng.standard_normal((n, p)) @ gram, 1.0)
    first, behind = block.chains[0]
    solved = solve_factor(first, behind, target)
    assert not solved.weights[~solved.mask].any()

    def error(weights: np.ndarray) -> float:
        return target.error(block.replaced(0, 0, replace(first, weights=weights)).kernel)

    best = error(solved.weights)
    assert best < error(first.weights)
    step = 1e-4
    for at in np.argwhere(np.broadcast_to(solved.mask[..., np.newaxis], solved.weights.shape))[::3]:
        change = np.zeros_like(solved.weights)
        change[tuple(at)] = step
        slope = (error(solved.weights + change) - error(solved.weights - change)) / (2 * step)
        assert abs(slope) < slack * max(1.0, abs(best))
