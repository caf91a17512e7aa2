"""Uses of one block: nodes that apply the same weights, and nothing else that reads them."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.shared_weights import find_uses, who_else_reads
from tests.helpers import build


def views_of(model: onnx.ModelProto) -> list[Linear]:
    return [view for view in find_linear(gs.import_onnx(model)) if isinstance(view, Linear)]


def found_in(nodes: str, parameters: str) -> dict[str, list[str]]:
    """The uses of each node of x1, x2 ─▶ nodes ─▶ z1, z2."""
    model = build(
        f"""g (float[N,4] x1, float[N,4] x2, bool c) => (float[N,A] z1, float[N,B] z2)
        <{parameters}> {{ {nodes} }}"""
    )
    return {name: [use.name for use in uses] for name, uses in find_uses(views_of(model)).items()}


USES = {
    "Gemm": ("[a] z1 = Gemm (x1, w, b) [b] z2 = Gemm (x2, w, b)", "float[4,4] w, float[4] b"),
    "no bias": ("[a] z1 = MatMul (x1, w) [b] z2 = MatMul (x2, w)", "float[4,4] w"),
    "alpha by default": (
        "[a] z1 = Gemm <alpha: float = 1.0> (x1, w) [b] z2 = Gemm (x2, w)",
        "float[4,4] w",
    ),
    "Adds of one bias": (
        "[a] p = MatMul (x1, w) z1 = Add (p, b) [b] q = MatMul (x2, w) z2 = Add (b, q)",
        "float[4,4] w, float[4] b",
    ),
    "behind one Cast": (
        "w = Cast <to = 1> (s) [a] z1 = MatMul (x1, w) [b] z2 = MatMul (x2, w)",
        "float16[4,4] s",
    ),
    "behind a Cast each": (
        "w = Cast <to = 1> (s) v = Cast <to = 1> (s)"
        "[a] z1 = MatMul (x1, w) [b] z2 = MatMul (x2, v)",
        "float16[4,4] s",
    ),
    "one behind the other": ("[a] z1 = MatMul (x1, w) [b] z2 = MatMul (z1, w)", "float[4,4] w"),
}


@pytest.mark.parametrize("form", USES)
def test_nodes_of_the_same_weights_are_uses_of_one_block(form: str) -> None:
    assert found_in(*USES[form]) == {"a": ["a", "b"], "b": ["a", "b"]}


def test_strides_dilation_and_padding_may_differ() -> None:
    model = build("""g (float[N,2,9,9] x) => (float[N,3,A,B] y, float[N,3,C,D] z)
      <float[3,2,3,3] w, float[3] b> {
        [a] y = Conv <strides = [2,2]> (x, w, b)
        [b] z = Conv <dilations = [2,2], pads = [2,2,2,2]> (x, w, b)
    }""")
    assert [len(uses) for uses in find_uses(views_of(model)).values()] == [2, 2]


OTHERS = {
    "alpha": (
        "[a] z1 = Gemm (x1, w) [b] z2 = Gemm <alpha: float = 2.0> (x2, w)",
        "float[4,4] w",
        "are also those of 'b', in another way",
    ),
    "transB": (
        "[a] z1 = Gemm (x1, w) [b] z2 = Gemm <transB = 1> (x2, w)",
        "float[4,4] w",
        "are also those of 'b', in another way",
    ),
    "operator": (
        "[a] z1 = MatMul (x1, w) [b] z2 = Gemm (x2, w)",
        "float[4,4] w",
        "are also those of 'b', in another way",
    ),
    "bias": (
        "[a] z1 = Gemm (x1, w, b) [b] z2 = Gemm (x2, w, d)",
        "float[4,4] w, float[4] b, float[4] d",
        "are also those of 'b', whose bias is another",
    ),
    "beta": (
        "[a] z1 = Gemm (x1, w, b) [b] z2 = Gemm <beta: float = 2.0> (x2, w, b)",
        "float[4,4] w, float[4] b",
        "are also those of 'b', whose bias is another",
    ),
    "an Add behind one": (
        "[a] z1 = MatMul (x1, w) [b] p = MatMul (x2, w) z2 = Add (p, b)",
        "float[4,4] w, float[4] b",
        "are also those of 'b', whose bias is another",
    ),
    "a Mul": (
        "[a] z1 = MatMul (x1, w) [b] p = MatMul (x2, w) [m] z2 = Mul (w, p)",
        "float[4,4] w",
        "are also those of 'm'",
    ),
    "a body": (
        "[a] z1 = MatMul (x1, w) [b] p = MatMul (x2, w)"
        "z2 = If (c) <then_branch = t () => (float[A,B] q) { [n] q = Neg (w) },"
        " else_branch = e () => (float[A,B] r) { r = Identity (p) }>",
        "float[4,4] w",
        "are also those of 'n'",
    ),
    "transposed": (
        "[a] z1 = MatMul (x1, w) [t] v = Transpose (w) [b] z2 = MatMul (x2, v)",
        "float[4,4] w",
        "are also those of 't'",
    ),
    "another Cast": (
        "w = Cast <to = 1> (s) [h] v = Cast <to = 11> (s) [a] z1 = MatMul (x1, w)"
        "[n] u = Neg (v) t = Cast <to = 1> (u) z2 = Add (x2, t)",
        "float16[4,4] s",
        "are also those of 'n'",
    ),
}


@pytest.mark.parametrize("form", OTHERS)
def test_another_reader_keeps_weights_from_being_rewritten(form: str) -> None:
    nodes, parameters, reason = OTHERS[form]
    assert found_in(nodes, parameters) == {}
    model = build(
        f"""g (float[N,4] x1, float[N,4] x2, bool c) => (float[N,A] z1, float[N,B] z2)
        <{parameters}> {{ {nodes} }}"""
    )
    views = views_of(model)
    assert who_else_reads(views[0], views) == reason


def test_an_output_of_the_graph_is_a_reader() -> None:
    model = build("""g (float[N,4] x) => (float[N,4] z, double[4,4] k) <float16[4,4] s> {
        w = Cast <to = 1> (s)
        [keep] k = Cast <to = 11> (s)
        [a] z = MatMul (x, w)
    }""")
    views = views_of(model)
    assert find_uses(views) == {}
    assert who_else_reads(views[0], views) == "are also those of 'keep'"
