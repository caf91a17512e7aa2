"""Moments give, without the columns, what the columns give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import Affine, Moments, sum_moments

Floats = NDArray[np.float64]


def columns(seed: int, count: int = 60, m: int = 4, n: int = 3) -> tuple[Floats, Floats]:
    """Two groups of columns that are correlated and far from zero mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, m, count)) + 3
    y = rng.standard_normal((2, n, m)) @ x + rng.standard_normal((2, n, count)) - 2
    return x, y


def moments(x: Floats, y: Floats) -> Moments:
    turned = x.transpose(0, 2, 1)
    return Moments(
        x.shape[2], x @ turned, y @ turned, x.sum(axis=2), y.sum(axis=2), (y * y).sum(axis=2)
    )


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    for name in ("gram", "cross", "first_x", "first_y", "square_y"):
        value = getattr(found, name)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-9, atol=1e-9)


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    x, y = columns(0)
    parts = [moments(x[..., part], y[..., part]) for part in (slice(0, 25), slice(25, None))]
    whole, rest = sum_moments(parts), sum_moments(parts) - parts[0]
    for name in ("count", "gram", "cross", "first_x", "first_y", "square_y"):
        np.testing.assert_allclose(getattr(whole, name), getattr(moments(x, y), name), rtol=1e-12)
        np.testing.assert_allclose(getattr(rest, name), getattr(parts[1], name), rtol=1e-9)


def test_centred_sums_and_energy() -> None:
    x, y = columns(1)
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    sums = moments(x, y)
    np.testing.assert_allclose(sums.centered_gram, dx @ dx.transpose(0, 2, 1), rtol=1e-9)
    np.testing.assert_allclose(sums.centered_cross, dy @ dx.transpose(0, 2, 1), rtol=1e-9)
    assert sums.target_energy == pytest.approx((dy * dy).sum())


def test_the_error_of_a_map() -> None:
    x, y = columns(2)
    rng = np.random.default_rng(3)
    fitted = Affine(rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3)))
    residual = fitted.matrix @ x + fitted.shift[..., np.newaxis] - y
    assert moments(x, y).error(fitted) == pytest.approx((residual**2).sum())
    exact = fitted.matrix @ x + fitted.shift[..., np.newaxis]
    assert moments(x, exact).error(fitted) == pytest.approx(0, abs=1e-8)


def test_moments_of_a_map_of_the_regressors() -> None:
    x, y = columns(4)
    reading = np.random.default_rng(5).standard_normal((2, 3, 4))
    expected = moments(reading @ x, y)
    sums = moments(x, y)
    assert_same(sums.of_regressors(reading), expected)
    # Other targets of the same columns.
    known = moments(reading @ x, y[:, :2] ** 2)
    assert_same(sums.of_regressors(reading, known), expected)
    assert sums.of_regressors(reading, known).gram is known.gram


@pytest.mark.parametrize("solver", ["numpy", "torch"])
def test_sums_of_columns(solver: str) -> None:
    x, y = columns(7)
    with solved_by(solver):
        assert_same(Moments.of(x, y), moments(x, y))
        alone = Moments.of_targets_alone(x, y)
        assert (alone.count, alone.gram.size, alone.first_x.size) == (60, 0, 0)
        assert_same(alone.with_regressors(moments(x, y[:, :1])), moments(x, y))
        # Parts add up, and take the regressors' sums afterwards.
        parts = [Moments.of_targets_alone(x[..., a:b], y[..., a:b]) for a, b in ((0, 9), (9, 60))]
        assert_same(sum_moments(parts).with_regressors(moments(x, y)), moments(x, y))


@pytest.mark.parametrize("solver", ["numpy", "torch"])
def test_columns_in_float32_are_summed_in_float64(solver: str) -> None:
    # The mean is a thousand times the deviation; float32 would keep nothing of its square.
    x, y = ((values + 1000).astype(np.float32) for values in columns(8, count=5000))
    with solved_by(solver):
        found = Moments.of(x, y)
        assert_same(Moments.of_targets_alone(x, y).with_regressors(found), found)
    assert_same(found, moments(x.astype(np.float64), y.astype(np.float64)))
    deviation = x[0] - x[0].mean(axis=1, keepdims=True, dtype=np.float64)
    # Sums of 5e9 in float32 would be off by hundreds.
    expected = deviation @ deviation.T
    np.testing.assert_allclose(found.centered_gram[0], expected, rtol=0, atol=1e-4)


def test_some_targets_are_those_rows() -> None:
    x, y = columns(9)
    rows = np.array([2, 0])
    assert_same(moments(x, y).of_targets(rows), moments(x, y[:, rows]))
    fitted = Affine(np.ones((2, 3, 4)), np.arange(6.0).reshape(2, 3))
    some = fitted.of_targets(rows)
    np.testing.assert_array_equal(some.matrix, fitted.matrix[:, rows])
    np.testing.assert_array_equal(some.shift, fitted.shift[:, rows])


@given(
    count=st.integers(2, 30),
    m=st.integers(1, 5),
    n=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_the_error_of_a_map_of_regressors_is_that_of_the_lifted_map(
    count: int, m: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, m, count)), rng.standard_normal((2, n, count))
    reading = rng.standard_normal((2, 3, m))
    fitted = Affine(rng.standard_normal((2, n, 3)), rng.standard_normal((2, n)))
    lifted = Affine(fitted.matrix @ reading, fitted.shift)
    sums = Moments.of(x, y)
    assert sums.of_regressors(reading).error(fitted) == pytest.approx(sums.error(lifted))


def test_correlation_is_that_of_numpy_and_zero_for_a_constant() -> None:
    x, y = columns(6)
    x[0, 1], y[1, 2] = 0.0, 0.0
    correlation = moments(x, y).correlation()
    assert not correlation[0, 1].any()
    assert not correlation[1, :, 2].any()
    expected = np.corrcoef(np.concatenate([x[1], y[1, :2]]))[:4, 4:]
    np.testing.assert_allclose(correlation[1, :, :2], expected, rtol=1e-9)
