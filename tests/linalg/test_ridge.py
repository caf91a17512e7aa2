"""Closed forms against what they stand for, on both backends."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.linalg import ridge
from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import Affine, Moments, sum_moments
from fskd_onnx.linalg.ridge import (
    Family,
    Ridge,
    Solution,
    cross_validate,
    is_identity,
    is_sparse,
    span,
)

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


def weights(n: int = 4, m: int = 6, groups: int = 2, seed: int = 7) -> tuple[Floats, Floats]:
    """A block: its matrix and its bias."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((groups, n, m)), rng.standard_normal((groups, n))


def kernel(n: int = 4, m: int = 6) -> Family:
    return Family.kernel(*weights(n, m))


def fit(family: Family, sums: Moments, ridge: float) -> Affine:
    """Fit to moments of the captured regressors."""
    own = family.regress(sums)
    return family.problem(own).solver(ridge)(own)


def validate(folds: list[Moments], family: Family) -> Solution:
    return cross_validate(folds, family, np.arange(family.prior.shape[1]))


def test_a_ridge_is_the_least_squares_solution_with_rows_for_the_prior(solver: str) -> None:
    x, y = draw(0)
    prior = kernel().prior
    ridge = 0.3
    fitted = Ridge(Moments.of(x, y), prior).solver(ridge)(Moments.of(x, y))
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
    strong = Ridge(Moments.of(x, y), prior).solver(1e9)(Moments.of(x, y))
    np.testing.assert_allclose(strong.matrix, prior, atol=1e-6)
    weak = Ridge(Moments.of(x, y), prior).solver(1e-12)(Moments.of(x, y))
    assert Moments.of(x, y).error(weak) < 1e-6


def test_both_backends_give_the_same() -> None:
    x, y = draw(2, m=40, n=30, count=90)
    prior = np.random.default_rng(3).standard_normal((2, 30, 40))
    fits = []
    for name in SOLVERS:
        with solved_by(name):
            fits.append(Ridge(Moments.of(x, y), prior).solver(1e-3)(Moments.of(x, y)))
    for part in ("matrix", "shift"):
        one, other = (getattr(fit, part) for fit in fits)
        assert np.abs(one - other).max() <= 1e-9 * np.abs(one).max()


def test_a_system_without_a_factor_is_solved_all_the_same(
    solver: str, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = draw(4)
    broken = Moments.of(x, y)
    broken.gram[:] = np.diag([4.0, 3.0, 2.0, 1.0, 0.5, -6.0])  # rounding can make one negative
    broken.first_x[:] = 0
    with caplog.at_level(logging.INFO, "fskd_onnx.linalg.ridge"):
        fitted = Ridge(broken, np.zeros((2, 4, 6))).solver(1e-6)(broken)
    assert np.isfinite(fitted.matrix).all()
    assert "no Cholesky factor" in caplog.text


def test_dead_and_equal_regressors_leave_the_prior_alone(solver: str) -> None:
    x, y = draw(5)
    x[:, 0] = 0.0
    x[:, 2] = x[:, 1]
    family = kernel()
    fitted = Ridge(Moments.of(x, y), family.prior).solver(1e-6)(Moments.of(x, y))
    np.testing.assert_allclose(fitted.matrix[..., 0], family.prior[..., 0], atol=1e-9)
    change = fitted.matrix - family.prior
    np.testing.assert_allclose(change[..., 1], change[..., 2], rtol=1e-4, atol=1e-6)


def test_without_any_variance_only_the_shift_is_fitted(solver: str) -> None:
    x, y = np.ones((2, 6, 20)), np.full((2, 4, 20), 3.0)
    family = kernel()
    fitted = Ridge(Moments.of(x, y), family.prior).solver(1e-3)(Moments.of(x, y))
    np.testing.assert_array_equal(fitted.matrix, family.prior)
    assert Moments.of(x, y).error(fitted) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("noise", "weakest"), [(0.01, True), (30.0, False)])
def test_cross_validation_trusts_the_data_as_far_as_they_go(noise: float, weakest: bool) -> None:
    truth = np.random.default_rng(99).standard_normal((2, 4, 6)), np.full((2, 4), 5.0)
    family = kernel() if weakest else Family.kernel(*truth)
    folds = [Moments.of(*draw(seed, count=20, noise=noise)) for seed in range(5)]
    solution = validate(folds, family)
    assert (solution.ridge <= 1e-3) == weakest
    if weakest:
        assert solution.error_after < 1e-2 * solution.error_before
    assert solution.energy == pytest.approx(sum(fold.target_energy for fold in folds))
    unchanged = sum(fold.error(family.unchanged) for fold in folds)
    assert solution.error_before == pytest.approx(unchanged)
    held_out = 0.0
    for fold in folds:
        rest = sum_moments(folds) - fold
        held_out += fold.error(family.problem(rest).solver(solution.ridge)(rest))
    assert solution.error_after == pytest.approx(held_out)


