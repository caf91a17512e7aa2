"""What passes ask of nodes and tensors, bodies of control flow included."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.nodes import (
    all_nodes,
    has_input,
    input_dependent,
    is_standard,
    name_of_new,
    nodes_in_bodies,
    only_nodes_read,
    sole_reader,
    unused_name,
)
from tests.helpers import build


def test_unused_names_avoid_bodies_too() -> None:
    # x ─▶ If (a | a_) ─▶ y
    model = build("""g (float[N] x, bool c) => (float[N] y) {
        y = If (c) <then_branch = t () => (float[N] a) { a = Neg (x) },
                    else_branch = e () => (float[N] a_) { a_ = Abs (x) }>
    }""")
    graph = gs.import_onnx(model)
    assert [unused_name(graph, name) for name in ("a", "x", "y", "b")] == ["a__", "x_", "y_", "b"]


def test_a_new_node_has_no_name_that_another_has() -> None:
    graph = gs.import_onnx(build("g (float[N] x) => (float[N] y) { [a] r = Relu (x) y = Neg (r) }"))
    assert name_of_new(graph, "a") == ""
    assert name_of_new(graph, "r") == "r"
    assert name_of_new(graph, "a", gone=graph.nodes[:1]) == "a"


def branched() -> gs.Graph:
    """x ─▶ Relu ─▶ r ─▶ If (Neg | Loop: Abs) ─▶ z;  k ─▶ Neg ─▶ n ─▶ Add (r) ─▶ s (an output)."""
    return gs.import_onnx(
        build(
            """g (float[2] x, bool c) => (float[2] z, float[2] s) <float[2] k, int64 times> {
        r = Relu (x)
        n = Neg (k)
        s = Add (n, r)
        z = If (c) <
            then_branch = t () => (float[2] p) { p = Neg (r) },
            else_branch = e () => (float[2] q) {
                q = Loop (times, c, r) <
                    body = b (int64 i, bool d, float[2] v) => (bool f, float[2] o) {
                        f = Identity (d)
                        o = Abs (v)
                    }
                >
            }
        >
    }""",
            {"times": 2},
        )
    )


def test_bodies_are_seen_at_any_depth() -> None:
    graph = branched()
    ops = [node.op for node in all_nodes(graph.nodes)]
    assert ops == ["Relu", "Neg", "Add", "If", "Neg", "Loop", "Identity", "Abs"]
    in_bodies = nodes_in_bodies(graph)
    assert [id(node) in in_bodies for node in all_nodes(graph.nodes)] == [False] * 4 + [True] * 4


def test_readers_in_bodies_and_outputs_count() -> None:
    graph = branched()
    in_bodies = nodes_in_bodies(graph)
    r, n, s = (node.outputs[0] for node in graph.nodes[:3])
    assert sole_reader(graph, r, in_bodies) is None
    assert sole_reader(graph, n, in_bodies) is graph.nodes[2]
    assert sole_reader(graph, s, in_bodies) is None
    read = [only_nodes_read(graph, tensor, in_bodies) for tensor in (r, n, s)]
    assert read == [False, True, False]


def test_what_depends_on_an_input() -> None:
    graph = branched()
    found = input_dependent(graph)
    names = [t.name for node in graph.nodes for t in node.outputs if id(t) in found]
    assert names == ["r", "s", "z"]


def test_operators_and_inputs_are_told_apart() -> None:
    node = gs.Node("Conv", inputs=[gs.Variable("x"), gs.Variable.empty()])
    assert is_standard(node, "Gemm", "Conv")
    assert not is_standard(node, "Gemm")
    assert not is_standard(gs.Node("Conv", domain="my"), "Conv")
    assert [has_input(node, slot) for slot in range(3)] == [True, False, False]
