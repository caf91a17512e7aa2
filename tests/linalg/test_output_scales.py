"""Errors of outputs, and of parts of an output, each on its own scale."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.linalg.output_scales import Scales, weights_of
from fskd_onnx.reporting.agreement import agreement
from tests.helpers import Array


def outputs(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_each_part_of_an_output_counts_on_its_own_scale() -> None:
    boxes, scores = 300 + 100 * outputs(0, 6, 4, 9), 0.01 * outputs(1, 6, 2, 9)
    joined = np.concatenate([boxes, scores], axis=1)
    numbers = np.repeat([0, 1], [4 * 9, 2 * 9])
    scales = Scales.of(joined, numbers=numbers)
    wrong = np.concatenate([boxes, -scores], axis=1)
    errors = scales.errors(joined, wrong)
    assert errors[0] == 0.0
    assert errors[1] == pytest.approx(agreement([scores], [-scores]).relative_mse)
    weights = weights_of([scales], 6)
    assert agreement([joined], [wrong], weights=weights).relative_mse == pytest.approx(
        errors[1] / 2
    )


@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_what_does_not_vary_is_not_counted_but_its_errors_are(noise: float) -> None:
    varying = outputs(0, 6, 4)
    still = (np.full((6, 4), 2.0) * (1 + noise * outputs(1, 6, 4))).astype(np.float32)
    assert Scales.of(still).varies.tolist() == [False]
    own = agreement([varying], [varying + 1]).relative_mse
    both = agreement([varying, still], [varying + 1, still])
    assert both.relative_mse == pytest.approx(own, rel=1e-6)
    worse = agreement([varying, still], [varying + 1, still + 1])
    assert worse.relative_mse == pytest.approx(own + 0.25, rel=1e-4)


def test_errors_are_relative_to_the_mean_of_all_rows() -> None:
    teacher, student = outputs(0, 2, 5, 3, 2)
    spread = np.sum((teacher - teacher.mean(axis=(0, 1))) ** 2)
    expected = np.sum((student - teacher) ** 2) / spread
    assert Scales.of(teacher, 3).errors(teacher, student) == pytest.approx([expected])
