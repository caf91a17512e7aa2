"""Einsums and matrices on the left become MatMul or Conv, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.rewrite_products import RewriteProducts
from tests.helpers import assert_same_function, build, linears, ops, random_feeds, run


def einsum(equation: str, inputs: str, weight: str) -> str:
    return f"""g (float[N,4,5] x) => (float[N,B,C] z) <float{weight} w> {{
        z = Einsum <equation = "{equation}"> ({inputs})
    }}"""


# Its equation, its inputs, the weight as stored, and what it becomes.
EINSUMS = [
    ("btc,cd->btd", "x, w", "[5,6]", "MatMul"),
    ("btc, dc -> btd", "x, w", "[6,5]", "MatMul"),
    ("...c,dc->...d", "x, w", "[6,5]", "MatMul"),
    ("cd,btc->btd", "w, x", "[5,6]", "MatMul"),
    ("bct,dc->bdt", "x, w", "[6,4]", "Conv"),
    ("cd,bct->bdt", "w, x", "[4,6]", "Conv"),
    ("btc,cd->bdt", "x, w", "[5,6]", "Einsum"),
    ("btc,cc->btc", "x, w", "[5,5]", "Einsum"),
    ("btc,tc->btc", "x, w", "[4,5]", "Einsum"),
    ("bct,bd->dct", "x, w", "[3,6]", "Einsum"),
]


@pytest.mark.parametrize(("equation", "inputs", "weight", "op"), EINSUMS)
def test_einsum(equation: str, inputs: str, weight: str, op: str) -> None:
    model = build(einsum(equation, inputs, weight))
    result = RewriteProducts()(model)
    assert ops(result.model) == {op: 1}
    assert result.changed == (op != "Einsum")
    found, wanted = (run(m, random_feeds(model))["z"] for m in (result.model, model))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not RewriteProducts()(result.model).changed


LEFT = """g ({t}[N,4,5] x) => ({t}[N,6,5] z) <{t}[6,4] w, {t}[6,1] b> {{
    y = MatMul (w, x)
    z = Add (y, b)
}}"""
BETWEEN = """g ({t}[N,{more}5,4] x) => ({t}[N,{more}5,6] z) <{t}[6,4] w, {t}[6,1] b> {{
    t = Transpose <perm = {perm}> (x)
    y = MatMul (w, t)
    {add}
    z = Transpose <perm = {perm}> (a)
}}"""


def test_a_matrix_on_the_left_is_a_convolution() -> None:
    model = build(LEFT.format(t="float"))
    result = RewriteProducts()(model)
    assert ops(result.model) == {"Conv": 1, "Add": 1}
    assert_same_function(model, result.model)
    [linear] = linears(result.model).values()
    assert linear.shape == (1, 6, 4)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_it_stays_in_types_that_are_not_convolved(kind: str) -> None:
    assert not RewriteProducts()(build(LEFT.format(t=kind))).changed


@pytest.mark.parametrize("add", ["a = Add (y, b)", "a = Identity (y)", "a = Add (b, y)"])
@pytest.mark.parametrize(("more", "perm"), [("", "[0,2,1]"), ("3,", "[0,1,3,2]")])
def test_between_transposes_it_goes_to_the_right(more: str, perm: str, add: str) -> None:
    text = BETWEEN.format(t="float", more=more, perm=perm, add=add)
    if "Identity" in add:
        text = text.replace("a = Identity (y)", "").replace("(a)", "(y)")
    model = build(text)
    result = RewriteProducts()(model)
    assert ops(result.model) == {"MatMul": 1, **({"Add": 1} if "Add" in add else {})}
    assert_same_function(model, result.model)
    assert [linear.shape for linear in linears(result.model).values()] == [(1, 6, 4)]


def test_what_reads_the_transposed_input_goes_on_reading_it() -> None:
    model = build(
        """g (float[N,5,4] x) => (float[N,5,6] z, float[N,4,5] r) <float[6,4] w> {
            t = Transpose <perm = [0,2,1]> (x)
            y = MatMul (w, t)
            z = Transpose <perm = [0,2,1]> (y)
            r = Relu (t)
        }"""
    )
    result = RewriteProducts()(model)
    assert ops(result.model) == {"MatMul": 1, "Relu": 1, "Transpose": 1}
    assert_same_function(model, result.model)


def test_a_bias_of_more_axes_than_the_product_stays() -> None:
    model = build(
        """g (float[6,4] x) => (float[1,6,6] z) <float[6,4] w, float[1,6,1] b> {
            t = Transpose <perm = [1,0]> (x)
            y = MatMul (w, t)
            a = Add (y, b)
            z = Transpose <perm = [0,2,1]> (a)
        }"""
    )
    assert not RewriteProducts()(model).changed


REFUSED = {
    "another perm": "t = Transpose <perm = [2,0,1]> (x) y = MatMul (w, t) z = Relu (y)",
    "read twice": "y = MatMul (w, x) h = MatMul (w, x) z = Add (y, h)",
    "a product of activations": "y = Relu (x) t = Transpose <perm = [0,2,1]> (y) z = MatMul (x, t)",
}


@pytest.mark.parametrize("nodes", REFUSED.values(), ids=REFUSED)
def test_what_stays(nodes: str) -> None:
    model = build(f"g (float[N,4,4] x) => (float[A,B,C] z) <float[4,4] w> {{ {nodes} }}")
    if "[2,0,1]" in nodes:
        assert ops(RewriteProducts()(model).model)["Transpose"] == 1
    else:
        assert not RewriteProducts()(model).changed


def test_a_shared_matrix_stays_as_it_is_stored() -> None:
    model = build(
        """g (float[N,4,5] x) => (float[N,4,5] z) <float[5,5] w> {
            y = Einsum <equation = "btc,cd->btd"> (x, w)
            z = Einsum <equation = "btc,cd->btd"> (y, w)
        }"""
    )
    graph = gs.import_onnx(RewriteProducts()(model).model)
    assert {node.op for node in graph.nodes} == {"MatMul"}
    assert {node.inputs[1].name for node in graph.nodes} == {"w"}
