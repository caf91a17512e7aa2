"""Segments run one after another are the whole graph, and nothing dead crosses a cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import AffineMap, Canonicalize, FuseAdapter, InsertAdapter
from fskd_onnx.passes.analysis.segments import Segment, join, plan_segments, reads
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.extract_segment import extract
from tests.helpers import (
    DEMO,
    Array,
    assert_close,
    build,
    joined,
    linears,
    random_feeds,
    run,
    zoo_model,
)

Stops = Sequence[Sequence[str]]


def run_segment(
    graph: gs.Graph, segment: Segment, cut: Mapping[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    types = {
        name: onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(cut[name].dtype), cut[name].shape
        )
        for name in segment.inputs
    }
    part = joined(extract(graph, segment, types))
    return part, run(part, {name: cut[name] for name in segment.inputs})


def assert_segments_are_the_graph(model: onnx.ModelProto, stops: Stops) -> None:
    """Run segment by segment, keeping only the cut; check what is in it at each stage."""
    graph = gs.import_onnx(model)
    feeds = random_feeds(model)
    plan = plan_segments(graph, stops)
    assert len(plan) == len(stops)

    every = onnx.ModelProto()
    every.CopyFrom(model)
    del every.graph.output[:]
    named = dict.fromkeys(name for stop in stops for name in stop)
    every.graph.output.extend(onnx.ValueInfoProto(name=n) for n in named if n not in feeds)
    expected = feeds | (run(every, feeds) if every.graph.output else {})

    middle = len(plan) // 2
    missed = join(plan[: middle + 1])
    if missed.outputs:
        made = run_segment(graph, missed, feeds)[1]
        shown = [name for name in stops[middle] if name in made]
        assert_close({n: made[n] for n in shown}, {n: expected[n] for n in shown})

    cut = dict(feeds)
    ran: list[str] = []
    for stage, (segment, stop) in enumerate(zip(plan, stops, strict=True)):
        if segment.outputs:
            part, made = run_segment(graph, segment, cut)
            assert not cut.keys() & made.keys()
            cut |= made
            ran += [node.output[0] for node in part.graph.node]
        assert_close({n: cut[n] for n in stop}, {n: expected[n] for n in stop})
        for name in segment.expired:
            del cut[name]
        later = {name for other in plan[stage + 1 :] for name in other.inputs}
        assert set(cut) == (later | {n for s in stops[stage + 1 :] for n in s}) & set(cut)
        assert later <= set(cut) | {n for other in plan[stage + 1 :] for n in other.outputs}
    assert not cut
    assert len(ran) == len(set(ran))
    needed, pending = set(), [n for stop in stops for n in stop]
    producers = {t.name: node for node in graph.nodes for t in node.outputs}
    while pending:
        node = producers.get(pending.pop())
        if node is not None and node.outputs[0].name not in needed:
            needed.add(node.outputs[0].name)
            pending += [t.name for t in reads(node)]
    assert set(ran) == needed


#  x ─▶ Conv ─▶ a ─▶ Relu ─▶ b ─▶ Conv ─▶ c ─▶ Add ─▶ d ─▶ Concat ─▶ e ─▶ Conv ─▶ z
#                            └────────────────▶│           ▲
#                            └─────────────────────────────┘        x ─▶ Neg ─▶ side
DENSE = """g (float[N,4,4,4] x, float[N] unread) => (float[N,8,4,4] z, float[N,4,4,4] side)
  <float[4,4,1,1] w, float[4,4,1,1] k, float[8,8,1,1] v, float[8] bias> {
    a = Conv (x, w)
    b = Relu (a)
    side = Neg (x)
    c = Conv (b, k)
    d = Add (b, c)
    e = Concat <axis = 1> (d, b)
    z = Conv (e, v, bias)
}"""


@pytest.mark.parametrize(
    "stops",
    [
        [("a",), ("c",), ("z",)],
        [("x",), ("b",), ("e",)],
        [("z",), ("c",), ("a",)],
        [("side",), ("z",), ("a",)],
        [("a", "side"), ("c", "b"), ("b",), ("z", "x")],
        [("c",), ("c",), ("z",)],
        [("z", "side")],
        [("x",)],
    ],
)
def test_stops_in_any_order(stops: Stops) -> None:
    assert_segments_are_the_graph(build(DENSE), stops)


def test_the_cut_holds_what_is_read_later_and_nothing_else() -> None:
    plan = plan_segments(gs.import_onnx(build(DENSE)), [("a",), ("c",), ("z",)])
    assert plan == [
        Segment(inputs=("x",), outputs=("a",), expired=("x", "unread")),
        Segment(inputs=("a",), outputs=("b", "c"), expired=("a",)),
        Segment(inputs=("b", "c"), outputs=("z",), expired=("b", "c", "z")),
    ]


@pytest.mark.parametrize("name", ["w", "nowhere"])
def test_a_stop_that_the_graph_does_not_compute_is_refused(name: str) -> None:
    with pytest.raises(PreconditionError, match=f"computes no tensor '{name}'"):
        plan_segments(gs.import_onnx(build(DENSE)), [(name,)])


def test_bodies_read_across_cuts() -> None:
    # x ─▶ Neg ─▶ a ─▶ Abs ─▶ b ─▶ Relu ─▶ c ─▶ If (c + a + w | If (b | k)) ─▶ z
    model = build("""g (float[N,4] x, bool p, bool q) => (float[N,4] z)
      <float[4] w, float[4] k> {
        a = Neg (x)
        b = Abs (a)
        c = Mul (b, w)
        z = If (p) <
          then_branch = t () => (float[N,4] t2) { t0 = Add (c, a) t1 = Add (t0, w) t2 = Exp (t1) },
          else_branch = e () => (float[N,4] e0) {
            e0 = If (q) <then_branch = u () => (float[N,4] u0) { u0 = Sub (b, k) },
                         else_branch = o () => (float[N,4] o0) { o0 = Sub (k, b) }>
          }>
    }""")
    stops = [("a",), ("b",), ("c",), ("z",)]
    plan = plan_segments(gs.import_onnx(model), stops)
    assert set(plan[-1].inputs) == {"a", "b", "c", "p", "q"}
    assert_segments_are_the_graph(model, stops)


def test_loops_and_functions_run_in_their_segment() -> None:
    # x ─▶ local.Twice ─▶ a ─▶ Loop (+ a, three times) ─▶ z
    model = build("""<ir_version: 8, opset_import: ["": 17, "local": 1]>
    g (float[N,4] x) => (float[N,4] z) <int64 three = {3}, float[1] shift = {0.5}> {
        a = local.Twice (x)
        z = Loop (three, , x) <body = step (int64 i, bool go, float[N,4] s)
          => (bool on, float[N,4] r) { on = Identity (go) r0 = Add (s, a) r = Add (r0, shift) }>
    }
    <domain: "local", opset_import: ["": 17]> Twice (v) => (r) { r = Add (v, v) }""")
    assert_segments_are_the_graph(model, [("a",), ("z",)])


def test_the_given_model_is_not_modified() -> None:
    # x ─▶ ai.onnx.Neg ─▶ a ─▶ Abs ─▶ z: graphsurgeon adds domains that it takes for missing
    model = build("g (float[N] x) => (float[N] z) { a = Neg (x) z = Abs (a) }")
    model.graph.node[0].domain = "ai.onnx"
    before = model.SerializeToString()
    graph = gs.import_onnx(model)
    [segment] = plan_segments(graph, [("z",)])
    extract(graph, segment, {"x": model.graph.input[0].type})
    assert model.SerializeToString() == before


def test_old_versions_of_the_format_run() -> None:
    # x ─▶ Conv ─▶ a ─▶ Conv ─▶ z; initializers are inputs
    model = build(
        """g (float[N,4,4,4] x) => (float[N,4,4,4] z) <float[4,4,1,1] w, float[4,4,1,1] k> {
        a = Conv (x, w)
        z = Conv (a, k)
    }""",
        opset=9,
        ir=3,
    )
    assert_segments_are_the_graph(model, [("a",), ("z",)])


def test_what_a_pass_changed_behind_the_cut_is_part_of_the_segment() -> None:
    model = build(DENSE)
    graph = gs.import_onnx(model)
    names = {linear.output.name: name for name, linear in linears(model).items()}
    plan = plan_segments(graph, [("b",), ("e",), ("z",)])
    cut = random_feeds(model)
    cut |= run_segment(graph, plan[0], cut)[1]
    adapter = AffineMap(2 * np.eye(4)[np.newaxis], np.ones((1, 4)))
    adapters = {names["c"]: adapter}
    InsertAdapter(adapters).run(graph)
    explicit, made = run_segment(graph, plan[1], cut)
    assert len(explicit.graph.node) == 4
    FuseAdapter().run(graph)
    fused, made_again = run_segment(graph, plan[1], cut)
    assert len(fused.graph.node) == 3
    assert_close(made_again, made)
    cut |= made_again
    whole = run(InsertAdapter(adapters)(model).model, random_feeds(model))
    assert_close(run_segment(graph, plan[2], cut)[1], {"z": whole["z"]})


def test_large_weights_are_not_copied() -> None:
    # x ─▶ MatMul (w) ─▶ a ─▶ MatMul (k) ─▶ z
    model = build("""g (float[N,64] x) => (float[N,64] z) <float[64,64] w, float[64,64] k> {
        a = MatMul (x, w)
        z = MatMul (a, k)
    }""")
    graph = gs.import_onnx(model)
    values = graph.tensors()["w"].values
    [segment, _] = plan_segments(graph, [("a",), ("z",)])
    part = extract(graph, segment, {"x": model.graph.input[0].type})
    assert part.weights["w"] is values
    assert list(part.weights) == ["w"]
    assert part.model.ByteSize() < values.nbytes / 10
    assert_segments_are_the_graph(model, [("a",), ("z",)])


@pytest.mark.parametrize("name", ["teacher", "vgg16_small_D"])
def test_demo_networks_block_by_block(name: str) -> None:
    model = Canonicalize()(onnx.load(DEMO / f"{name}.onnx")).model
    assert_segments_are_the_graph(
        model, [(linear.output.name,) for linear in linears(model).values()]
    )


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_model_zoo_block_by_block(name: str) -> None:
    model = Canonicalize()(zoo_model(name)).model
    blocks = list(linears(model).values())[::6]
    assert_segments_are_the_graph(model, [(linear.input.name,) for linear in blocks])


@settings(derandomize=True, max_examples=40, database=None)
@given(data=st.data())
def test_random_graphs(data: st.DataObject) -> None:
    # x0, x1 ─▶ (Add | Relu | Split ...)* ─▶ any tensors as stops, in any order
    tensors = ["x0", "x1"]
    lines = []
    for index in range(data.draw(st.integers(1, 10))):
        first, second = (data.draw(st.sampled_from(tensors)) for _ in range(2))
        kind = data.draw(st.sampled_from(["add", "relu", "split"]))
        made = [f"t{index}"]
        if kind == "add":
            lines.append(f"t{index} = Add ({first}, {second})")
        elif kind == "relu":
            lines.append(f"t{index} = Relu ({first})")
        else:
            made.append(f"u{index}")
            lines.append(f"h{index}, u{index} = Split <axis = 1> ({first})")
            lines.append(f"t{index} = Concat <axis = 1> (u{index}, h{index})")
            made.remove(f"u{index}")
        tensors += made
    model = build(
        f"g (float[N,4] x0, float[N,4] x1) => (float[N,4] {tensors[-1]})"
        + "{"
        + "\n".join(lines)
        + "}"
    )
    stop = st.lists(st.sampled_from(tensors), min_size=1, max_size=2, unique=True)
    assert_segments_are_the_graph(model, data.draw(st.lists(stop, min_size=1, max_size=5)))
