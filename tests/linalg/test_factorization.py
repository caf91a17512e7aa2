"""Factors of kernels: products, and what they see of patches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fskd_onnx.linalg.factorization import apart, side_by_side
from tests.factors import CHANNELS, FORMS, WIDTH, drawn, factor


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_is_what_its_last_factors_make_of_what_they_see(form: str) -> None:
    block = drawn(form, 0)
    assert block.kernel.shape == (WIDTH, CHANNELS * block.taps)
    seen = block.last_patches.of(np.eye(CHANNELS * block.taps))
    np.testing.assert_allclose(block.last_patches.matrix, seen, atol=1e-12)
    np.testing.assert_allclose(block.last_matrix @ seen, block.kernel, atol=1e-12)
    same = block.with_last(block.last_matrix)
    np.testing.assert_array_equal(same.kernel, block.kernel)


def test_a_product_meets_where_offsets_add_up() -> None:
    rng = np.random.default_rng(0)
    first, second = factor(2, 3, (2,)), factor(4, 2, (3,))
    first = replace(first, weights=rng.standard_normal(first.weights.shape))
    second = replace(second, weights=rng.standard_normal(second.weights.shape))
    product = second.behind(first)
    assert product.offsets.ravel().tolist() == [0, 1, 2, 3]
    for n, c in itertools.product(range(4), range(3)):
        expected = sum(np.convolve(second.weights[n, m], first.weights[m, c]) for m in range(2))
        np.testing.assert_allclose(product.weights[n, c], expected, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_like_pairs_that_are_summed_are_one_pair(form: str) -> None:
    block = drawn(form, 1)
    wide = side_by_side(block)
    assert (wide is not None) == (form == "like branches")
    if wide is not None:
        assert len(wide.chains) == 1
        np.testing.assert_allclose(wide.kernel, block.kernel, atol=1e-12)
        again = apart(wide, block)
        for one, other in zip(again.chains, block.chains, strict=True):
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_array_equal(mine.weights, theirs.weights)
