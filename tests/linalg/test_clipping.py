"""Errors behind an activation that cuts off values: what lies beyond its bounds is no error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.linalg.clipping import clip, relu_aware_targets

INF = math.inf


@pytest.mark.parametrize(("low", "high"), [(0.0, INF), (0.0, 6.0), (-INF, 0.5), (-1.0, 1.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_clipped_as_the_activation_does(
    low: float, high: float, dtype: type[np.floating]
) -> None:
    values = np.linspace(-9, 9, 37).astype(dtype)
    clipped = clip(values, low, high)
    assert clipped.dtype == dtype
    np.testing.assert_array_equal(clipped, np.clip(values, low, high))


bounds = st.sampled_from([-INF, -1.0, 0.0]), st.sampled_from([0.5, 6.0, INF])
number = st.floats(-10, 10, allow_subnormal=False)


@given(*bounds, st.lists(st.tuples(number, number), min_size=1))
def test_relu_aware_targets_differ_where_the_activation_hides_it(
    low: float, high: float, pairs: list[tuple[float, float]]
) -> None:
    prediction, target = np.array(pairs).T
    aware = relu_aware_targets(prediction, target, low, high)
    # Targets inside the bounds stay as they are; the others are the same behind the activation,
    inside = (low < target) & (target < high)
    np.testing.assert_array_equal(aware[inside], target[inside])
    np.testing.assert_array_equal(clip(aware, low, high), clip(target, low, high))
    # and are the prediction where that is beyond the same bound.
    agree = ~inside & (clip(prediction, low, high) == clip(target, low, high))
    np.testing.assert_array_equal(aware[agree], prediction[agree])


def test_without_bounds_nothing_changes() -> None:
    prediction, target = np.array([1.0, -2.0]), np.array([-3.0, 4.0])
    np.testing.assert_array_equal(relu_aware_targets(prediction, target, -INF, INF), target)
    np.testing.assert_array_equal(clip(target, -INF, INF), target)
