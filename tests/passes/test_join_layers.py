"""Matrices of one tensor become one node, one node several, and the function stays."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import PassError
from fskd_onnx.passes.analysis.joined_layers import find_joined, find_siblings
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.join_layers import JoinLayers, SplitLayers, can_be_split
from tests.helpers import assert_same_function, build, ops

SIBLINGS = {
    "MatMul": """g (float[N,5,4] x) => (float[N,5,5] z)
    <float[4,3] w, float[3] a, float[4,2] v> {
        [one] h = MatMul (x, w)
        p = Add (h, a)
        [two] q = MatMul (x, v)
        r = Relu (p)
        z = Concat <axis = -1> (r, q)
    }""",
    "Gemm": """g (float[N,4] x) => (float[N,5] z) <float[4,3] w, float[3] a, float[2,4] v> {
        [one] p = Gemm <beta: float = 0.5> (x, w, a)
        r = Relu (p)
        [two] q = Gemm <transB = 1, alpha: float = 2.0> (x, v)
        z = Concat <axis = 1> (r, q)
    }""",
    "rows": """g (float[N,5,4] x) => (float[M,5] z)
        <float[4,3] w, float[3] a, float[4,2] v, int64[2] flat = {-1,4}> {
        f = Reshape (x, flat)
        [one] p = Gemm (f, w, a)
        g = Reshape (x, flat)
        [two] q = Gemm (g, v)
        z = Concat <axis = 1> (p, q)
    }""",
}


def views(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("form", SIBLINGS)
def test_siblings_become_one(form: str, opset: int) -> None:
    model = build(SIBLINGS[form], opset=opset)
    graph = gs.import_onnx(model)
    [group] = find_siblings(views(graph))
    assert [linear.name for linear in group] == ["one", "two"]
    result = JoinLayers((("two", "one"),))(model).model
    assert ops(result)["Split"] == 1
    assert_same_function(model, result)
    graph = gs.import_onnx(result)
    [joined] = find_joined(graph, views(graph))
    assert joined.widths == (2, 3)
    assert can_be_split(joined)
    again = SplitLayers((joined.linear.name,))(result).model
    assert "Split" not in ops(again)
    assert len(views(gs.import_onnx(again))) == 2
    assert_same_function(model, again)


HEADS = """g (float[N,5,4] x) => (float[N,2,5,5] z)
    <float[4,18] w, float[18] b, int64[5] apart = {0,5,3,2,3}, int64 i0 = {0}, int64 i1 = {1},
     int64 i2 = {2}, int64[2] flat = {-1,4}, int64[3] back = {-1,5,18}, int64[1] front = {0}> {
        BEFORE
        r = Reshape (h, apart)
        t = Transpose <perm = [2,0,3,1,4]> (r)
        DIVIDED
        k1 = Transpose <perm = [0,1,3,2]> (k)
        s = MatMul (q, k1)
        m = ReduceMean <axes = [3], keepdims = 1> (v)
        z = Add (s, m)
    }"""
BEFORE = {
    "MatMul": "[qkv] y = MatMul (x, w) h = Add (y, b)",
    "rows": "f = Reshape (x, flat) [qkv] y = Gemm (f, w, b) h = Reshape (y, back)",
}
DIVIDED = {
    "Gather": "q = Gather (t, i0) k = Gather (t, i1) v = Gather (t, i2)",
    "Split": """q0, k0, v0 = Split <axis = 0> (t)
        q = Squeeze (q0, front) k = Squeeze (k0, front) v = Squeeze (v0, front)""",
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("divided", DIVIDED)
def test_queries_keys_and_values_are_apart(before: str, divided: str) -> None:
    text = HEADS.replace("BEFORE", BEFORE[before]).replace("DIVIDED", DIVIDED[divided])
    model = build(text)
    graph = gs.import_onnx(model)
    [joined] = find_joined(graph, views(graph))
    assert joined.widths == (6, 6, 6)
    assert can_be_split(joined)
    result = SplitLayers(("qkv",))(model).model
    assert [view.width for view in views(gs.import_onnx(result))] == [6, 6, 6]
    assert "Gather" not in ops(result)
    assert_same_function(model, result)


def test_parts_that_are_not_apart_in_the_weights_are_none() -> None:
    # The rows of a head stand together: queries, keys and values of it one behind another.
    text = HEADS.replace("BEFORE", BEFORE["MatMul"]).replace("DIVIDED", DIVIDED["Gather"])
    text = text.replace("{0,5,3,2,3}", "{0,5,2,3,3}").replace("[2,0,3,1,4]", "[3,0,2,1,4]")
    graph = gs.import_onnx(build(text))
    assert find_joined(graph, views(graph)) == []


def test_what_is_asked_for_has_to_be_there() -> None:
    model = build(SIBLINGS["Gemm"])
    with pytest.raises(PassError, match="one, three are not matrices"):
        JoinLayers((("one", "three"),))(model)
    with pytest.raises(PassError, match="'one' is no linear node that is divided"):
        SplitLayers(("one",))(model)
