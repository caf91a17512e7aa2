"""What ONNX Runtime does not mind is put right with a note; all else is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fskd_onnx.errors import ModelError
from fskd_onnx.passes.canonicalize import Canonicalize
from fskd_onnx.serialization.model_check import check_texts
from fskd_onnx.serialization.model_files import load_model
from tests.helpers import build, check

# x ─▶ MatMul ─▶ h ─▶ Relu ─▶ r ─▶ MatMul ─▶ y
TEXT = """g (float[N,4] x) => (float[N,3] y) <float[4,6] w, float[6,3] v> {
    h = MatMul (x, w)
    r = Relu (h)
    y = MatMul (r, v)
}"""
VALUES = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
Change = Callable[[onnx.ModelProto], None]


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def stale_extent(model: onnx.ModelProto) -> None:
    model.graph.value_info.extend([info("h", "N", 12), info("r", "N", 6)])


def stale_rank(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(info("h", "N", 6, 1))


def stale_type(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(info("h", "N", 6, kind=TensorProto.FLOAT16))


def stale_weight(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(info("w", 4, 12))


def stale_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(info("y", "N", 8))


def stale_output_rank(model: onnx.ModelProto) -> None:
    model.graph.output[0].CopyFrom(info("y", "N", 8, 1))


def unsorted(model: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in (2, 1, 0))


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def unlisted(model: onnx.ModelProto) -> None:
    model.ir_version = 3


def unnamed(model: onnx.ModelProto) -> None:
    model.graph.name = ""


def unimported(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type, model.graph.node[1].domain = "Gelu", "com.microsoft"


def run(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": VALUES})[0])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (stale_extent, "its value_info of 'h' does not describe"),
        (stale_rank, "its value_info of 'h' does not describe"),
        (stale_type, "its value_info of 'h' does not describe"),
        (stale_weight, "its value_info of 'w' does not describe"),
        (stale_output, "its output 'y' is corrected"),
        (stale_output_rank, "its output 'y' is corrected"),
        (unsorted, "not in topological order"),
        (twice, "holds the initializer 'w' more than once"),
        (unlisted, "its initializer 'w' is not an input"),
        (unnamed, "its graph has no name"),
        (unimported, "imports no operators of 'com.microsoft'"),
    ],
)
def test_what_runs_is_put_right_with_a_note(
    change: Change, note: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(TEXT)
    change(model)
    before = model.SerializeToString()
    with caplog.at_level(logging.WARNING):
        loaded = load_model(model)
    assert len(caplog.messages) == 1
    assert note in caplog.text
    assert model.SerializeToString() == before
    check(loaded)
    if change is not stale_type:  # which ONNX Runtime refuses as it was
        np.testing.assert_array_equal(run(loaded), run(model))
    check(Canonicalize()(loaded).model)


def test_true_value_info_survives_beside_stale_one() -> None:
    model = build(TEXT)
    stale_extent(model)
    assert [value.name for value in load_model(model).graph.value_info] == ["r"]


def test_symbolic_extents_of_a_corrected_output_survive() -> None:
    model = build(TEXT)
    stale_output(model)
    assert load_model(model).graph.output[0] == info("y", "N", 3)


def test_a_sound_model_is_returned_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = build(TEXT)
    model.graph.value_info.extend([info("h", "N", 6), info("r", "N", 6), info("r", "N", 6)])
    assert load_model(model) is model
    assert not caplog.messages


def test_stale_shapes_inside_of_bodies_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    model = build(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            y = If (c) <then_branch = one () => (float[N,4] a) { b = Relu (x)  a = Neg (b) },
                        else_branch = two () => (float[N,4] a) { a = Relu (x) }>
        }"""
    )
    body = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    body.value_info.append(info("b", "N", 9))
    with caplog.at_level(logging.WARNING):
        loaded = load_model(model)
    check(loaded)
    assert "its value_info of 'b'" in caplog.text


def test_a_cycle_is_refused() -> None:
    model = build(TEXT)
    model.graph.node[0].input[0] = "r"
    with pytest.raises(ModelError, match="in a cycle of nodes"):
        load_model(model)


def test_initializers_of_one_name_and_other_values_are_refused() -> None:
    model = build(TEXT)
    other = numpy_helper.from_array(np.zeros((4, 6), np.float32), "w")
    model.graph.initializer.append(other)
    with pytest.raises(ModelError, match="not unique"):
        load_model(model)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Add"])
def test_sparse_initializers_are_accepted(op: str, caplog: pytest.LogCaptureFixture) -> None:
    shape = "4" if op == "Add" else "4,4"
    model = build(f"g (float[N,4] x) => (float[N,4] y) <float[{shape}] w> {{ y = {op} (x, w) }}")
    values = numpy_helper.to_array(model.graph.initializer[0])
    indices = np.arange(0, values.size, 3)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values.reshape(-1)[indices], "w"),
        numpy_helper.from_array(indices, "w_indices"),
        values.shape,
    )
    del model.graph.initializer[:]
    model.graph.sparse_initializer.append(sparse)
    assert load_model(model) is model
    assert not caplog.messages


@pytest.mark.parametrize("old", [b"x", b"MatMul", b"N"])
def test_texts_that_are_none_are_refused(old: bytes) -> None:
    content = build(TEXT).SerializeToString()
    broken = content.replace(old, b"\xff" * len(old))
    with pytest.raises(ValueError, match=r"its \w+ b'.*\\xff.*' is no text in UTF-8"):
        check_texts(onnx.ModelProto.FromString(broken))
    check_texts(onnx.ModelProto.FromString(content))
