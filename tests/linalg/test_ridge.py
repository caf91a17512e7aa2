"""Closed forms against what they stand for, on both backends."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from fskd_onnx.linalg import ridge
from fskd_onnx.linalg.backends import Array, solved_by
from fskd_onnx.linalg.moments import Moments, sum_moments
from fskd_onnx.linalg.ridge import Ridge, RidgeChoice, cross_validate, is_identity, span
from fskd_onnx.passes.analysis.affine import AffineMap
from tests.regressions import SOLVERS, draw


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> Iterator[str]:
    with solved_by(request.param):
        yield request.param


def prior_of(n: int = 4, m: int = 6, seed: int = 7) -> AffineMap:
    rng = np.random.default_rng(seed)
    return AffineMap(rng.standard_normal((2, n, m)), rng.standard_normal((2, n)))


def fit(moments: Moments, prior: Array, ridge: float) -> AffineMap:
    return Ridge(moments.of_x, prior).solver(ridge)(moments)


def test_a_ridge_is_the_least_squares_solution_with_rows_for_the_prior(solver: str) -> None:
    x, y = draw(0)
    prior = prior_of().matrix
    ridge = 0.3
    fitted = fit(Moments.of(x, y), prior, ridge)
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
    prior = prior_of().matrix
    strong = fit(Moments.of(x, y), prior, 1e9)
    np.testing.assert_allclose(strong.matrix, prior, atol=1e-6)
    weak = fit(Moments.of(x, y), prior, 1e-12)
    assert Moments.of(x, y).error(weak) < 1e-6


def test_both_backends_give_the_same() -> None:
    x, y = draw(2, m=40, n=30, count=90)
    prior = np.random.default_rng(3).standard_normal((2, 30, 40))
    fits = []
    for name in SOLVERS:
        with solved_by(name):
            fits.append(fit(Moments.of(x, y), prior, 1e-3))
    for part in ("matrix", "shift"):
        one, other = (getattr(fit, part) for fit in fits)
        assert np.abs(one - other).max() <= 1e-9 * np.abs(one).max()


def test_a_system_without_a_factor_is_solved_all_the_same(
    solver: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = draw(4)
    broken = Moments.of(x, y)
    broken.of_x.gram[:] = np.diag([4.0, 3.0, 2.0, 1.0, 0.5, -6.0])  # rounding can make one negative
    broken.of_x.sum_x[:] = 0
    with caplog.at_level(logging.INFO, "fskd_onnx.linalg.ridge"):
        fitted = fit(broken, np.zeros((2, 4, 6)), 1e-6)
    assert np.isfinite(fitted.matrix).all()
    assert "no Cholesky factor" in caplog.text


def test_dead_and_equal_regressors_leave_the_prior_alone(solver: str) -> None:
    x, y = draw(5)
    x[:, 0] = 0.0
    x[:, 2] = x[:, 1]
    prior = prior_of().matrix
    fitted = fit(Moments.of(x, y), prior, 1e-6)
    np.testing.assert_allclose(fitted.matrix[..., 0], prior[..., 0], atol=1e-9)
    change = fitted.matrix - prior
    np.testing.assert_allclose(change[..., 1], change[..., 2], rtol=1e-4, atol=1e-6)


def test_without_any_variance_only_the_shift_is_fitted(solver: str) -> None:
    x, y = np.ones((2, 6, 20)), np.full((2, 4, 20), 3.0)
    prior = prior_of().matrix
    fitted = fit(Moments.of(x, y), prior, 1e-3)
    np.testing.assert_array_equal(fitted.matrix, prior)
    assert Moments.of(x, y).error(fitted) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("noise", "weakest"), [(0.01, True), (30.0, False)])
def test_cross_validation_trusts_the_data_as_far_as_they_go(noise: float, weakest: bool) -> None:
    truth = AffineMap(np.random.default_rng(99).standard_normal((2, 4, 6)), np.full((2, 4), 5.0))
    prior = prior_of() if weakest else truth
    folds = [Moments.of(*draw(seed, count=20, noise=noise)) for seed in range(5)]
    found = cross_validate(folds, prior)
    assert (found.ridge <= 1e-3) == weakest
    if weakest:
        assert found.error_after < 1e-2 * found.error_before
    assert found.energy == pytest.approx(sum(fold.target_energy for fold in folds))
    unchanged = sum(fold.error(prior) for fold in folds)
    assert found.error_before == pytest.approx(unchanged)
    held_out = 0.0
    for fold in folds:
        rest = sum_moments(folds) - fold
        held_out += fold.error(fit(rest, prior.matrix, found.ridge))
    assert found.error_after == pytest.approx(held_out)


def test_the_ridge_of_least_error_is_found_from_either_side() -> None:
    """The held-out error falls, then rises; walking downhill is as good as looking everywhere."""
    for noise in (0.001, 0.3, 3.0, 30.0):
        prior = prior_of()
        folds = [Moments.of(*draw(seed, count=12, noise=noise)) for seed in range(5)]
        errors = []
        for strength in ridge.RIDGES:
            rests = [sum_moments(folds) - fold for fold in folds]
            errors.append(
                sum(
                    fold.error(fit(rest, prior.matrix, strength))
                    for fold, rest in zip(folds, rests, strict=True)
                )
            )
        assert cross_validate(folds, prior).ridge == ridge.RIDGES[int(np.argmin(errors))]


# n outputs of m inputs: as many as there are dimensions, fewer, and more.
SHAPES = [(4, 6, 1), (5, 5, 2), (7, 3, 2), (6, 1, 3), (9, 4, 1)]


@pytest.mark.parametrize(("n", "m", "groups"), SHAPES)
def test_the_outputs_of_a_map_lie_in_their_span(n: int, m: int, groups: int) -> None:
    block = np.random.default_rng(7).standard_normal((groups, n, m))
    basis, coordinates = span(block)
    r = min(n, m)
    assert basis.shape == (groups, n, r)
    assert coordinates.shape == (groups, r, m)
    np.testing.assert_allclose(basis @ coordinates, block, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        basis.transpose(0, 2, 1) @ basis, np.tile(np.eye(r), (groups, 1, 1)), atol=1e-12
    )
    assert is_identity(basis) == (n <= m)


def test_identities_are_told_from_what_is_almost_one() -> None:
    eye = np.tile(np.eye(3), (2, 1, 1))
    assert is_identity(eye)
    assert is_identity(np.broadcast_to(np.eye(1), (4, 1, 1)))
    assert not is_identity(eye[:, :2])
    assert not is_identity(eye[:, ::-1])
    eye[1, 2, 2] = np.nextafter(1, 2)
    assert not is_identity(eye)


def test_a_fold_has_no_say_in_the_ridge_of_the_others() -> None:
    errors = {1.0: [3.0, 3.0, 1.0], 0.1: [1.0, 4.0, 1.0], 10.0: [9.0, 4.0, 1.0]}
    choice = RidgeChoice(0.1, errors)
    assert [choice.without(fold) for fold in range(4)] == [1.0, 0.1, 0.1, 0.1]
    assert RidgeChoice(0.1, {10.0: [2.0], 0.1: [1.0]}).without(0) == 0.1
