"""Constants become initializers and BatchNormalization folds, or both stay where they must."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.errors import PostconditionError
from tests.helpers import (
    assert_same_function,
    build,
    initializers,
    linears,
    ops,
)

# x ─▶ Conv ─▶ y ─▶ BatchNormalization ─▶ z
CONV_BN = """g ({dtype}[N,4,{image}] x) => ({dtype}[N,6,{out}] z)
  <{dtype}[6,{inputs},{kernel}] w, {dtype}[6] b, {dtype}[6] s, {dtype}[6] t, {dtype}[6] m,
   {dtype}[6] v> {{
    [conv] y = Conv <{attrs}> (x, w{bias})
    [bn] z = BatchNormalization <epsilon: float = 0.01> (y, s, t, m, v)
}}"""
SIMPLE = {
    "dtype": "float",
    "image": "5,5",
    "out": "A,B",
    "inputs": "4",
    "kernel": "3,3",
    "attrs": "group = 1",
    "bias": ", b",
}


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("bias", ["b", "none", "left out"])
@pytest.mark.parametrize(
    ("image", "kernel", "inputs", "attrs"),
    [
        ("9", "3", 4, "strides = [2], pads = [1, 0]"),
        ("5,6", "3,1", 4, 'auto_pad = "SAME_LOWER"'),
        ("5,6", "1,1", 2, "group = 2"),
        ("7,7", "2,3", 4, "dilations = [2, 1], pads = [0, 1, 2, 0]"),
        ("3,4,5", "2,2,2", 4, "strides = [1, 2, 2]"),
    ],
)
def test_batch_normalization_folds_into_any_convolution(
    dtype: str, bias: str, image: str, kernel: str, inputs: int, attrs: str
) -> None:
    out = ",".join("ABC"[: kernel.count(",") + 1])
    text = CONV_BN.format(
        dtype=dtype,
        image=image,
        out=out,
        inputs=inputs,
        kernel=kernel,
        attrs=attrs,
        bias="" if bias == "none" else ", b",
    )
    model = build(text)
    if bias == "left out":
        model.graph.node[0].input[2] = ""
    before = model.SerializeToString()
    result = Canonicalize()(model)
    assert result.changed
    assert result.notes == ("BatchNormalization 'bn' folded into 'conv'",)
    assert ops(result.model) == {"Conv": 1}
    # An initializer that nobody ever read is not ours to remove.
    expected = {"w", "b"} if bias == "b" else {"w", "b", "z/bias"}
    assert set(initializers(result.model)) == expected
    assert_same_function(result.model, model)
    assert model.SerializeToString() == before
    assert not Canonicalize()(result.model).changed


def test_batch_normalization_folds_into_depthwise_gemm_and_its_like() -> None:
    # x ─▶ Conv ─▶ BN ─▶ BN ─▶ Flatten ─▶ Gemm ─▶ BN ─▶ z
    model = build("""g (float[N,4,3,3] x) => (float[N,5] z)
      <float[8,1,3,3] w, float[8] s, float[8] t, float[8] m, float[8] v,
       float[8,5] k, float[1,5] c, float[5] s2, float[5] t2, float[5] m2, float[5] v2> {
        y = Conv <group = 4> (x, w)
        y1 = BatchNormalization (y, s, t, m, v)
        y2 = BatchNormalization (y1, s, t, m, v)
        f = Flatten (y2)
        h = Gemm <alpha: float = 0.5, beta: float = 2.0> (f, k, c)
        z = BatchNormalization (h, s2, t2, m2, v2)
    }""")
    result = Canonicalize()(model)
    assert ops(result.model) == {"Conv": 1, "Flatten": 1, "Gemm": 1}
    # The shape of C stays, since a graph input or value_info may state it.
    assert {n: a.shape for n, a in initializers(result.model).items()} == {
        "w": (8, 1, 3, 3),
        "y1/bias": (8,),
        "k": (8, 5),
        "c": (1, 5),
    }
    assert_same_function(result.model, model)
    assert "BatchNormalization 'y1' folded into 'y'" in result.notes[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (  # x ─▶ Conv ─▶ y (an output) ─▶ BN ─▶ z
            """g (float[N,4,5,5] x) => (float[N,6,3,3] y, float[N,6,3,3] z)
            <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                z = BatchNormalization (y, s, s, s, s) }""",
            "output of the graph",
        ),
        (  # x ─▶ Conv ─▶ y ─▶ BN ─▶ h ─▶ Add ─▶ z,   y ─▶ Add
            """g (float[N,4,5,5] x) => (float[N,6,3,3] z) <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                h = BatchNormalization (y, s, s, s, s)
                z = Add (h, y) }""",
            "second reader",
        ),
        (  # two convolutions share w
            """g (float[N,4,5,5] x) => (float[N,6,3,3] z) <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                h = BatchNormalization (y, s, s, s, s)
                q = Conv (x, w)
                z = Add (h, q) }""",
            "shared weight",
        ),
        (  # x ─▶ Conv ─▶ Identity ─▶ BN ─▶ z
            """g (float[N,4,5,5] x) => (float[N,6,3,3] z) <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                i = Identity (y)
                z = BatchNormalization (i, s, s, s, s) }""",
            "a node between",
        ),
        (  # x ─▶ MatMul ─▶ BN ─▶ z: channels on the last axis and on axis 1
            """g (float[N,6,6] x) => (float[N,6,6] z) <float[6,6] w, float[6] s> {
                y = MatMul (x, w)
                z = BatchNormalization (y, s, s, s, s) }""",
            "MatMul",
        ),
        (  # statistics that the graph computes from an input
            """g (float[N,4,5,5] x, float[6] u) => (float[N,6,3,3] z)
            <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                a = Abs (u)
                z = BatchNormalization (y, s, s, s, a) }""",
            "computed statistics",
        ),
        (  # If reads w in its bodies
            """g (float[N,4,5,5] x, bool c) => (float[N,6,3,3] z, float[A,B,C,D] k)
            <float[6,4,3,3] w, float[6] s> {
                y = Conv (x, w)
                z = BatchNormalization (y, s, s, s, s)
                k = If (c) <then_branch = t () => (float[6,4,3,3] p) { p = Neg (w) },
                            else_branch = e () => (float[6,4,3,3] q) { q = Abs (w) }>
            }""",
            "read in a body",
        ),
        (  # w is an output
            """g (float[N,4,5,5] x) => (float[N,6,3,3] z, float[6,4,3,3] w)
            <float[6] s, float[6,4,3,3] w> {
                y = Conv (x, w)
                z = BatchNormalization (y, s, s, s, s) }""",
            "weight is an output",
        ),
    ],
)
def test_batch_normalization_stays_where_folding_would_change_the_function(
    text: str, why: str
) -> None:
    model = build(text)
    result = Canonicalize()(model)
    assert not result.changed, why
    assert result.notes == ()
    assert result.model is model


def test_batch_normalization_in_training_stays() -> None:
    # x ─▶ Conv ─▶ BN (training) ─▶ z, and the running statistics
    model = build("""g (float[N,4,5,5] x) => (float[N,6,3,3] z)
      <float[6,4,3,3] w, float[6] s> {
        y = Conv (x, w)
        z, rm, rv = BatchNormalization <training_mode = 1> (y, s, s, s, s)
    }""")
    assert not Canonicalize()(model).changed


def test_statistics_per_position_of_old_opsets_stay() -> None:
    # x ─▶ Conv ─▶ BN (spatial = 0: one statistic for each position) ─▶ z
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 7]>
    g (float[1,1,2,2] x) => (float[1,2,2,2] z)
      <float[2,1,1,1] w = {1,2}, float[2,2,2] s = {1,2,3,4,5,6,7,8}> {
        y = Conv (x, w)
        z = BatchNormalization <spatial = 0> (y, s, s, s, s)
    }""")
    assert not Canonicalize()(model).changed


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15])
def test_all_opsets_of_inference_fold(opset: int) -> None:
    model = build(CONV_BN.format(**SIMPLE), opset=opset)
    result = Canonicalize()(model)
    assert ops(result.model) == {"Conv": 1}
    assert_same_function(result.model, model)


