"""A fit where blocks are in bodies of Ifs, whose conditions samples decide."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx import (
    CompressOptions,
    FitOptions,
    FitResult,
    NoImprovementError,
    RunOptions,
    compress,
    fit,
    match,
)
from fskd_onnx.errors import MatchError, ModelError
from fskd_onnx.passes.analysis.random_nodes import bodies_of
from fskd_onnx.serialization.model_files import count_parameters
from tests.helpers import Array, build, check, run

RUN = FitOptions(RunOptions(("cpu",)))

# As a network for two sampling rates: each has a body with a network of its own, in which another
# If asks for the number of channels that came in.
NETWORK = """g (float[N,4] x, int64 rate) => (float[N,5] z)
<int64 sixteen = {16000}, int64[1] one = {1}> {
    fast = Equal (rate, sixteen)
    z = If (fast) <
        then_branch = at_16 () => (float[N,5] out) <float[4,12] w0, float[12] b0, int64 four = {4},
            int64 axis = {1}, float[12,5] w1, float[5] b1> {
            h = Gemm (x, w0, b0)
            shape = Shape (x)  width = Gather (shape, axis)  has_four = Equal (width, four)
            r = If (has_four) <
                then_branch = yes () => (float[N,12] a) { a = Relu (h) },
                else_branch = no () => (float[N,12] a) { a = Tanh (h) }>
            out = Gemm (r, w1, b1)
        },
        else_branch = at_8 () => (float[N,5] out) <float[4,12] w0, float[12] b0, float[12,5] w1,
            float[5] b1> {
            h = Gemm (x, w0, b0)  r = Relu (h)  out = Gemm (r, w1, b1)
        }>
}"""


def body(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    node = next(node for node in model.graph.node if node.op_type == "If")
    return next(each for each in bodies_of(node) if each.name == name)


def pruned(model: onnx.ModelProto, name: str, keep: int) -> onnx.ModelProto:
    """Keep the first channels between the two matrices of a body."""
    student = onnx.ModelProto()
    student.CopyFrom(model)
    for tensor in body(student, name).initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name == "w0":
            values = values[:, :keep]
        elif tensor.name == "b0" or tensor.name == "w1":
            values = values[:keep]
        else:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    for node in body(student, name).node:
        for inner in bodies_of(node):
            inner.output[0].type.tensor_type.shape.dim[1].dim_value = keep
    check(student)
    return student


TEACHER = build(NETWORK)
STUDENT = pruned(TEACHER, "at_16", 8)


def samples(count: int, seed: int, rate: int = 16000) -> dict[str, Array]:
    x = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
    return {"x": x, "rate": np.array(rate)}


def error(model: onnx.ModelProto, rate: int = 16000) -> float:
    """Give the relative error on samples that no fit has seen."""
    feeds = samples(200, 5, rate)
    one, other = run(model, feeds)["z"], run(TEACHER, feeds)["z"]
    return float(((one - other) ** 2).sum() / ((other - other.mean(0)) ** 2).sum())


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    return fit(TEACHER, STUDENT, samples(100, 1), RUN)


def test_the_body_that_the_samples_take_is_fitted(fitted: FitResult) -> None:
    assert error(fitted.model) < 0.3 * error(STUDENT)
    status = {block.student: block.status for block in fitted.report.blocks}
    assert len(status) == 2
    assert "fitted" in status.values()


def test_the_other_body_stays_byte_for_byte(fitted: FitResult) -> None:
    one, other = (body(model, "at_8") for model in (fitted.model, STUDENT))
    assert one.SerializeToString() == other.SerializeToString()
    assert error(fitted.model, 8000) == error(STUDENT, 8000) == 0


def test_the_graph_is_as_it_was_but_for_weights(fitted: FitResult) -> None:
    check(fitted.model)
    assert count_parameters(fitted.model) == count_parameters(STUDENT)
    assert count_parameters(TEACHER) == 2 * (4 * 12 + 12 + 12 * 5 + 5)
    for name in ("at_16", "at_8"):
        kinds = [
            [(node.op_type, len(node.attribute)) for node in body(model, name).node]
            for model in (fitted.model, STUDENT)
        ]
        assert kinds[0] == kinds[1]


def test_blocks_that_are_the_teachers_keep_their_bytes() -> None:
    worse = onnx.ModelProto()
    worse.CopyFrom(TEACHER)
    last = next(t for t in body(worse, "at_8").initializer if t.name == "w1")
    noisy = onnx.numpy_helper.to_array(last) * np.float32(1.5)
    last.CopyFrom(onnx.numpy_helper.from_array(noisy, last.name))
    result = fit(TEACHER, worse, samples(100, 1, 8000), RUN)
    assert [block.status for block in result.report.blocks] == ["kept", "fitted"]
    assert error(result.model, 8000) < 1e-9


def test_a_condition_that_differs_between_samples_leaves_the_if_alone() -> None:
    text = """g (float[N,4] x) => (float[N,3] z) <float[4,3] w, float[3] zero = {0,0,0}> {
        y = MatMul (x, w)
        m = ReduceMax <keepdims = 0> (x)
        l = Constant <value_float = 2.5> ()
        c = Greater (m, l)
        z = If (c) <
            then_branch = one () => (float[N,3] a) <float[3,3] v> { a = MatMul (y, v) },
            else_branch = two () => (float[N,3] b) { b = Identity (y) }>
    }"""
    teacher = build(text)
    student = build(text, {"w": np.random.default_rng(9).standard_normal((4, 3))})
    run_one = FitOptions(RunOptions(("cpu",), batch_size=1))
    feeds = {"x": samples(60, 3)["x"]}
    try:
        blocks = fit(teacher, student, feeds, run_one).report.blocks
    except NoImprovementError as refused:
        blocks = refused.report.blocks
    alone = next(block for block in blocks if block.op == "If")
    assert alone.status == "kept"
    assert "in its bodies" in alone.reason


def test_a_condition_on_how_many_run_together_leaves_the_if_alone() -> None:
    text = """g (float[N,4] x) => (float[N,3] z) <int64 one = {1}, int64 zero = {0}> {
        shape = Shape (x)  n = Gather (shape, zero)  c = Equal (n, one)
        z = If (c) <
            then_branch = a () => (float[N,3] a) <float[4,3] v> { a = MatMul (x, v) },
            else_branch = b () => (float[N,3] b) <float[4,3] w> { b = MatMul (x, w) }>
    }"""
    teacher = build(text)
    with pytest.raises(MatchError, match="in its bodies run in a scope of their own"):
        fit(teacher, build(text, seed=1), {"x": samples(60, 3)["x"]}, RUN)


def test_match_shows_the_blocks_of_bodies_where_samples_are_given() -> None:
    pairs = match(TEACHER, STUDENT, samples(30, 2), RunOptions(("cpu",))).pairs
    assert [pair.teacher is not None for pair in pairs] == [True, True]
    [alone] = match(TEACHER, STUDENT).pairs
    assert "in its bodies" in alone.reason


def test_compress_does_not_know_what_bodies_cost() -> None:
    options = CompressOptions(run=RunOptions(("cpu",)))
    with pytest.raises(ModelError, match=r"'z' .those of 'If' are not counted"):
        compress(TEACHER, samples(30, 2), options)
