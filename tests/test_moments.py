"""Moments give, without the columns, what the columns give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.moments import Affine, Moments, total

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


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    x, y = columns(0)
    parts = [moments(x[..., part], y[..., part]) for part in (slice(0, 25), slice(25, None))]
    whole, rest = total(parts), total(parts) - parts[0]
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


def test_moments_of_outputs_follow_from_those_of_patches() -> None:
    x, y = columns(4)
    rng = np.random.default_rng(5)
    block = Affine(rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3)))
    expected = moments(block.matrix @ x + block.shift[..., np.newaxis], y)
    found = moments(x, y).of_outputs(block)
    for name in ("gram", "cross", "first_x", "first_y", "square_y"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9)


def test_correlation_is_that_of_numpy_and_zero_for_a_constant() -> None:
    x, y = columns(6)
    x[0, 1], y[1, 2] = 0.0, 0.0
    correlation = moments(x, y).correlation()
    assert not correlation[0, 1].any()
    assert not correlation[1, :, 2].any()
    expected = np.corrcoef(np.concatenate([x[1], y[1, :2]]))[:4, 4:]
    np.testing.assert_allclose(correlation[1, :, :2], expected, rtol=1e-9)