def test_some_targets_of_a_family_are_tested_for_all() -> None:
    folds = [Moments.of(*draw(seed, count=40, n=5)) for seed in range(4)]
    block, bias = weights(n=5)
    rows = np.array([0, 2, 4])
    for family in (Family.kernel(block, bias), Family.pointwise(block, bias)):
        found = cross_validate([fold.of_targets(rows) for fold in folds], family, rows)
        parts = [family.regress(fold) for fold in folds]
        error = 0.0
        for part in parts:
            rest = sum_moments(parts) - part
            fitted = family.problem(rest).solver(found.ridge)(rest)
            error += part.of_targets(rows).error(fitted.of_targets(rows))
        assert found.error_after == pytest.approx(error)


@pytest.mark.parametrize("targets", [1, 2, 63, 64, 65, 500])
def test_tested_targets_are_spread_evenly(targets: int) -> None:
    rows = ridge.tested_targets(targets)
    assert len(rows) <= ridge._TESTED_TARGETS
    assert rows[0] == 0
    assert set(np.diff(rows)) <= {-(-targets // ridge._TESTED_TARGETS)}
    assert targets - rows[-1] <= -(-targets // ridge._TESTED_TARGETS)


def test_the_ridge_of_least_error_is_found_from_either_side() -> None:
    """The held-out error falls, then rises; walking downhill is as good as looking everywhere."""
    for noise in (0.001, 0.3, 3.0, 30.0):
        family = kernel()
        folds = [Moments.of(*draw(seed, count=12, noise=noise)) for seed in range(5)]
        errors = []
        for strength in ridge.RIDGES:
            rests = [sum_moments(folds) - fold for fold in folds]
            errors.append(
                sum(
                    fold.error(family.problem(rest).solver(strength)(rest))
                    for fold, rest in zip(folds, rests, strict=True)
                )
            )
        assert validate(folds, family).ridge == ridge.RIDGES[int(np.argmin(errors))]


# n outputs of m inputs: as many as there are dimensions, fewer, and more.
SHAPES = [(4, 6, 1), (5, 5, 2), (7, 3, 2), (6, 1, 3), (9, 4, 1)]


@pytest.mark.parametrize(("n", "m", "groups"), SHAPES)
def test_the_outputs_of_a_block_lie_in_their_span(n: int, m: int, groups: int) -> None:
    block, _ = weights(n, m, groups)
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


@pytest.mark.parametrize("captured", ["patches", "coordinates"])
@pytest.mark.parametrize(("n", "m", "groups"), SHAPES)
def test_a_pointwise_adapter_is_that_from_the_outputs(
    n: int, m: int, groups: int, captured: str
) -> None:
    block, bias = weights(n, m, groups)
    rng = np.random.default_rng(8)
    x = rng.standard_normal((groups, m, 200)) + 1
    y = rng.standard_normal((groups, n, m)) @ x + rng.standard_normal((groups, n, 200))
    outputs = block @ x + bias[..., np.newaxis]
    ridge, r = 0.01, min(n, m)

    eye = np.tile(np.eye(n), (groups, 1, 1))
    theirs = Moments.of(outputs, y)
    expected = Ridge(theirs, eye).solver(ridge)(theirs)

    if captured == "patches":
        family, sums = Family.pointwise(block, bias), Moments.of(x, y)
    else:
        basis, coordinates = span(block)
        family = Family.pointwise(basis, bias, orthonormal=True)
        sums = Moments.of(coordinates @ x, y)
    # The ridge is relative to the mean diagonal; of n numbers, n - r are zero now left out.
    adapter = fit(family, sums, ridge * r / n)
    assert adapter.matrix.shape == (groups, n, r)
    q = family.fused(adapter, eye)
    np.testing.assert_allclose(q, expected.matrix, rtol=0, atol=1e-9)
    # The family's regressors have no bias in them.
    shift = adapter.shift - np.einsum("gij,gj->gi", q, bias)
    np.testing.assert_allclose(shift, expected.shift, rtol=0, atol=1e-8)
    assert sums.error(family.lift(adapter)) == pytest.approx(theirs.error(expected))


def test_cross_validation_of_patches_is_that_of_outputs() -> None:
    x, y = draw(8)
    block, bias = weights()
    outputs = block @ x + bias[..., np.newaxis]
    halves = [slice(0, 100), slice(100, None)]
    one, other = (
        validate([Moments.of(values[..., half], y[..., half]) for half in halves], family)
        for values, family in (
            (x, Family.pointwise(block, bias)),
            (outputs, Family.kernel(np.tile(np.eye(4), (2, 1, 1)), np.zeros((2, 4)))),
        )
    )
    assert one.ridge == other.ridge
    for name in ("error_before", "error_after", "energy"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.moments.count == 200
    np.testing.assert_allclose(one.moments.cross, Moments.of(block @ x, y).cross, rtol=1e-9)


dimensions = st.integers(1, 6)


@given(dimensions, dimensions, st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
def test_what_is_fused_is_what_is_lifted(
    n: int, m: int, groups: int, orthonormal: bool, seed: int
) -> None:
    """The fused block gives what the adapter says of the captured regressors."""
    rng = np.random.default_rng(seed)
    block, bias = weights(n, m, groups, seed)
    pointwise = Family.pointwise(block, bias)
    read = np.tile(np.eye(m), (groups, 1, 1))  # captured regressors, as a map of the patches
    if orthonormal:
        basis, read = span(block)
        pointwise = Family.pointwise(basis, bias, orthonormal=True)
    families = [(pointwise, read)]
    if not orthonormal:
        families.append((Family.kernel(block, bias), read))
        turn = np.linalg.qr(rng.standard_normal((groups, m, m)))[0][..., : max(1, m - 1)]
        families.append((Family.kernel(block @ turn, bias, turn), turn.transpose(0, 2, 1)))
    for family, reading in families:
        step = rng.standard_normal(family.prior.shape)
        adapter = Affine(family.prior + step, rng.standard_normal((groups, n)))
        of_kernels = family.name == "kernel"
        fused = family.fused(adapter, block)
        # What the regressors do not span is left as it is.
        patches = rng.standard_normal((groups, m, 5))
        spanned = reading.transpose(0, 2, 1) @ (reading @ patches)
        spanned = spanned if of_kernels and family.basis is not None else patches
        lifted = family.lift(adapter)
        np.testing.assert_allclose(
            fused @ spanned, lifted.matrix @ (reading @ spanned), rtol=0, atol=1e-9
        )
        np.testing.assert_array_equal(lifted.shift, adapter.shift)
        # The ridge weighs the change by its own norm: of the kernel, or of Q.
        whole = block if of_kernels else np.tile(np.eye(n), (groups, 1, 1))
        change = family.fused(adapter, whole) - whole
        assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(step))


@given(dimensions, dimensions, st.integers(1, 3), st.integers(0, 10**6))
def test_unchanged_is_the_block_as_it_is(n: int, m: int, groups: int, seed: int) -> None:
    block, bias = weights(n, m, groups, seed)
    basis, coordinates = span(block)
    for family, reading in (
        (Family.pointwise(block, bias), None),
        (Family.pointwise(basis, bias, orthonormal=True), coordinates),
        (Family.kernel(block, bias), None),
    ):
        np.testing.assert_array_equal(family.fused(family.unchanged, block), block)
        lifted = family.lift(family.unchanged)
        matrix = lifted.matrix if reading is None else lifted.matrix @ reading
        np.testing.assert_allclose(matrix, block, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(lifted.shift, bias)


def test_a_kernel_in_a_subspace_leaves_the_rest_alone() -> None:
    block, bias = weights()
    basis = np.tile(np.eye(6)[:, [1, 4]], (2, 1, 1))
    family = Family.kernel(block[..., [1, 4]], bias, basis)
    x, y = draw(9)
    adapter = fit(family, Moments.of(x[:, [1, 4]], y), 1e-3)
    fused = family.fused(adapter, block)
    np.testing.assert_array_equal(fused[..., [0, 2, 3, 5]], block[..., [0, 2, 3, 5]])
    np.testing.assert_allclose(fused[..., [1, 4]], adapter.matrix, rtol=1e-12)


def test_a_sparse_kernel_is_solved_on_its_support(solver: str) -> None:
    x, y = draw(10)
    block, bias = weights()
    block *= np.random.default_rng(11).random(block.shape) < 0.4
    block[0, 1] = 0.0  # a row without any weight
    block[1, 2] = block[1, 3] * 2  # two rows that share a support
    assert is_sparse(block)
    family = Family.kernel(block, bias, sparse=True)
    sums = Moments.of(x, y)
    fitted = fit(family, sums, 0.3)
    assert not fitted.matrix[block == 0].any()
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    strength = 0.3 * np.mean([np.trace(part @ part.T) / len(part) for part in dx])
    for group, row in np.ndindex(2, 4):
        kept = np.flatnonzero(block[group, row])
        rows = np.vstack([dx[group, kept].T, np.sqrt(strength) * np.eye(len(kept))])
        targets = np.append(dy[group, row], np.sqrt(strength) * block[group, row, kept])
        expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
        np.testing.assert_allclose(fitted.matrix[group, row, kept], expected, rtol=1e-9)
    # Of some targets only, as they are tested.
    rows = np.array([0, 3])
    own = family.problem(sums, rows).solver(0.3)(sums.of_targets(rows))
    np.testing.assert_allclose(own.matrix, fitted.matrix[:, rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("zeros", "sparse"), [(0, False), (5, False), (6, True), (12, True)])
def test_half_zeros_are_sparse(zeros: int, sparse: bool) -> None:
    matrix = np.ones((1, 3, 4))
    matrix.reshape(-1)[:zeros] = 0
    assert is_sparse(matrix) == sparse
