"""Constants are cut for the nodes that ask for it, and for no others."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import export
from fskd_onnx.passes.cut_constants import ConstantCuts, Cut, put, take
from tests.helpers import build, check, initializers, run

# Three nodes that read one constant: a, b, d.
TEXT = """g (float[N,4] x) => (float[N,A] y, float[N,B] z, float[N,C] u) <float[4,3] w> {{
    {cast}
    [a] y = MatMul (x, {w})
    [b] z = MatMul (x, {w})
    [d] u = MatMul (x, {w})
}}"""
PLAIN = TEXT.format(cast="", w="w")
CAST = TEXT.format(cast="v = Cast <to = 1> (w)", w="v").replace("float[4,3] w", "float16[4,3] w")


def cut(model: onnx.ModelProto, cuts: dict[str, Cut]) -> onnx.ModelProto:
    graph = gs.import_onnx(model)
    collected = ConstantCuts(graph)
    for node in list(graph.nodes):
        if node.name in cuts:
            collected.add(node, 1, cuts[node.name])
    collected.carry_out()
    left = export(graph, like=model)
    check(left)
    return left


def columns(*kept: int) -> Cut:
    return take({1: np.array(kept)})


@pytest.mark.parametrize("text", [PLAIN, CAST])
def test_where_all_reads_are_cut_alike_the_constant_keeps_its_name(text: str) -> None:
    model = build(text)
    left = cut(model, dict.fromkeys("abd", columns(0, 2)))
    expected = initializers(model)["w"][:, [0, 2]]
    assert {n: v.tobytes() for n, v in initializers(left).items()} == {"w": expected.tobytes()}
    assert len(left.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("text", [PLAIN, CAST])
def test_each_way_of_cutting_has_a_constant_of_its_own(text: str) -> None:
    model = build(text)
    x = np.eye(4, dtype=np.float32)
    whole = run(model, {"x": x})
    left = cut(model, {"a": columns(0, 2), "b": columns(1)})
    found = run(left, {"x": x})
    np.testing.assert_array_equal(found["y"], whole["y"][:, [0, 2]])
    np.testing.assert_array_equal(found["z"], whole["z"][:, [1]])
    np.testing.assert_array_equal(found["u"], whole["u"])
    values = initializers(left)
    assert {name: value.shape for name, value in values.items()} == {
        "w": (4, 3),
        "w/cut": (4, 2),
        "w/cut_": (4, 1),
    }
    assert {value.dtype for value in values.values()} == {initializers(model)["w"].dtype}


@pytest.mark.parametrize("text", [PLAIN, CAST])
def test_reads_that_are_cut_alike_share_a_constant(text: str) -> None:
    left = cut(build(text), {"a": columns(0, 2), "d": columns(0, 2)})
    assert initializers(left).keys() == {"w", "w/cut"}


def test_a_constant_that_leaves_the_network_stays() -> None:
    model = build(
        "g (float[N,4] x) => (float[N,A] y, float[4,3] w) <float[4,3] w> { [a] y = MatMul (x, w) }"
    )
    left = cut(model, {"a": columns(1)})
    assert {n: v.shape for n, v in initializers(left).items()} == {"w": (4, 3), "w/cut": (4, 1)}


def test_elements_are_put_by_their_place() -> None:
    values = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(put({1: 9, 5: 7}).of(values), [[0, 9, 2], [3, 4, 7]])
    np.testing.assert_array_equal(values, np.arange(6).reshape(2, 3))
    assert put({1: 9}).key == put({1: 9}).key != put({1: 8}).key
    assert columns(1).key != take({0: np.array([1])}).key
