"""k x k depthwise, then 1 x 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import Decouple
from tests.helpers import assert_same_function, build, linears
from tests.passes.torch_chains import assert_gives, reference


@pytest.mark.parametrize("terms", [1, 2, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_reference(terms: int, stride: int) -> None:
    conv, chain = reference("decouple", 0, stride, terms)
    assert_gives(Decouple({"n": terms}), conv, chain)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_a_kernel_of_so_many_terms_stays(terms: int, inputs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depthwise = rng.standard_normal((inputs, terms, 3, 2))
    kernel = np.einsum("nct,ctab->ncab", rng.standard_normal((6, inputs, terms)), depthwise)
    model = build(
        f"g (double[N,{inputs},7,6] x) => (double[N,6,A,B] z) <double[6,{inputs},3,2] w> "
        "{ [n] z = Conv <pads = [1,0,1,1], strides = [1,2]> (x, w) }",
        {"w": kernel},
    )
    assert_same_function(Decouple({"n": terms})(model).model, model)


def test_all_terms_are_one_depthwise_node() -> None:
    model = build(
        "g (float[N,5,9,8] x) => (float[N,6,A,B] z) <float[6,5,3,3] w> "
        "{ [n] z = Conv <pads = [1,1,1,1]> (x, w) }"
    )
    depthwise, pointwise = linears(Decouple({"n": 3})(model).model).values()
    assert depthwise.groups == 5
    assert tuple(depthwise.weight.shape) == (15, 1, 3, 3)
    assert tuple(pointwise.weight.shape) == (6, 15, 1, 1)
