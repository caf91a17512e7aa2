"""Moments give, without the columns, what the columns give."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import (
    CrossMoments,
    GramMoments,
    Moments,
    finite_columns,
    sum_moments,
)
from fskd_onnx.passes.analysis.affine import AffineMap

Floats = NDArray[np.float64]


def columns(seed: int, count: int = 60, m: int = 4, n: int = 3) -> tuple[Floats, Floats]:
    """Two groups of columns that are correlated and far from zero mean."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, m, count)) + 3
    y = rng.standard_normal((2, n, m)) @ x + rng.standard_normal((2, n, count)) - 2
    return x, y


def moments(x: Floats, y: Floats) -> Moments:
    transposed = x.transpose(0, 2, 1)
    return Moments(
        GramMoments(x.shape[2], x @ transposed, x.sum(axis=2)),
        CrossMoments(y @ transposed, y.sum(axis=2), (y * y).sum(axis=2)),
    )


def sums(moments: Moments) -> dict[str, Floats]:
    """All sums of some moments, by name."""
    x, y = moments.of_x, moments.of_y
    return {
        "gram": x.gram,
        "sum_x": x.sum_x,
        "cross": y.cross,
        "sum_y": y.sum_y,
        "square_y": y.square_y,
    }


def assert_same(found: Moments, expected: Moments) -> None:
    assert found.count == expected.count
    for name, value in sums(found).items():
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, sums(expected)[name], rtol=1e-9, atol=1e-9)


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    x, y = columns(0)
    parts = [moments(x[..., part], y[..., part]) for part in (slice(0, 25), slice(25, None))]
    whole, rest = sum_moments(parts), sum_moments(parts) - parts[0]
    assert (whole.count, rest.count) == (60, 35)
    for name, value in sums(moments(x, y)).items():
        np.testing.assert_allclose(sums(whole)[name], value, rtol=1e-12)
        np.testing.assert_allclose(sums(rest)[name], sums(parts[1])[name], rtol=1e-9)


def test_centred_sums_and_energy() -> None:
    x, y = columns(1)
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    found = moments(x, y)
    np.testing.assert_allclose(found.centered_gram, dx @ dx.transpose(0, 2, 1), rtol=1e-9)
    np.testing.assert_allclose(found.centered_cross, dy @ dx.transpose(0, 2, 1), rtol=1e-9)
    assert found.target_energy == pytest.approx((dy * dy).sum())


def test_the_error_of_a_map() -> None:
    x, y = columns(2)
    rng = np.random.default_rng(3)
    fitted = AffineMap(rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3)))
    residual = fitted.matrix @ x + fitted.shift[..., np.newaxis] - y
    assert moments(x, y).error(fitted) == pytest.approx((residual**2).sum())
    exact = fitted.matrix @ x + fitted.shift[..., np.newaxis]
    assert moments(x, exact).error(fitted) == pytest.approx(0, abs=1e-8)


def test_moments_of_a_map_of_the_regressors() -> None:
    x, y = columns(4)
    matrix = np.random.default_rng(5).standard_normal((2, 3, 4))
    assert_same(moments(x, y).mapped(matrix), moments(matrix @ x, y))


def test_other_targets_of_the_same_columns_share_the_gram_part() -> None:
    x, y = columns(4)
    first = Moments.of(x, y[:, :1])
    assert_same(Moments(first.of_x, CrossMoments.of(x, y)), moments(x, y))
    # A map of the regressors commutes with that.
    matrix = np.random.default_rng(5).standard_normal((2, 3, 4))
    other = CrossMoments.of(x, y).mapped(matrix)
    assert_same(Moments(first.of_x.mapped(matrix), other), moments(matrix @ x, y))


