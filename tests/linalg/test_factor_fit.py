"""The best factors for moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factor_fit import fit_factors
from fskd_onnx.linalg.factor_step import Target
from fskd_onnx.linalg.factorization import Factorization
from tests.factors import FORMS, drawn, factor


def gram_of(size: int, seed: int) -> Array:
    columns = np.random.default_rng(seed).standard_normal((size, 3 * size))
    return np.asarray(columns @ columns.T / columns.shape[1])


def solving(gram: Array) -> Callable[[Array], Array]:
    return lambda right: np.asarray(np.linalg.solve(gram, right.T).T, np.float64)


def target_of(kernel: Array, gram: Array) -> Target:
    """Give the moments of what a kernel makes of patches, without noise."""
    return Target(gram, kernel @ gram, float(np.sum((kernel @ gram) * kernel)))


@pytest.mark.parametrize("form", FORMS)
def test_factors_of_a_kernel_that_they_can_be_are_found_from_any_start(form: str) -> None:
    truth, start = drawn(form, 1), drawn(form, 2)
    gram = gram_of(truth.kernel.shape[1], 3)
    target = target_of(truth.kernel, gram)
    found = start
    for _ in range(4):
        found = fit_factors(found, target, solving(gram))
    # Branches are solved for one after another, which is slow where they can stand for each other.
    left = 1e-6 if len(start.chains) == 1 else 1e-2
    assert target.error(found.kernel) < left * target.energy
    for chain, given_chain in zip(found.chains, start.chains, strict=True):
        for one, other in zip(chain, given_chain, strict=True):
            assert one.weights.shape == other.weights.shape
            assert not one.weights[~one.mask].any()


@settings(max_examples=30, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 2**16))
def test_a_fit_is_no_worse_than_its_start(form: str, seed: int) -> None:
    start = drawn(form, seed)
    gram = gram_of(start.kernel.shape[1], seed)
    kernel = np.random.default_rng(seed).standard_normal(start.kernel.shape)
    target = target_of(kernel, gram)
    found = fit_factors(start, target, solving(gram))
    again = fit_factors(found, target, solving(gram), warm=True)
    slack = 1e-6 * target.energy
    assert target.error(found.kernel) <= target.error(start.kernel) + slack
    assert target.error(again.kernel) <= target.error(found.kernel) + slack


@pytest.mark.parametrize("form", ["k x k, 1 x 1", "matrices"])
def test_pairs_of_low_rank_are_the_best_of_their_rank(form: str) -> None:
    start = drawn(form, 4)
    n, p = start.kernel.shape
    gram, rank = gram_of(p, 5), len(start.chains[0][0].weights)
    kernel = np.random.default_rng(6).standard_normal((n, p))
    target = target_of(kernel, gram)
    found = fit_factors(start, target, solving(gram))
    # Eckart and Young, of the kernel on whitened patches.
    values = np.linalg.svd(kernel @ np.linalg.cholesky(gram), compute_uv=False)
    assert target.error(found.kernel) == pytest.approx(float(np.sum(values[rank:] ** 2)), rel=1e-8)


def test_a_rank_above_the_channels_leaves_the_rest_at_zero() -> None:
    wide = Factorization(((factor(12, 6, ()), factor(9, 12, ())),), ((),), ())
    gram = gram_of(6, 7)
    kernel = np.random.default_rng(8).standard_normal((9, 6))
    target = target_of(kernel, gram)
    found = fit_factors(wide, target, solving(gram))
    assert target.error(found.kernel) < 1e-9 * target.energy


def test_dead_inputs_leave_finite_factors() -> None:
    block = drawn("k x 1, 1 x k", 9)
    gram = np.zeros((54, 54))
    gram[:9, :9] = gram_of(9, 10)
    kernel = np.random.default_rng(11).standard_normal((9, 54))
    ridge = 1e-3 * np.eye(54)
    target = target_of(kernel, gram + ridge)
    found = fit_factors(block, target, solving(gram + ridge))
    assert all(np.isfinite(f.weights).all() for chain in found.chains for f in chain)
    assert target.error(found.kernel) < target.error(block.kernel)
