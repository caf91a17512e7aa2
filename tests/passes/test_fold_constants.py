"""Parameters that a graph computes from constants become initializers, or stay for a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.passes.fold_constants import FoldConstants
from tests.forms.graphs import TOPOLOGIES
from tests.helpers import assert_same_function, build, initializers, linears, ops

# x ─▶ Conv (parameters computed by the nodes in front of it) ─▶ z
CONV = "g (float[N,4,6,6] x) => (float[N,A,B,C] z) <{values}> {{ {nodes} [conv] z = Conv (x, k) }}"
# x ─▶ MatMul ─▶ z
MATMUL = "g ({x}[N,4] x) => ({x}[N,A] z) <{values}> {{ {nodes} [fc] z = MatMul (x, k) }}"

FOLDED = {
    "Identity": CONV.format(values="float[5,4,3,3] w", nodes="i = Identity (w) k = Identity (i)"),
    "shape": CONV.format(
        values="int64[4] s = {5,4,1,1}",
        nodes="k = ConstantOfShape <value = float[1] {0.5}> (s)",
    ),
    "layout": CONV.format(
        values="float[4,1,5] w, int64[2] axes = {2,3}",
        nodes="q = Squeeze (w) t = Transpose (q) k = Unsqueeze (t, axes)",
    ),
    "halves": CONV.format(
        values="float[2,4,3,3] a, float[3,4,3,3] b", nodes="k = Concat <axis = 0> (a, b)"
    ),
    "standardised": CONV.format(
        values="float[5,4,3,3] w, float one = {1}",
        nodes="m = ReduceMean <axes = [1,2,3]> (w) c = Sub (w, m) k = Div (c, one)",
    ),
    "to a lower type": MATMUL.format(
        x="float16", values="float[4,5] w", nodes="k = Cast <to = 10> (w)"
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_weights_of_every_form_become_initializers(name: str) -> None:
    model = build(FOLDED[name])
    before = model.SerializeToString()
    result = FoldConstants()(model)
    assert set(ops(result.model)) <= {"Conv", "MatMul", "Cast"}
    assert [view.shared_with for view in linears(result.model).values()] == [None]
    assert_same_function(result.model, model)
    assert model.SerializeToString() == before
    again = FoldConstants()(result.model)
    assert not again.changed


def test_numbers_that_say_where_elements_move_become_initializers() -> None:
    model = TOPOLOGIES["pads that are put in order"].teacher()
    result = FoldConstants()(model)
    assert ops(result.model) == {"Conv": 2, "Pad": 1, "Relu": 1}
    assert initializers(result.model)["pads"].tolist() == [0, 0, 1, 0, 0, 0, 1, 2]
    assert_same_function(result.model, model)


def test_a_value_to_pad_with_and_long_lists_stay_computed() -> None:
    model = build("""g (float[N,4] x) => (float[A,6] y, float[N,70] z)
      <int64[4] pads = {0,1,0,1}, float zero, int64[70] places> {
        value = Neg (zero)
        y = Pad (x, pads, value)
        valid = Abs (places)
        z = Gather <axis = 1> (x, valid)
    }""")
    assert not FoldConstants()(model).changed


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_behind_a_cast_is_stored_as_before(kind: str) -> None:
    # w (half) ─▶ Cast ─▶ Transpose ─▶ MatMul
    nodes = "c = Cast <to = 1> (w) k = Transpose (c)"
    model = build(MATMUL.format(x="float", values=f"{kind}[5,4] w", nodes=nodes))
    result = FoldConstants()(model).model
    assert ops(result) == {"Cast": 1, "MatMul": 1}
    [tensor] = result.graph.initializer
    assert tensor.data_type == model.graph.initializer[0].data_type
    assert list(tensor.dims) == [4, 5]
    assert_same_function(result, model)


def test_a_cast_alone_is_left_as_it_is() -> None:
    nodes = "k = Cast <to = 1> (w)"
    model = build(MATMUL.format(x="float", values="bfloat16[4,5] w", nodes=nodes))
    assert not FoldConstants()(model).changed
    assert linears(model)["fc"].weight.name == "w"


STAYS = {
    "another node reads what it is computed from": """g (int64[N] ids) => (float[N,5] z)
      <float[5,4] w> {
        e = Gather (w, ids)
        t = Transpose (w)
        z = MatMul (e, t)
    }""",
    "it is an output": """g (float[N,4] x) => (float[N,5] z, float[4,5] t) <float[5,4] w> {
        t = Transpose (w)
        z = MatMul (x, t)
    }""",
    "a body reads it": """g (float[N,4] x, bool c) => (float[N,5] z, float[4,5] k)
      <float[5,4] w> {
        t = Transpose (w)
        z = MatMul (x, t)
        k = If (c) <then_branch = a () => (float[4,5] p) { p = Neg (t) },
                    else_branch = b () => (float[4,5] q) { q = Abs (t) }>
    }""",
    "it is quantized": """g (float[N,4] x) => (float[N,5] z)
      <int8[4,5] w, float s = {0.1}> {
        d = DequantizeLinear (w, s)
        z = MatMul (x, d)
    }""",
    "it is quantized, and that written out": """g (float[N,4] x) => (float[N,5] z)
      <int8[4,5] w, float s = {0.1}> {
        c = Cast <to = 1> (w)
        d = Mul (c, s)
        z = MatMul (x, d)
    }""",
    "it depends on an input": """g (float[N,4] x, float[5,4] w) => (float[N,5] z) {
        t = Transpose (w)
        z = MatMul (x, t)
    }""",
    "it is no parameter": """g (float[N,4] x) => (float[N,4] z) <float[4,4] w> {
        t = Transpose (w)
        z = Max (x, t)
    }""",
    "it is a mask, not one value per channel": """g (float[4,4] x) => (float[4,4] z)
      <float[4,4] w> {
        t = Transpose (w)
        z = Add (x, t)
    }""",
    "its operator is of another domain": """<ir_version: 8, opset_import: ["": 17, "my": 1]>
    g (float[N,4] x) => (float[N,5] z) <float[5,4] w> {
        t = my.Transpose (w)
        z = MatMul (x, t)
    }""",
}


@pytest.mark.parametrize("why", STAYS)
def test_a_parameter_stays_computed_where(why: str) -> None:
    text = STAYS[why]
    model = onnx.parser.parse_model(text) if text.startswith("<ir") else build(text)
    result = FoldConstants()(model)
    assert not result.changed
    assert result.model is model


def test_what_is_random_stays() -> None:
    nodes = "k = RandomNormal <shape = [4,5], seed = 1.0> ()"
    model = build(MATMUL.format(x="float", values="float[1] unused", nodes=nodes))
    assert not FoldConstants()(model).changed


def test_vectors_may_be_copied_and_weights_shared() -> None:
    # Two convolutions read the same weight through Identity, and the same bias negated.
    model = build("""g (float[N,4,6,6] x) => (float[N,4,6,6] z)
      <float[4,4,1,1] w, float[4] b> {
        i = Identity (w)
        c = Neg (b)
        d = Neg (b)
        [one] y = Conv (x, w, c)
        [two] z = Conv (y, i, d)
    }""")
    result = FoldConstants()(model).model
    assert ops(result) == {"Conv": 2}
    assert set(initializers(result)) == {"w", "c", "d"}
    assert {view.shared_with for view in linears(result).values()} == {"one", "two"}
    assert_same_function(result, model)


def test_initializers_of_old_files_stay_inputs() -> None:
    model = build(FOLDED["Identity"], opset=9, ir=3)
    result = FoldConstants()(model).model
    assert [value.name for value in result.graph.input] == ["x", "w"]
    assert_same_function(result, model)


def test_bfloat16_in_a_constant_node_becomes_an_initializer() -> None:
    # Constant (bfloat16) ─▶ Cast ─▶ MatMul
    model = build(MATMUL.format(x="float", values="bfloat16[4,5] w", nodes="k = Cast <to = 1> (w)"))
    tensor = model.graph.initializer[0]
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    del model.graph.initializer[:]
    result = FoldConstants()(model).model
    [stored] = result.graph.initializer
    assert stored.data_type == onnx.TensorProto.BFLOAT16
    read = onnx.numpy_helper.to_array(stored).astype(np.float32)
    np.testing.assert_array_equal(read, values)
    assert_same_function(result, model)