@pytest.mark.parametrize("solver", ["numpy", "torch"])
def test_sums_of_columns(solver: str) -> None:
    x, y = columns(7)
    with solved_by(solver):
        assert_same(Moments.of(x, y), moments(x, y))
        assert_same(Moments(GramMoments.of(x), CrossMoments.of(x, y)), moments(x, y))
        # Each part adds up, and takes off, on its own.
        parts = [slice(0, 9), slice(9, 60)]
        grams = [GramMoments.of(x[..., part]) for part in parts]
        crosses = [CrossMoments.of(x[..., part], y[..., part]) for part in parts]
        assert_same(Moments(grams[0] + grams[1], crosses[0] + crosses[1]), moments(x, y))
        rest = Moments(GramMoments.of(x) - grams[0], CrossMoments.of(x, y) - crosses[0])
        assert_same(rest, moments(x[..., 9:], y[..., 9:]))


@pytest.mark.parametrize("solver", ["numpy", "torch"])
def test_columns_in_float32_are_summed_in_float64(solver: str) -> None:
    # The mean is a thousand times the deviation; float32 would keep nothing of its square.
    x, y = ((values + 1000).astype(np.float32) for values in columns(8, count=5000))
    with solved_by(solver):
        found = Moments.of(x, y)
    assert_same(found, moments(x.astype(np.float64), y.astype(np.float64)))
    deviation = x[0] - x[0].mean(axis=1, keepdims=True, dtype=np.float64)
    # Sums of 5e9 in float32 would be off by hundreds.
    expected = deviation @ deviation.T
    np.testing.assert_allclose(found.centered_gram[0], expected, rtol=0, atol=1e-4)


def test_some_targets_are_those_rows() -> None:
    x, y = columns(9)
    rows = np.array([2, 0])
    assert_same(moments(x, y).of_targets(rows), moments(x, y[:, rows]))
    fitted = AffineMap(np.ones((2, 3, 4)), np.arange(6.0).reshape(2, 3))
    some = fitted.of_targets(rows)
    np.testing.assert_array_equal(some.matrix, fitted.matrix[:, rows])
    np.testing.assert_array_equal(some.shift, fitted.shift[:, rows])


@given(
    count=st.integers(2, 30),
    m=st.integers(1, 5),
    n=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_the_error_of_a_map_of_mapped_regressors_is_that_of_the_composed_map(
    count: int, m: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, m, count)), rng.standard_normal((2, n, count))
    matrix = rng.standard_normal((2, 3, m))
    fitted = AffineMap(rng.standard_normal((2, n, 3)), rng.standard_normal((2, n)))
    composed = AffineMap(fitted.matrix @ matrix, fitted.shift)
    found = Moments.of(x, y)
    assert found.mapped(matrix).error(fitted) == pytest.approx(found.error(composed))


def test_correlation_is_that_of_numpy_and_zero_for_a_constant() -> None:
    x, y = columns(6)
    x[0, 1], y[1, 2] = 0.0, 0.0
    correlation = moments(x, y).correlation()
    assert not correlation[0, 1].any()
    assert not correlation[1, :, 2].any()
    expected = np.corrcoef(np.concatenate([x[1], y[1, :2]]))[:4, 4:]
    np.testing.assert_allclose(correlation[1, :, :2], expected, rtol=1e-9)


def test_columns_that_are_not_finite_are_found() -> None:
    x, y = np.ones((2, 3, 5)), np.ones((2, 1, 5), np.float32)
    assert finite_columns(x, y) is None
    x[1, 2, 0], y[0, 0, 3], y[1, 0, 4] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(finite_columns(x, y), [False, True, True, False, False])
    huge = np.full((1, 1, 3), 1e308)
    assert finite_columns(huge) is None


def test_an_error_that_overflows_is_no_small_one() -> None:
    x = np.full((1, 1, 4), 1e200)
    with np.errstate(over="ignore", invalid="ignore"):
        moments = Moments.of(x, x)
        assert not moments.finite
        assert moments.error(AffineMap(np.ones((1, 1, 1)), np.zeros((1, 1)))) == math.inf
