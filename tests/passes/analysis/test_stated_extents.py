"""Which elements of a shape are extents of tensors, and which stand in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.shapes import infer_shapes
from fskd_onnx.passes.analysis.stated_extents import (
    Extent,
    Number,
    find_extents,
    passes_extents_on,
    shape_slot,
    target_entries,
)
from tests.helpers import build

CONSTANTS = """int64 c0 = {0}, int64 c1 = {1}, int64[1] v0 = {0}, int64[1] v2 = {2},
  int64[1] v8 = {8}, int64[2] rest = {4,-1}"""


def graph_of(nodes: str) -> gs.Graph:
    return gs.import_onnx(
        build(f"g (float[N,8,H,6] x) => (float[A,B,C] z) <{CONSTANTS}> {{ {nodes} }}")
    )


TAKEN: Mapping[str, list[int | None] | None] = {
    "s = Shape (x)": [0, 1, 2, 3],
    "s = Shape <start = 1, end = 3> (x)": [1, 2],
    "t = Shape (x) s = Gather (t, c1)": [1],
    "t = Shape (x) s = Slice (t, v0, v2, v0)": [0, 1],
    "t = Shape (x) q = Gather (t, c0) s = Unsqueeze (q, v0)": [0],
    "t = Shape (x) q = Gather (t, c0) u = Unsqueeze (q, v0) s = Squeeze (u)": [0],
    "t = Shape (x) q = Slice (t, v0, v2, v0) s = Concat <axis = 0> (v8, q)": [None, 0, 1],
    "t = Shape (x) s = Identity (t)": [0, 1, 2, 3],
    "t = Shape (x) s = Add (t, v2)": None,
    "t = Shape (x) s = ReduceProd (t)": None,
}


@pytest.mark.parametrize("nodes", TAKEN)
def test_extents_are_followed(nodes: str) -> None:
    graph = graph_of(f"{nodes} z = ReduceMean <axes = [1], keepdims = 0> (x)")
    found = find_extents(graph, infer_shapes(graph)).get("s")
    axes = None if found is None else [extent and extent.axis for extent in found]
    assert axes == TAKEN[nodes]


def test_what_only_picks_extents_passes_them_on() -> None:
    graph = graph_of(
        """t = Shape (x) a = Gather (t, c0) b = Gather (v8, a) f = Cast <to = 1> (a)
        m = ReduceMean <axes = [1], keepdims = 0> (x) z = Mul (m, f)"""
    )
    extents = find_extents(graph, infer_shapes(graph))
    nodes = {node.outputs[0].name: node for node in graph.nodes}
    assert passes_extents_on(nodes["a"], 0, extents)
    assert not passes_extents_on(nodes["b"], 1, extents)
    assert not passes_extents_on(nodes["z"], 1, extents)


def target(nodes: str, opset: int = 17) -> Sequence[object] | None:
    """Return the target of the Reshape behind some nodes, numbers as they are stated."""
    graph = gs.import_onnx(
        build(f"g (float[N,8,H,6] x) => (float[A,B,C] z) <{CONSTANTS}> {{ {nodes} }}", opset=opset)
    )
    shapes = infer_shapes(graph)
    node = next(node for node in graph.nodes if node.op == "Reshape")
    slot = shape_slot(node)
    assert slot is not None
    entries = target_entries(graph, node, slot, find_extents(graph, shapes), shapes)
    return entries and [e.value if isinstance(e, Number) else e for e in entries]


def test_a_target_consists_of_numbers_and_extents() -> None:
    batch = "t = Shape (x) q = Gather (t, c0) n = Unsqueeze (q, v0)"
    assert target(
        f"{batch} p = Concat <axis = 0> (n, v8, rest) y = Reshape (x, p) z = Squeeze (y, v2)"
    ) == [Extent("x", 0), 8, 4, -1]
    assert target(f"{batch} p = Concat <axis = 0> (n, rest) z = Reshape (x, p)") == [
        Extent("x", 0),
        4,
        -1,
    ]
    # What another node reads as well cannot be rewritten for one of them.
    assert target(
        f"""{batch} p = Concat <axis = 0> (n, rest) y = Reshape (x, p) w = Reshape (x, p)
        z = Add (y, w)"""
    ) == [Extent("x", 0), None, None]


def test_an_old_target_is_an_attribute() -> None:
    assert target("z = Reshape <shape = [0, -1, 6]> (x)", opset=4) == [0, -1, 6]


def test_of_a_target_of_unknown_length_nothing_is_known() -> None:
    text = """g (float[N,8,H,6] x, int64[L] p) => (float[A,B,C] z) { z = Reshape (x, p) }"""
    graph = gs.import_onnx(build(text))
    assert target_entries(graph, graph.nodes[0], 1, {}, infer_shapes(graph)) is None
