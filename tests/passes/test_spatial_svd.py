"""k x 1, then 1 x k."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import SpatialSvd
from tests.helpers import Array, assert_same_function, build, linears
from tests.passes.torch_chains import assert_gives, convolutions, reference


@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_reference(divisor: int, stride: int) -> None:
    conv, chain = reference("spatial", divisor, stride)
    rank = convolutions(chain)[0].out_channels
    assert_gives(SpatialSvd({"n": rank}), conv, chain)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_a_kernel_of_a_rank_stays(outputs: int, inputs: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns, rows = rng.standard_normal((rank, inputs, 3)), rng.standard_normal((outputs, rank, 2))
    if rank >= min(inputs * 3, outputs * 2):
        return
    kernel = np.einsum("rca,nrb->ncab", columns, rows)
    model = convolution(outputs, inputs, kernel)
    assert_same_function(SpatialSvd({"n": rank})(model).model, model)


def convolution(outputs: int, inputs: int, kernel: Array) -> onnx.ModelProto:
    return build(
        f"g (double[N,{inputs},7,6] x) => (double[N,{outputs},A,B] z) "
        f"<double[{outputs},{inputs},3,2] w> {{ "
        "[n] z = Conv <pads = [1,0,1,1], strides = [1,2]> (x, w) }",
        {"w": kernel},
    )


def test_the_first_node_moves_along_the_first_axis_and_the_last_along_the_others() -> None:
    model = build(
        "g (float[N,4,5,6,7] x) => (float[N,6,A,B,C] z) <float[6,4,3,2,5] w> {"
        "[n] z = Conv <strides = [2,3,1], dilations = [2,1,1], pads = [1,2,3,4,5,6]> (x, w) }"
    )
    first, last = linears(SpatialSvd({"n": 4})(model).model).values()
    assert (first.kernel_shape, last.kernel_shape) == ((3, 1, 1), (1, 2, 5))
    assert first.node.attrs["strides"] == [2, 1, 1]
    assert last.node.attrs["strides"] == [1, 3, 1]
    assert first.node.attrs["dilations"] == [2, 1, 1]
    assert first.node.attrs["pads"] == [1, 0, 0, 4, 0, 0]
    assert last.node.attrs["pads"] == [0, 2, 3, 0, 5, 6]
