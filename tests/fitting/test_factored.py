"""Nodes of a decomposed block become factors, and factors weights of the nodes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.fitting.factored import factorization_of, weights_of
from fskd_onnx.passes import ReplaceWeights, export
from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock, read_block
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from tests.helpers import build, linears, random_feeds, run

HEAD = "g (float[N,6,9,8] x) => (float[N,8,H,W] y)"
FORMS = {
    "k x 1, 1 x k": (
        "float[4,6,3,1] a, float[8,4,1,3] b, float[8] c",
        """h = Conv <pads = [1,0,1,0], strides = [2,1]> (x, a)
           y = Conv <pads = [0,1,0,1], strides = [1,2]> (h, b, c)""",
    ),
    "biases": (
        "float[4,6,3,3] a, float[4] d, float[8,4,1,1] b, float[8] c",
        """h = Conv <pads = [1,1,1,1], strides = [2,2]> (x, a, d)
           y = Conv (h, b, c)""",
    ),
    "dilation and stride": (
        "float[4,6,1,1] a, float[8,4,3,3] b, float[8] c",
        """h = Conv <strides = [2,2]> (x, a)
           y = Conv <pads = [2,2,2,2], dilations = [2,2]> (h, b, c)""",
    ),
    "grouped": (
        "float[12,3,3,3] a, float[8,12,1,1] b, float[8] c",
        """h = Conv <pads = [1,1,1,1], group = 2> (x, a)
           y = Conv (h, b, c)""",
    ),
    "two kernels": (
        "float[4,6,3,3] a, float[4] d, float[8,4,2,2] b, float[8] c",
        """h = Conv <strides = [2,2]> (x, a, d)
           y = Conv (h, b, c)""",
    ),
    "branches of other depth": (
        "float[6,1,3,3] a, float[8,6,1,1] b, float[8] c, float[8,6,1,1] e",
        """h = Conv <pads = [1,1,1,1], group = 6> (x, a)  p = Conv (h, b, c)
           q = Conv (x, e)
           y = Add (q, p)""",
    ),
}


def block_of(graph: gs.Graph) -> FactoredBlock:
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    block = read_block(views, "x", "y")
    assert block is not None
    return block


@pytest.mark.parametrize("form", FORMS)
def test_factors_have_the_kernel_of_their_nodes(form: str) -> None:
    weights, nodes = FORMS[form]
    block = block_of(gs.import_onnx(build(f"{HEAD} <{weights}> {{ {nodes} }}")))
    kernel = block.kernel.weights
    found = factorization_of(block).kernel
    np.testing.assert_allclose(found, kernel.reshape(len(found), -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_new_factors_are_new_weights_and_the_shift_is_kept(form: str) -> None:
    weights, nodes = FORMS[form]
    model = build(f"{HEAD} <{weights}> {{ {nodes} }}")
    graph = gs.import_onnx(model)
    block = block_of(graph)
    rng, factors = np.random.default_rng(1), factorization_of(block)
    for number, chain in enumerate(factors.chains):
        for index, factor in enumerate(chain):
            new = factor.with_matrix(rng.standard_normal(factor.matrix.shape))
            factors = factors.replaced(number, index, new)
    shift = rng.standard_normal(8)
    inner = {v.name: v.bias for v in block.factors if v.bias_constant is None or v.name == "h"}
    ReplaceWeights(weights_of(block, factors, shift)).run(graph)
    rewritten = export(graph, like=model)
    views = linears(rewritten)
    for name, bias in inner.items():
        np.testing.assert_array_equal(views[name].bias, bias)
    new_block = block_of(gs.import_onnx(rewritten))
    np.testing.assert_allclose(new_block.bias, shift, atol=1e-5)
    np.testing.assert_allclose(
        new_block.kernel.weights.reshape(8, -1), factors.kernel, rtol=1e-4, atol=1e-4
    )
    assert run(rewritten, random_feeds(rewritten))["y"].shape[1] == 8
