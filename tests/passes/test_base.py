"""Whatever a pass does not touch survives it, and the given model is never modified."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from fskd_onnx.passes import (
    AffineMap,
    Canonicalize,
    ComposeChains,
    FuseAdapter,
    InsertAdapter,
    MergeBranches,
    ReplaceWeights,
)
from fskd_onnx.passes.analysis import nodes
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove, replace_reads
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.join_layers import JoinLayers
from tests.helpers import (
    assert_close,
    assert_same_function,
    build,
    check,
    initializers,
    insert_and_fuse,
    random_adapters,
    random_feeds,
    run,
)


class Quiet(Pass):
    """Requires, changes and ensures nothing."""

    def apply(self, graph: gs.Graph) -> list[str]:
        return []


class Touch(Pass):
    """Changes nothing but says that it did, so that the model is exported."""

    def apply(self, graph: gs.Graph) -> list[str]:
        return ["touched"]


def entry(key: str, value: str) -> onnx.StringStringEntryProto:
    return onnx.StringStringEntryProto(key=key, value=value)


def full_model() -> onnx.ModelProto:
    """A model with something in every field that a rewrite could lose.

    x ─▶ Conv ─▶ y ─▶ BN ─▶ n ─▶ Clip (minimum left out) ─▶ l ─▶ local.Twice ─▶ t ─▶ If ─▶ z
    """
    model = build("""<
      ir_version: 10, opset_import: ["": 20, "local": 1],
      producer_name: "maker", producer_version: "1.2", domain: "org.example", model_version: 7,
      doc_string: "a model", metadata_props: ["key": "value"]
    >
    g (float[N,4,5,H] x, bool c) => (float[N,6,3,W] z)
      <float[6,4,3,3] w, float[6] b, float[6] s, float[6] v, float[6,1,1] outer, float top,
       float unread, float[N,6,3,W] y, float[N,6,3,W] n, float scale, uint8 zero> {
        [conv] y = Conv (x, w, b)
        [bn] n = BatchNormalization (y, s, s, s, v)
        [clip] l = Clip (n, , top)
        [twice] t = local.Twice (l)
        [choose] z = If (c) <
          then_branch = then () => (float[N,6,3,W] p) { p = Add (t, outer) },
          else_branch = else () => (float[N,6,3,W] q) <float[1] inner = {2}> { q = Mul (t, inner) }
        >
    }
    <domain: "local", opset_import: ["": 20]> Twice (a) => (r) { r = Add (a, a) }
    """)
    graph = model.graph
    model.functions[0].doc_string = "doubles"
    graph.doc_string = "a graph"
    graph.metadata_props.append(entry("graph", "data"))
    for node in graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.append(entry("node", node.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.doc_string = f"about {value.name}"
    for tensor in graph.initializer:
        tensor.doc_string = f"about {tensor.name}"
    annotation = graph.quantization_annotation.add(tensor_name="n")
    annotation.quant_parameter_tensor_names.append(entry("SCALE_TENSOR", "scale"))
    annotation.quant_parameter_tensor_names.append(entry("ZERO_POINT_TENSOR", "zero"))
    # The same numbers, stored in fields of their own type and not as raw bytes.
    outer = next(t for t in graph.initializer if t.name == "outer")
    values = numpy_helper.to_array(outer)
    outer.ClearField("raw_data")
    outer.float_data.extend(values.reshape(-1).tolist())
    return model


def test_a_pass_that_changes_nothing_returns_the_model_itself() -> None:
    model = full_model()
    result = Quiet()(model)
    assert result.model is model
    assert not result.changed
    assert result.notes == ()


def test_an_export_without_changes_is_the_model_to_the_byte() -> None:
    model = full_model()
    result = Touch()(model)
    assert result.changed
    assert result.model is not model
    assert result.model.SerializeToString() == model.SerializeToString()


def test_what_no_pass_touched_survives_all_of_them() -> None:
    model = full_model()
    before = model.SerializeToString()
    canonical = Canonicalize()(model).model
    explicit, fused = insert_and_fuse(canonical, random_adapters(canonical))
    assert_same_function(canonical, model)
    assert_same_function(fused, explicit)
    assert model.SerializeToString() == before

    for field in ("ir_version", "opset_import", "producer_name", "producer_version", "domain"):
        assert getattr(fused, field) == getattr(model, field)
    for field in ("model_version", "doc_string", "metadata_props", "functions"):
        assert getattr(fused, field) == getattr(model, field)
    for field in ("name", "doc_string", "input", "output", "metadata_props"):
        assert getattr(fused.graph, field) == getattr(model.graph, field)
    assert fused.graph.quantization_annotation == model.graph.quantization_annotation
    assert list(fused.graph.value_info) == [v for v in model.graph.value_info if v.name == "n"]

    conv, *rest = fused.graph.node
    assert rest == list(model.graph.node[2:])
    assert list(conv.output) == ["n"]
    origin = model.graph.node[0]
    assert list(conv.input) == list(origin.input)
    assert (conv.name, conv.doc_string) == (origin.name, origin.doc_string)
    assert conv.metadata_props == origin.metadata_props

    kept = {t.name: t for t in fused.graph.initializer}
    assert list(kept) == ["w", "b", "outer", "top", "unread", "scale", "zero"]
    for tensor in model.graph.initializer:
        if tensor.name in kept and tensor.name not in ("w", "b"):
            assert kept[tensor.name].SerializeToString() == tensor.SerializeToString()


def test_only_fitted_initializers_differ() -> None:
    # x ─▶ Conv ─▶ Conv ─▶ z
    model = build("""g (float[N,4,5,5] x) => (float[N,4,5,5] z)
      <float[4,4,1,1] w, float[4] b, float[4,4,1,1] k, float[4] c> {
        [one] y = Conv (x, w, b)
        [two] z = Conv (y, k, c)
    }""")
    adapters = {"two": random_adapters(model)["two"]}
    fused = insert_and_fuse(model, adapters)[1]
    assert fused.graph.initializer[:2] == model.graph.initializer[:2]
    assert fused.graph.node == model.graph.node
    assert all(
        not np.array_equal(initializers(fused)[name], initializers(model)[name])
        for name in ("k", "c")
    )


def test_initializers_that_are_inputs_keep_or_lose_both() -> None:
    # x ─▶ Conv ─▶ BN ─▶ z in a file of version 3, where every initializer is an input
    model = build(
        """g (float[N,4,5,5] x) => (float[N,6,3,3] z)
        <float[6,4,3,3] w, float[6] s, float[6] t, float[6] m, float[6] v> {
            y = Conv (x, w)
            z = BatchNormalization (y, s, t, m, v)
        }""",
        opset=9,
        ir=3,
    )
    assert [value.name for value in model.graph.input] == ["x", "w", "s", "t", "m", "v"]
    result = Canonicalize()(model)
    assert [value.name for value in result.model.graph.input] == ["x", "w", "z/bias"]
    assert [tensor.name for tensor in result.model.graph.initializer] == ["w", "z/bias"]
    assert_same_function(result.model, model)


def test_a_domain_that_was_spelt_out_does_not_change_the_given_model() -> None:
    # x ─▶ ai.onnx.Conv ─▶ BN ─▶ z
    model = build("""g (float[N,4,5,5] x) => (float[N,6,3,3] z) <float[6,4,3,3] w, float[6] s> {
        y = Conv (x, w)
        z = BatchNormalization (y, s, s, s, s)
    }""")
    model.graph.node[0].domain = "ai.onnx"
    before = model.SerializeToString()
    result = Canonicalize()(model)
    assert result.changed
    assert model.SerializeToString() == before
    assert result.model.opset_import == model.opset_import


def test_attributes_that_graphsurgeon_does_not_know_survive() -> None:
    # x ─▶ Conv ─▶ y ─▶ ReduceSum (no axes) ─▶ z;   Optional (type) ─▶ HasElement ─▶ b
    model = build("""g (float[N,4,5,5] x) => (float[1,1,1,1] z)
      <float[6,4,3,3] w> {
        y = Conv (x, w)
        z = ReduceMax <axes: ints = []> (y)
    }""")
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2])
    model.graph.node.append(onnx.helper.make_node("Optional", [], ["o"], type=kind))
    model.graph.node.append(onnx.helper.make_node("OptionalHasElement", ["o"], ["b"]))
    boolean = onnx.helper.make_tensor_value_info("b", onnx.TensorProto.BOOL, [])
    model.graph.output.append(boolean)
    check(model)
    fused = insert_and_fuse(model, random_adapters(model))[1]
    assert fused.graph.node[1:] == model.graph.node[1:]


def test_sparse_initializers_survive() -> None:
    # x ─▶ MatMul ─▶ Add(sparse) ─▶ z
    model = build("""g (float[N,2] x) => (float[N,2] z) <float[2,2] w, float[2] b> {
        y = MatMul (x, w)
        z = Add (y, b)
    }""")
    del model.graph.initializer[1]
    values = numpy_helper.from_array(np.array([3], np.float32), "b")
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2]))
    adapters = random_adapters(model)
    assert list(adapters) == ["y"]
    explicit, fused = insert_and_fuse(model, adapters)
    assert fused.graph.sparse_initializer == model.graph.sparse_initializer
    feeds = random_feeds(model)
    assert_close(run(fused, feeds), run(explicit, feeds))


def test_passes_can_follow_each_other_on_one_graph() -> None:
    model = full_model()
    graph = gs.import_onnx(model)
    adapters = {"conv": AffineMap.identity(1, 6)}
    for each in (Canonicalize(), InsertAdapter(adapters), FuseAdapter()):
        assert each.run(graph)
    assert [node.op for node in graph.nodes] == ["Conv", "Clip", "Twice", "If"]


def test_requirements_are_checked_before_anything_is_rewritten() -> None:
    class Unwilling(Touch):
        def requires(self, graph: gs.Graph) -> None:
            raise PreconditionError("no")

        def apply(self, graph: gs.Graph) -> list[str]:
            raise AssertionError

    with pytest.raises(PreconditionError, match="no"):
        Unwilling()(full_model())


def test_the_example_of_the_contract_is_a_pass() -> None:
    # x ─▶ Identity ─▶ a ─▶ Relu ─▶ y, and x ─▶ Identity ─▶ z
    text = inspect.cleandoc(str(Pass.__doc__))
    example = text[text.index("    class") : text.index("    result")]
    names: dict[str, Any] = {**vars(nodes), "Pass": Pass, "gs": gs}
    names |= {"remove": remove, "replace_reads": replace_reads}
    exec(textwrap.dedent(example), names)
    model = build("""g (float[N] x) => (float[N] y, float[N] z) {
        [one] a = Identity (x)
        y = Relu (a)
        [two] z = Identity (x)
    }""")
    each = names["RemoveIdentity"]()
    result = each(model)
    assert result.notes == ("'one' removed",)
    assert_same_function(result.model, model)
    assert not each(result.model).changed


# Some node is called what a new one would be: the name of another's output is no other's.
CLASHES: dict[str, tuple[str, Pass]] = {
    "the output of a branch": (
        """m (float[n,2,4,4] x) => (float[n,2,4,4] z) <float[2,2,1,1] a, float[2,2,1,1] b> {
            [q] p = Conv (x, a) [r] q = Conv (x, b) s = Add (p, q) [p] z = Relu (s) }""",
        MergeBranches(),
    ),
    "the output of a chain": (
        """m (float[n,2,4,4] x) => (float[n,2,4,4] z) <float[2,2,1,1] a, float[2,2,1,1] b> {
            [p] p = Conv (x, a) [r] s = Conv (p, b) [s] z = Relu (s) }""",
        ComposeChains([("p", "r")]),
    ),
    "the Add of a bias": (
        """m (float[n,2] x) => (float[n,2] z) <float[2,2] a> {
            [p] p = MatMul (x, a) ["p/bias"] z = Relu (p) }""",
        ReplaceWeights({"p": AffineMap(np.ones((1, 2, 2)), np.ones((1, 2)))}),
    ),
    "an adapter": (
        """m (float[n,2] x) => (float[n,2] z) <float[2,2] a> {
            [p] p = MatMul (x, a)
            ["p/fskd_adapter"] r = Relu (p) ["p/fskd_adapter/add"] z = Relu (r) }""",
        InsertAdapter({"p": AffineMap(np.ones((1, 2, 2)), np.ones((1, 2)))}),
    ),
    "joined matrices": (
        """m (float[n,2] x) => (float[n,4] z) <float[2,2] a, float[2,2] b> {
            [p] p = MatMul (x, a) [q] q = MatMul (x, b) r = Relu (p)
            ["p + q"] z = Concat <axis = 1> (r, q) }""",
        JoinLayers((("p", "q"),)),
    ),
}


@pytest.mark.parametrize("name", CLASHES)
def test_no_two_nodes_get_one_name(name: str) -> None:
    text, rewriting = CLASHES[name]
    model = build(text)
    result = rewriting(model)
    assert result.changed
    names = [node.name for node in result.model.graph.node if node.name]
    assert len(set(names)) == len(names)
    assert {node.name for node in model.graph.node[-1:]} <= set(names)
    run(result.model, random_feeds(model))
