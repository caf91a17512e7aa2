"""Which linear nodes are one linear node, and what that is."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import ComposeChains
from fskd_onnx.passes.analysis.factored_blocks import find_chains, read_block
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.errors import PreconditionError
from tests.helpers import assert_same_function, build, linears, ops

HEAD = "g (float[N,6,9,8] x) => (float[N,8,H,W] y)"
# Weights and nodes of chains that are one node each, and the kernel of that.
CHAINS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "k x 1, 1 x k": (
        "float[4,6,3,1] a, float[8,4,1,3] b, float[8] c",
        """h = Conv <pads = [1,0,1,0], strides = [2,1]> (x, a)
           y = Conv <pads = [0,1,0,1], strides = [1,2]> (h, b, c)""",
        (8, 6, 3, 3),
    ),
    "a bias in front of no padding": (
        "float[4,6,3,3] a, float[4] d, float[8,4,1,1] b, float[8] c",
        """h = Conv <pads = [1,1,1,1], strides = [2,2]> (x, a, d)
           y = Conv (h, b, c)""",
        (8, 6, 3, 3),
    ),
    "dilation and stride": (
        "float[4,6,1,1] a, float[8,4,3,3] b",
        """h = Conv <strides = [2,2]> (x, a)
           y = Conv <pads = [2,2,2,2], dilations = [2,2]> (h, b)""",
        (8, 6, 3, 3),
    ),
    "three": (
        "float[4,6,1,1] a, float[3,4,3,3] b, float[8,3,1,1] c",
        """h = Conv (x, a)
           i = Conv <pads = [1,1,1,1]> (h, b)
           y = Conv (i, c)""",
        (8, 6, 3, 3),
    ),
    "depthwise, pointwise": (
        "float[12,1,3,3] a, float[8,12,1,1] b",
        """h = Conv <pads = [1,1,1,1], group = 6> (x, a)
           y = Conv (h, b)""",
        (8, 6, 3, 3),
    ),
    "two kernels without padding": (
        "float[4,6,3,3] a, float[4] d, float[8,4,2,2] b",
        """h = Conv <strides = [2,2]> (x, a, d)
           y = Conv (h, b)""",
        (8, 6, 5, 5),
    ),
}
# What is in the way of one node.
APART = {
    "padding that the first would see": (
        "float[4,6,3,3] a, float[8,4,3,3] b",
        """h = Conv <pads = [1,1,1,1]> (x, a)
           y = Conv <pads = [1,1,1,1]> (h, b)""",
    ),
    "a bias in front of padding": (
        "float[4,6,1,1] a, float[4] d, float[8,4,3,3] b",
        """h = Conv (x, a, d)
           y = Conv <pads = [1,1,1,1]> (h, b)""",
    ),
    "an activation": (
        "float[4,6,1,1] a, float[8,4,1,1] b",
        "h = Conv (x, a)  r = Relu (h)  y = Conv (r, b)",
    ),
    "another reader": (
        "float[4,6,1,1] a, float[8,4,1,1] b, float[8,4,1,1] c",
        "h = Conv (x, a)  p = Conv (h, b)  q = Relu (h)  r = Conv (q, c)  y = Add (p, r)",
    ),
    "weights that another node reads": (
        "float[6,6,1,1] a, float[8,6,1,1] b",
        "h = Conv (x, a)  r = Relu (h)  i = Conv (r, a)  y = Conv (i, b)",
    ),
    "groups of the composed kernel": (
        "float[6,3,1,1] a, float[8,3,1,1] b",
        "h = Conv <group = 2> (x, a)  y = Conv <group = 2> (h, b)",
    ),
}


def graph_of(weights: str, nodes: str) -> gs.Graph:
    return gs.import_onnx(build(f"{HEAD} <{weights}> {{ {nodes} }}"))


def chains_of(graph: gs.Graph) -> dict[str, list[str]]:
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    found = find_chains(graph, views, nodes_in_bodies(graph))
    return {name: [v.name for v in block.factors] for name, block in found.items()}


@pytest.mark.parametrize("form", CHAINS)
def test_a_chain_is_one_node(form: str) -> None:
    weights, nodes, shape = CHAINS[form]
    model = build(f"{HEAD} <{weights}> {{ {nodes} }}")
    chain = tuple(chains_of(gs.import_onnx(model))["y"])
    result = ComposeChains([chain])(model)
    assert ops(result.model) == {"Conv": 1}
    assert_same_function(model, result.model)
    (composed,) = linears(result.model).values()
    assert (composed.name, tuple(composed.weight.shape)) == ("y", shape)
    views = [view for view in find_linear(gs.import_onnx(model)) if isinstance(view, Linear)]
    block = read_block(views, "x", "y")
    assert block is not None
    np.testing.assert_allclose(block.kernel.rows.reshape(shape), composed.weight.values, rtol=1e-6)
    np.testing.assert_allclose(block.bias, composed.bias, rtol=1e-5, atol=1e-6)


def test_matrices_with_biases_are_one() -> None:
    model = build(
        """g (float[N,3,6] x) => (float[N,3,8] y) <float[6,2] a, float[2] d, float[2,8] b> {
           p = MatMul (x, a)  h = Add (p, d)  y = MatMul (h, b) }"""
    )
    (chain,) = chains_of(gs.import_onnx(model)).values()
    result = ComposeChains([tuple(chain)])(model)
    assert ops(result.model) == {"MatMul": 1, "Add": 1}
    assert_same_function(model, result.model)


@pytest.mark.parametrize("form", APART)
def test_what_is_not_one_linear_node_stays_apart(form: str) -> None:
    graph = graph_of(*APART[form])
    assert "y" not in chains_of(graph)
    names = [view.name for view in find_linear(graph)][:2]
    with pytest.raises(PreconditionError, match="a chain cannot be composed"):
        ComposeChains([tuple(names)]).run(graph)


def test_a_sparse_kernel_is_no_factor() -> None:
    weights, nodes, _ = CHAINS["k x 1, 1 x k"]
    sparse = np.where(np.arange(72) % 4 == 0, 1.0, 0.0)
    model = build(f"{HEAD} <{weights}> {{ {nodes} }}", {"a": sparse})
    assert not chains_of(gs.import_onnx(model))


def test_a_sum_of_chains_is_read_back() -> None:
    graph = graph_of(
        "float[6,1,3,3] a, float[8,6,1,1] b, float[8] c, float[6,1,3,3] d, float[8,6,1,1] e",
        """h = Conv <pads = [1,1,1,1], group = 6> (x, a)  p = Conv (h, b, c)
           i = Conv <pads = [1,1,1,1], group = 6> (x, d)  q = Conv (i, e)
           y = Add (p, q)""",
    )
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    block = read_block(views, "x", "y")
    assert block is not None
    assert [[v.name for v in chain] for chain in block.chains] == [["h", "p"], ["i", "q"]]
    assert block.kernel.weights.shape == (1, 8, 6, 3, 3)
    assert read_block(views, "x", "p") is not None
    assert read_block(views, "h", "y") is None
