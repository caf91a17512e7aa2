"""Weights, attributes and functions that do not fit together are told, and those that do pass."""

from __future__ import annotations

import onnx
import pytest

from fskd_onnx.serialization.node_check import check_functions, check_linear_nodes
from tests.helpers import build

TEXT = """g (float[N,4,5,5] x) => (float[N,4,5,5] y)
    <float[6,2,3,3] w, float[6] b, float[5] d> { y = Relu (x) }"""


def network(nodes: str) -> onnx.ModelProto:
    """A model with the weights of the text and other nodes, which nobody has checked."""
    model = build(TEXT)
    parsed = onnx.parser.parse_graph(f"g (float[N,4,5,5] x) => (float[N,6,3,3] y) {{ {nodes} }}")
    del model.graph.node[:]
    model.graph.node.extend(parsed.node)
    return model


@pytest.mark.parametrize(
    "nodes",
    [
        "[n] y = Conv <group = 2> (x, w, b)",
        '[n] y = Conv <group = 2, kernel_shape = [3,3], auto_pad = "SAME_UPPER"> (x, w)',
        "c = Identity (w) [n] y = Conv <group = 2> (x, c, b)",
        "c = Softmax (w) [n] y = Conv <group = 5> (x, c, b)",
    ],
)
def test_what_fits_passes(nodes: str) -> None:
    check_linear_nodes(network(nodes))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("y = Conv <group = 0> (x, w)", r"node 'y' \(Conv\) has the group 0"),
        ("[n] y = Conv <group = 4> (x, w)", "node 'n' .* the group 4, .* the 6 of 'w'"),
        ("[n] y = Conv <kernel_shape = [5,5]> (x, w)", r"kernel_shape \[5, 5\], .* have \[3, 3\]"),
        ("[n] y = Conv (x, w, d)", r"a bias 'd' of shape \(5,\), and 6 output channels"),
        ("[n] y = ConvTranspose (x, w, b)", r"a bias 'b' of shape \(6,\), and 2 output channels"),
    ],
)
def test_what_does_not_fit_is_named(node: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_linear_nodes(network(node))


def test_functions_that_call_others_pass() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[N] x) => (float[N] y)
        { y = own.twice (x) }
        <opset_import: ["": 17, "own": 1], domain: "own"> twice (a) => (b)
        { c = own.once (a) b = own.once (c) }
        <opset_import: ["": 17], domain: "own"> once (a) => (b) { b = Relu (a) }"""
    model = onnx.parser.parse_model(text)
    check_functions(model)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "twice", "own"
    with pytest.raises(ValueError, match="function 'twice' calls itself"):
        check_functions(model)
    model.functions[1].node[0].op_type = "thrice"
    with pytest.raises(ValueError, match="function 'once' calls 'thrice' of 'own', which"):
        check_functions(model)
