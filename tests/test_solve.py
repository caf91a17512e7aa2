"""Closed forms against what they stand for, on both backends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.errors import FskdError
from fskd_onnx.moments import Affine, Moments, total
from fskd_onnx.solve import Family, Ridge, cross_validate, solved_by

Floats = NDArray[np.float64]
SOLVERS = ("numpy", "torch")


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> Iterator[str]:
    with solved_by(request.param):
        yield request.param


def draw(
    seed: int, count: int = 200, m: int = 6, n: int = 4, noise: float = 0.1
) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, m, count)) + 1
    truth = np.random.default_rng(99).standard_normal((2, n, m))
    return x, truth @ x + noise * rng.standard_normal((2, n, count)) + 5


def moments(x: Floats, y: Floats) -> Moments:
    turned = x.transpose(0, 2, 1)
    return Moments(
        x.shape[2], x @ turned, y @ turned, x.sum(axis=2), y.sum(axis=2), (y * y).sum(axis=2)
    )


def kernel(n: int = 4, m: int = 6) -> Family:
    rng = np.random.default_rng(7)
    block = Affine(rng.standard_normal((2, n, m)), rng.standard_normal((2, n)))
    return Family("kernel", block, on_outputs=False)


def test_a_ridge_is_the_least_squares_solution_with_rows_for_the_prior(solver: str) -> None:
    x, y = draw(0)
    prior = kernel().prior
    ridge = 0.3
    fitted = Ridge(moments(x, y), prior, ridge).fit(moments(x, y))
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    strength = ridge * np.mean([np.trace(part @ part.T) / len(part) for part in dx])
    for group in range(2):
        rows = np.vstack([dx[group].T, np.sqrt(strength) * np.eye(6)])
        targets = np.vstack([dy[group].T, np.sqrt(strength) * prior[group].T])
        expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
        np.testing.assert_allclose(fitted.matrix[group], expected, rtol=1e-9, atol=1e-12)
    shift = y.mean(axis=2) - np.einsum("gij,gj->gi", fitted.matrix, x.mean(axis=2))
    np.testing.assert_allclose(fitted.shift, shift, rtol=1e-9)


def test_a_strong_ridge_leaves_the_prior_and_a_weak_one_the_data(solver: str) -> None:
    x, y = draw(1, noise=0.0)
    prior = kernel().prior
    strong = Ridge(moments(x, y), prior, 1e9).fit(moments(x, y))
    np.testing.assert_allclose(strong.matrix, prior, atol=1e-6)
    weak = Ridge(moments(x, y), prior, 1e-12).fit(moments(x, y))
    assert moments(x, y).error(weak) < 1e-6


def test_both_backends_give_the_same() -> None:
    x, y = draw(2, m=40, n=30, count=90)
    prior = np.random.default_rng(3).standard_normal((2, 30, 40))
    fits = []
    for name in SOLVERS:
        with solved_by(name):
            fits.append(Ridge(moments(x, y), prior, 1e-3).fit(moments(x, y)))
    for part in ("matrix", "shift"):
        one, other = (getattr(fit, part) for fit in fits)
        assert np.abs(one - other).max() <= 1e-9 * np.abs(one).max()


def test_a_system_without_a_factor_is_solved_all_the_same(
    solver: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = draw(4)
    broken = moments(x, y)
    broken.gram[:] = np.diag([4.0, 3.0, 2.0, 1.0, 0.5, -6.0])  # rounding can make one negative
    broken.first_x[:] = 0
    with caplog.at_level(logging.INFO, "fskd_onnx.solve"):
        fitted = Ridge(broken, np.zeros((2, 4, 6)), 1e-6).fit(broken)
    assert np.isfinite(fitted.matrix).all()
    assert "no Cholesky factor" in caplog.text


def test_dead_and_equal_regressors_leave_the_prior_alone(solver: str) -> None:
    x, y = draw(5)
    x[:, 0] = 0.0
    x[:, 2] = x[:, 1]
    family = kernel()
    fitted = Ridge(moments(x, y), family.prior, 1e-6).fit(moments(x, y))
    np.testing.assert_allclose(fitted.matrix[..., 0], family.prior[..., 0], atol=1e-9)
    change = fitted.matrix - family.prior
    np.testing.assert_allclose(change[..., 1], change[..., 2], rtol=1e-4, atol=1e-6)


def test_without_any_variance_only_the_shift_is_fitted(solver: str) -> None:
    x, y = np.ones((2, 6, 20)), np.full((2, 4, 20), 3.0)
    family = kernel()
    fitted = Ridge(moments(x, y), family.prior, 1e-3).fit(moments(x, y))
    np.testing.assert_array_equal(fitted.matrix, family.prior)
    assert moments(x, y).error(fitted) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("noise", "weakest"), [(0.01, True), (30.0, False)])
def test_cross_validation_trusts_the_data_as_far_as_they_go(noise: float, weakest: bool) -> None:
    truth = Affine(np.random.default_rng(99).standard_normal((2, 4, 6)), np.full((2, 4), 5.0))
    family = Family("kernel", truth if not weakest else kernel().block, on_outputs=False)
    folds = [moments(*draw(seed, count=20, noise=noise)) for seed in range(5)]
    solution = cross_validate(folds, family)
    assert (solution.ridge <= 1e-3) == weakest
    if weakest:
        assert solution.error_after < 1e-2 * solution.error_before
    assert solution.energy == pytest.approx(sum(fold.target_energy for fold in folds))


def test_a_pointwise_adapter_from_patches_is_that_from_outputs() -> None:
    x, y = draw(8)
    block = kernel().block
    outputs = block.matrix @ x + block.shift[..., np.newaxis]
    n = np.broadcast_to(np.eye(4), (2, 4, 4))
    from_patches = Family("pointwise", block, on_outputs=True)
    from_outputs = Family("pointwise", Affine(n, np.zeros((2, 4))), on_outputs=False)
    halves = [slice(0, 100), slice(100, None)]
    one = cross_validate([moments(x[..., h], y[..., h]) for h in halves], from_patches)
    other = cross_validate([moments(outputs[..., h], y[..., h]) for h in halves], from_outputs)
    assert one.ridge == other.ridge
    np.testing.assert_allclose(one.adapter.matrix, other.adapter.matrix, rtol=1e-6, atol=1e-9)
    everything = total([moments(x, y)])
    lifted = from_patches.lift(one.adapter)
    assert everything.error(lifted) == pytest.approx(moments(outputs, y).error(other.adapter))


def test_torch_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    expected = pytest.raises(FskdError, match=r"--solver torch needs PyTorch.*--solver numpy")
    with expected, solved_by("torch"):
        pass