def test_outputs_that_are_left_out_do_not_hinder_folding() -> None:
    model = build(CONV_BN.format(**SIMPLE), opset=9)
    padded = build(CONV_BN.format(**SIMPLE), opset=9)
    padded.graph.node[1].output.extend([""] * 4)  # valid, but ONNX Runtime 1.31 crashes on it
    assert_same_function(Canonicalize()(padded).model, model)


def test_opsets_that_train_by_default_do_not_fold() -> None:
    model = onnx.parser.parse_model("""<ir_version: 3, opset_import: ["": 6]>
    g (float[1,1,2,2] x) => (float[1,2,2,2] z) <float[2,1,1,1] w = {1,2}, float[2] s = {1,2}> {
        y = Conv (x, w)
        z = BatchNormalization (y, s, s, s, s)
    }""")
    assert not Canonicalize()(model).changed


def test_namesakes_of_other_domains_are_left_alone() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "my": 1]>
    g (float[1,1,2,2] x) => (float[1,2,2,2] z) <float[2,1,1,1] w = {1,2}, float[2] s = {1,2}> {
        y = my.Conv (x, w)
        h = BatchNormalization (y, s, s, s, s)
        q = Conv (h, w)
        z = my.BatchNormalization (q, s, s, s, s)
    }""")
    assert not Canonicalize()(model).changed


def test_a_shared_bias_is_not_changed_for_the_other_reader() -> None:
    # x ─▶ Conv(w, b) ─▶ BN ─▶ h ─▶ Conv(k, b) ─▶ z
    model = build("""g (float[N,4,5,5] x) => (float[N,4,5,5] z, float[4] b)
      <float[4,4,1,1] w, float[4,4,1,1] k, float[4] b, float[4] s> {
        [one] y = Conv (x, w, b)
        h = BatchNormalization (y, s, s, s, s)
        [two] z = Conv (h, k, b)
    }""")
    result = Canonicalize()(model)
    assert [list(node.input) for node in result.model.graph.node] == [
        ["x", "w", "h/bias"],
        ["h", "k", "b"],
    ]
    assert_same_function(result.model, model)


def test_names_that_a_new_bias_would_take_are_left_to_their_owners() -> None:
    # x ─▶ Conv ─▶ BN ─▶ h ─▶ Max(h/bias) ─▶ z
    model = build("""g (float[N,4,5,5] x) => (float[N,4,5,5] z)
      <float[4,4,1,1] w, float[4] s, float[1] other> {
        y = Conv (x, w)
        h = BatchNormalization (y, s, s, s, s)
        z = Max (h, other)
    }""")
    model.graph.initializer[-1].name = model.graph.node[2].input[1] = "h/bias"
    result = Canonicalize()(model)
    assert set(initializers(result.model)) == {"w", "h/bias", "h/bias_"}
    assert_same_function(result.model, model)


def test_float16_folds_in_double_precision() -> None:
    text = CONV_BN.format(**SIMPLE | {"dtype": "float16"})
    model = build(text)
    result = Canonicalize()(model)
    assert {a.dtype for a in initializers(result.model).values()} == {np.dtype(np.float16)}
    assert_same_function(result.model, model)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value = float {2.5}", np.float32(2.5)),
        (
            "value = float[1,4,1,1] {1, 2, 3, 4}",
            np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1),
        ),
        ("value_float: float = 2.5", np.float32(2.5)),
        ("value_floats: floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
        ("value_int: int = 3", np.int64(3)),
        ("value_ints: ints = [3, 4]", np.array([3, 4], np.int64)),
        ("value_ints: ints = []", np.array([], np.int64)),
    ],
)
def test_constants_of_every_form_become_initializers(attribute: str, value: Any) -> None:
    # Constant ─▶ Cast ─▶ z
    shape = str(list(np.shape(value))) if np.ndim(value) else ""
    model = build(f"""g () => (float{shape} z) {{
        c = Constant <{attribute}> ()
        z = Cast <to = 1> (c)
    }}""")
    result = Canonicalize()(model)
    assert ops(result.model) == {"Cast": 1}
    np.testing.assert_array_equal(initializers(result.model)["c"], value)
    assert initializers(result.model)["c"].dtype == np.asarray(value).dtype
    assert_same_function(result.model, model)


@pytest.mark.parametrize("opset", [8, 17])
@pytest.mark.parametrize("ir", [3, 8])
def test_constants_are_weights_in_every_version_of_the_format(opset: int, ir: int) -> None:
    # x ─▶ MatMul(Constant) ─▶ Add(Constant) ─▶ z: before version 4, initializers are inputs too
    model = build(
        """g (float[N,2] x) => (float[N,2] z) {
        w = Constant <value = float[2,2] {1, 2, 3, 4}> ()
        b = Constant <value = float[2] {5, 6}> ()
        y = MatMul (x, w)
        z = Add (y, b)
    }""",
        opset=opset,
        ir=ir,
    )
    result = Canonicalize()(model)
    assert ops(result.model) == {"MatMul": 1, "Add": 1}
    assert [value.name for value in result.model.graph.input] == ["x", "w", "b"][
        : 3 if ir < 4 else 1
    ]
    assert list(linears(result.model)) == ["z"]
    assert_same_function(result.model, model)


def test_constants_that_leave_the_graph_or_enter_a_body_stay() -> None:
    # Constant ─▶ k (output);  Constant ─▶ If (x + b | x - b) ─▶ z
    model = build("""g (float[N,2] x, bool c) => (float[N,2] z, float[2] k) {
        k = Constant <value = float[2] {1, 2}> ()
        b = Constant <value = float[2] {5, 6}> ()
        z = If (c) <then_branch = t () => (float[N,2] p) { p = Add (x, b) },
                    else_branch = e () => (float[N,2] q) { q = Sub (x, b) }>
    }""")
    assert not Canonicalize()(model).changed


@pytest.mark.parametrize("dtype", [onnx.TensorProto.INT4, onnx.TensorProto.FLOAT8E4M3FN])
def test_constants_of_types_that_numpy_lacks_stay(dtype: int) -> None:
    # Constant ─▶ Cast ─▶ z
    tensor = onnx.helper.make_tensor("t", dtype, [2], [1.0, 2.0])
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["c"], value=tensor),
            onnx.helper.make_node("Cast", ["c"], ["z"], to=onnx.TensorProto.FLOAT),
        ],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    assert not Canonicalize()(model).changed


def test_strings_and_sparse_constants_stay() -> None:
    values = numpy_helper.from_array(np.array([3], np.float32), "v")
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    sparse = onnx.helper.make_sparse_tensor(values, indices, [2])
    nodes = [
        onnx.helper.make_node("Constant", [], ["a"], value_string="text"),
        onnx.helper.make_node("Constant", [], ["b"], sparse_value=sparse),
        onnx.helper.make_node("Identity", ["a"], ["p"]),
        onnx.helper.make_node("Identity", ["b"], ["q"]),
    ]
    outputs = [
        onnx.helper.make_tensor_value_info("p", onnx.TensorProto.STRING, []),
        onnx.helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, [2]),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], outputs))
    assert not Canonicalize()(model).changed


def test_a_pass_that_leaves_a_foldable_node_is_caught() -> None:
    graph = gs.import_onnx(build(CONV_BN.format(**SIMPLE)))
    with pytest.raises(PostconditionError, match="BatchNormalization 'bn' was left unfolded"):
        Canonicalize().ensures(graph)
