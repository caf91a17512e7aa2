"""k x k to few channels, then 1 x 1, and matrices as two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import ChannelSvd
from tests.helpers import assert_same_function, build, initializers, linears, ops
from tests.passes.factorized import MATRICES
from tests.passes.torch_chains import assert_gives, convolutions, reference


@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_the_reference(divisor: int, stride: int) -> None:
    conv, chain = reference("channel", divisor, stride)
    rank = convolutions(chain)[0].out_channels
    assert_gives(ChannelSvd({"n": rank}), conv, chain)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_a_matrix_of_a_rank_stays(outputs: int, inputs: int, rank: int, seed: int) -> None:
    if rank >= min(inputs, outputs):
        return
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((inputs, rank)) @ rng.standard_normal((rank, outputs))
    model = build(
        f"g (double[N,{inputs}] x) => (double[N,{outputs}] z) <double[{inputs},{outputs}] w> "
        "{ [n] z = MatMul (x, w) }",
        {"w": matrix},
    )
    assert_same_function(ChannelSvd({"n": rank})(model).model, model)


@pytest.mark.parametrize("case", MATRICES)
def test_a_matrix_becomes_two_and_keeps_its_bias(case: str) -> None:
    model = MATRICES[case].model()
    before, after = ops(model), ops(ChannelSvd({"n": 3})(model).model)
    # In front of a Gemm stands a MatMul: it has no bias to add.
    assert after == {**before, "MatMul": before.get("MatMul", 0) + 1}
    stored = initializers(ChannelSvd({"n": 3})(model).model)
    for name, value in initializers(model).items():
        if name != "w":
            np.testing.assert_array_equal(stored[name], value)


def test_a_factor_of_a_gemm_goes_into_its_weights() -> None:
    model = MATRICES["factors of Gemm"].model()
    first, last = linears(ChannelSvd({"n": 3})(model).model).values()
    assert last.node.attrs == {"transB": 1, "alpha": 1.0, "beta": 2.0}
    assert tuple(last.weight.shape) == (6, 3)
    assert tuple(first.weight.shape) == (5, 3)
