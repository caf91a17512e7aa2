"""1 x 1 to few channels, k x k among few, 1 x 1 from few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import Tucker
from tests.helpers import assert_same_function, build, linears
from tests.passes.torch_chains import assert_gives, convolutions, reference


@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_reference(divisor: int, stride: int) -> None:
    conv, chain = reference("tucker", divisor, stride)
    first, middle, _ = convolutions(chain)
    assert_gives(Tucker({"n": (first.out_channels, middle.out_channels)}), conv, chain)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_a_kernel_of_its_ranks_stays(inner: int, outer: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    into, out = rng.standard_normal((inner, 5)), rng.standard_normal((6, outer))
    kernel = np.einsum("no,oiab,ic->ncab", out, rng.standard_normal((outer, inner, 3, 3)), into)
    model = build(
        "g (double[N,5,7,6] x) => (double[N,6,A,B] z) <double[6,5,3,3] w> "
        "{ [n] z = Conv <pads = [1,1,1,1], strides = [2,1]> (x, w) }",
        {"w": kernel},
    )
    assert_same_function(Tucker({"n": (inner, outer)})(model).model, model)


def test_the_middle_node_strides_and_pads() -> None:
    model = build(
        "g (float[N,5,9] x) => (float[N,6,A] z) <float[6,5,3] w> "
        "{ [n] z = Conv <pads = [2,1], strides = [2], dilations = [2]> (x, w) }"
    )
    first, middle, last = linears(Tucker({"n": (2, 3)})(model).model).values()
    assert [v.kernel_shape for v in (first, middle, last)] == [(1,), (3,), (1,)]
    assert (middle.node.attrs["pads"], middle.node.attrs["strides"]) == ([2, 1], [2])
    assert all(v.node.attrs["pads"] == [0, 0] for v in (first, last))
