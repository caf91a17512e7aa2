"""Both backends give float64, whatever comes in."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.linalg.backends import BACKENDS, Array, Backend, backend, solved_by
from fskd_onnx.options import SolverName


@pytest.fixture(params=BACKENDS)
def algebra(request: pytest.FixtureRequest) -> Iterator[Backend]:
    with solved_by(request.param):
        yield backend()


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def positive(seed: int, n: int = 12) -> Array:
    root = draw(seed, n, 3 * n)
    return root @ root.T


@pytest.mark.parametrize("types", [(np.float32, np.float32), (np.float64, np.float32)])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_product_is_taken_in_float64(
    algebra: Backend, shape: tuple[int, ...], types: tuple[type[np.floating], ...]
) -> None:
    # Far from zero, so that float32 would lose what is left of the difference.
    a, b = ((draw(seed, *shape, 5, 900) + 100).astype(types[seed]) for seed in (0, 1))
    found = algebra.multiply(a, b[..., :4, :])
    expected = np.einsum("...ik,...jk->...ij", np.float64(a), np.float64(b[..., :4, :]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_of_an_array_with_itself(algebra: Backend, dtype: type[np.floating]) -> None:
    a = (draw(2, 2, 40, 300) + 10).astype(dtype)
    found = algebra.multiply(a, a)
    expected = np.einsum("gik,gjk->gij", np.float64(a), np.float64(a))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found, algebra.multiply(a, a.copy()), rtol=1e-12)
    np.testing.assert_allclose(found, np.swapaxes(found, 1, 2), rtol=1e-14)


def test_views_are_multiplied_as_they_are(algebra: Backend) -> None:
    whole = draw(3, 2, 8, 60)
    a, b = whole[:, ::2, ::3], whole[:, 1::2, ::-3]
    np.testing.assert_allclose(
        algebra.multiply(a, b), np.einsum("gik,gjk->gij", a, b), rtol=1e-11, atol=1e-12
    )


def test_operands_stay_as_they_are(algebra: Backend) -> None:
    matrix, right = positive(4), draw(5, 3, 12)
    before = matrix.copy(), right.copy()
    solve = algebra.cholesky(matrix, 0.5)
    assert solve is not None
    solve(right)
    algebra.pseudo_inverse(matrix)
    algebra.multiply(right, right)
    np.testing.assert_array_equal(matrix, before[0])
    np.testing.assert_array_equal(right, before[1])


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_a_factor_solves_from_the_right(algebra: Backend, rows: int) -> None:
    matrix, right = positive(6), draw(7, rows, 12)
    solve = algebra.cholesky(matrix)
    assert solve is not None
    found = solve(right)
    assert found.dtype == np.float64
    assert found.shape == right.shape
    np.testing.assert_allclose(found @ matrix, right, rtol=1e-9, atol=1e-11)
    shifted = algebra.cholesky(matrix, 0.5)
    assert shifted is not None
    np.testing.assert_allclose(
        shifted(right) @ (matrix + 0.5 * np.eye(12)), right, rtol=1e-9, atol=1e-11
    )


def test_a_stack_of_factors_solves_each_for_its_own(algebra: Backend) -> None:
    matrices, right = np.stack([positive(seed) for seed in (6, 7, 8)]), draw(9, 3, 5, 12)
    together = algebra.cholesky_all(matrices)
    assert together is not None
    found = together(right)
    for group, matrix in enumerate(matrices):
        apart = algebra.cholesky(matrix)
        assert apart is not None
        np.testing.assert_allclose(found[group], apart(right[group]), rtol=1e-9, atol=1e-12)


def test_what_has_no_factor_is_none(algebra: Backend) -> None:
    broken = np.diag([2.0, 1.0, -1e-3])
    assert algebra.cholesky(broken) is None
    assert algebra.cholesky_all(np.stack([np.eye(3), broken])) is None


def test_a_pseudo_inverse_inverts_where_it_can(algebra: Backend) -> None:
    matrix = positive(8)
    np.testing.assert_allclose(algebra.pseudo_inverse(matrix) @ matrix, np.eye(12), atol=1e-9)
    basis = np.linalg.qr(draw(9, 6, 6))[0]
    singular = (basis * [5.0, 3.0, 1.0, -2.0, 0.0, 0.0]) @ basis.T
    expected = (basis * [1 / 5, 1 / 3, 1.0, -1 / 2, 0.0, 0.0]) @ basis.T
    found = algebra.pseudo_inverse((singular + singular.T) / 2)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_backend_holds_inside_its_block_only() -> None:
    outside = backend()
    with solved_by("torch"):
        torch = backend()
        with solved_by("numpy"):
            assert type(backend()) is type(outside)
        assert backend() is torch is not outside
    assert backend() is outside
    with pytest.raises(ZeroDivisionError), solved_by("torch"):
        _ = 1 / 0
    assert backend() is outside


def test_every_solver_has_a_backend() -> None:
    assert set(BACKENDS) == set(SolverName)


def test_torch_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    expected = pytest.raises(FskdError, match=r"--solver torch needs PyTorch.*--solver numpy")
    with expected, solved_by("torch"):
        pass
    with solved_by("numpy"):
        pass
