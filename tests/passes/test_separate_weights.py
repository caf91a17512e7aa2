"""Models apart from their large weights say the same, and share the memory of these."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.passes.separate_weights import (
    Separated,
    separate,
    separate_constants,
    without_weights,
)
from tests.helpers import Array, build, joined

# x ─▶ MatMul (w) ─▶ Add (b) ─▶ z; nobody reads u
TEXT = """g (float[N,64] x) => (float[N,64] z) <float[64,64] w, float[64] b, float[64,64] u> {
    h = MatMul (x, w)
    z = Add (h, b)
}"""


def constants(*tensors: gs.Constant) -> tuple[Mapping[str, TensorProto], Mapping[str, Array]]:
    initializers, weights = separate_constants(tensors)
    return {tensor.name: tensor for tensor in initializers}, weights


def test_large_weights_that_somebody_reads_are_apart() -> None:
    model = build(TEXT)
    before = model.SerializeToString()
    apart = separate(model)
    assert list(apart.weights) == ["w"]
    assert apart.weights["w"].shape == (64, 64)
    assert joined(apart) == model
    assert model.SerializeToString() == before


def test_what_only_a_body_reads_is_apart() -> None:
    # x ─▶ If (MatMul (w) or Identity) ─▶ z
    model = build("""g (float[N,64] x, bool c) => (float[N,64] z) <float[64,64] w> {
        z = If (c) <
            then_branch = one () => (float[N,64] p) { p = MatMul (x, w) },
            else_branch = two () => (float[N,64] q) { q = Identity (x) }>
    }""")
    assert list(separate(model).weights) == ["w"]


def test_weights_in_files_stay_there() -> None:
    model = build(TEXT)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], location="w.bin")
    model.graph.initializer[0].ClearField("raw_data")
    apart = separate(model)
    assert apart == Separated(model, {})


@pytest.mark.parametrize(
    "kind",
    [
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16),
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL),
    ],
)
def test_every_element_type_of_whole_bytes_can_be_apart(kind: int) -> None:
    model = build(TEXT)
    [w, *_] = model.graph.initializer
    values = np.random.default_rng(0).integers(0, 2, (128, 256))
    w.CopyFrom(onnx.helper.make_tensor("w", kind, values.shape, values.flatten()))
    typed = separate(model)
    assert (typed.weights, typed.model) == ({}, model)  # it is stored value by value
    raw = numpy_helper.from_array(numpy_helper.to_array(w)).raw_data
    w.CopyFrom(TensorProto(name="w", data_type=kind, dims=values.shape, raw_data=raw))
    apart = separate(model)
    assert apart.weights["w"].itemsize * values.size == len(raw)
    assert joined(apart) == model


def test_values_that_are_too_few_for_their_shape_stay_for_the_runtime_to_refuse() -> None:
    model = build(TEXT)
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4] * 2
    assert separate(model) == Separated(model, {})


def test_constants_of_a_graph_are_not_copied() -> None:
    values = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    tensors, weights = constants(gs.Constant("w", values), gs.Constant("b", values[0].copy()))
    assert list(weights) == ["w"]
    assert np.shares_memory(weights["w"], values)
    assert (tensors["w"].data_type, list(tensors["w"].dims)) == (TensorProto.FLOAT, [64, 64])
    assert uses_external_data(tensors["w"])
    np.testing.assert_array_equal(numpy_helper.to_array(tensors["b"]), values[0])


def test_constants_that_nobody_has_read_yet_are_apart_as_well() -> None:
    model = build(TEXT)
    held = gs.import_onnx(model).tensors()
    tensors, weights = constants(held["w"], held["b"])
    expected = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_array_equal(weights["w"].view(np.float32), expected)
    assert tensors["b"] == model.graph.initializer[1]


def test_texts_are_no_weights() -> None:
    words = numpy_helper.from_array(np.array(["a", "b"] * 4096, dtype=object), "words")
    model = build("g (string[N] x) => (string[N] z) { z = Identity (x) }")
    model.graph.initializer.append(words)
    model.graph.node[0].op_type = "Concat"
    model.graph.node[0].input.append("words")
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("axis", 0))
    assert separate(model) == Separated(model, {})
    tensors, weights = constants(gs.import_onnx(model).tensors()["words"])
    assert (tensors, weights) == ({"words": words}, {})


def test_all_of_a_model_but_its_weights_is_kept() -> None:
    model = build(TEXT)
    model.metadata_props.add(key="author", value="me")
    model.producer_name, model.graph.doc_string, model.model_version = "tool", "a net", 3
    light = without_weights(model)
    assert not light.graph.initializer
    light.graph.initializer.extend(model.graph.initializer)
    assert light == model
