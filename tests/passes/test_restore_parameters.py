"""Parameters that stayed what a model computes are computed again; all others stay stored."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.restore_parameters import restore_parameters
from tests.helpers import assert_same_function, build, check, initializers, ops

TWO = """g (float[N,4] x) => (float[N,3] z)
    <int64[1] size, int64[2] at, float[2] values, int64[2] shape, float[3,6] v, float[3,1] g> {
    empty = ConstantOfShape (size)
    row = ScatterElements (empty, at, values)
    placed = Reshape (row, shape)
    squares = Mul (v, v)
    sum = ReduceSum <keepdims = 1> (squares)
    length = Sqrt (sum)
    unit = Div (v, length)
    scaled = Mul (unit, g)
    turned = Transpose (scaled)
    h = MatMul (x, placed)
    z = MatMul (h, turned)
}"""
VALUES = {"size": [24], "at": [1, 20], "values": [0.5, -1.5], "shape": [4, 6]}


def two() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Give a network of two matrices that are computed, and its canonical form."""
    model = build(TWO, VALUES)
    return model, Canonicalize()(model).model


def with_weight(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    [tensor] = [t for t in changed.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1), name))
    return changed


def test_what_stayed_is_computed_as_it_was() -> None:
    model, folded = two()
    assert initializers(folded).keys() == {"placed", "turned"}
    restored = restore_parameters(folded, model)
    assert restored.graph.node == model.graph.node
    own, given = initializers(restored), initializers(model)
    assert {name: a.tobytes() for name, a in own.items()} == {
        name: a.tobytes() for name, a in given.items()
    }
    assert_same_function(restored, model)
    assert restore_parameters(model, model) is model


@pytest.mark.parametrize(("fitted", "other"), [("placed", "turned"), ("turned", "placed")])
def test_what_was_fitted_stays_stored(fitted: str, other: str) -> None:
    model, folded = two()
    changed = with_weight(folded, fitted)
    restored = restore_parameters(changed, model)
    check(restored)
    assert_same_function(restored, changed)
    assert fitted in initializers(restored)
    assert other not in initializers(restored)
    assert restore_parameters(with_weight(changed, other), model).graph.node == folded.graph.node


@pytest.mark.parametrize("fitted", ["a", "b"])
def test_parts_of_one_computation_stay_or_go_together(fitted: str) -> None:
    model = build(
        """g (float[N,4] x) => (float[N,2] z) <float[12] a_and_b, int64[2] halves, int64[2] one,
          int64[2] other> {
            first, second = Split <axis = 0> (a_and_b, halves)
            a = Reshape (first, one)
            b = Reshape (second, other)
            h = MatMul (x, a)
            z = MatMul (h, b)
        }""",
        {"halves": [8, 4], "one": [4, 2], "other": [2, 2]},
    )
    folded = Canonicalize()(model).model
    changed = with_weight(folded, fitted)
    restored = restore_parameters(changed, model)
    check(restored)
    assert_same_function(restored, changed)


def test_a_source_that_was_fitted_is_not_computed_from() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4] s, float[4,4] v, float[4,4] w> {
            c = Mul (s, s)
            h = Gemm (x, v, s)
            z = Gemm (h, w, c)
        }"""
    )
    folded = Canonicalize()(model).model
    assert ops(folded) == {"Gemm": 2}
    changed = with_weight(folded, "s")
    restored = restore_parameters(changed, model)
    assert_same_function(restored, changed)
    assert ops(restored) == {"Gemm": 2}


def test_old_files_list_what_comes_back_among_the_inputs() -> None:
    model, _ = two()
    model.ir_version = 3
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in model.graph.initializer
    )
    restored = restore_parameters(Canonicalize()(model).model, model)
    check(restored)
    assert {value.name for value in restored.graph.input} == {v.name for v in model.graph.input}
    assert ops(restored) == ops(model)
