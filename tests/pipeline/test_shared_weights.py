"""Whole fits of students that use one weight in several places."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fskd_onnx import FitOptions, FitResult, RunOptions, fit
from fskd_onnx.passes import Canonicalize, FuseAdapter, InsertAdapter
from fskd_onnx.results import BlockReport
from fskd_onnx.serialization.model_files import count_parameters
from tests.coverage import assert_survives
from tests.forms.form import noisy
from tests.helpers import (
    Array,
    assert_close,
    build,
    initializers,
    linears,
    ops,
    random_adapters,
    run,
)

CPU = RunOptions(providers=("cpu",))

# x ─▶ fine ─▶ Relu ─▶ coarse ─▶ Relu ─▶ last ─▶ Relu      a head on each of the three
#              └▶ inner1 ─▶ Relu ─▶ outer1   └▶ inner2 ...  └▶ inner3 ...
PYRAMID = """g (float[N,3,8,8] x) => (float[N,4,8,8] z1, float[N,4,4,4] z2, float[N,4,2,2] z3)
  <float[6,3,3,3] a, float[6,6,3,3] b, float[6,6,3,3] c, float[6] bias,
   float[{n},6,3,3] h1, float[{n},6,3,3] h2, float[{n},6,3,3] h3, float[{n}] i1, float[{n}] i2,
   float[{n}] i3, float[4,{n},1,1] o1, float[4,{n},1,1] o2, float[4,{n},1,1] o3> {{
    [fine] p1 = Conv <pads = [1,1,1,1]> (x, a, bias)
    q1 = Relu (p1)
    [coarse] p2 = Conv <pads = [1,1,1,1], strides = [2,2]> (q1, b, bias)
    q2 = Relu (p2)
    [last] p3 = Conv <pads = [1,1,1,1], strides = [2,2]> (q2, c, bias)
    q3 = Relu (p3)
    [inner1] s1 = Conv <pads = [1,1,1,1]> (q1, h1, i1)
    [inner2] s2 = Conv <pads = [1,1,1,1]> (q2, h2, i2)
    [inner3] s3 = Conv <pads = [1,1,1,1]> (q3, h3, i3)
    t1 = Relu (s1)
    t2 = Relu (s2)
    t3 = Relu (s3)
    [outer1] z1 = Conv (t1, o1)
    [outer2] z2 = Conv (t2, o2)
    [outer3] z3 = Conv (t3, o3)
}}"""
WIDTH, KEPT = 8, np.array([6, 1, 4, 0, 3])


def pyramid(tied: bool, values: dict[str, Array], n: int = WIDTH) -> onnx.ModelProto:
    text = PYRAMID.format(n=n)
    if tied:
        head, nodes = text.split("{", 1)
        text = head + "{" + re.sub(r"\b([hio])[23]\b", r"\g<1>1", nodes)
    return build(text, values)


def networks(
    teacher_tied: bool, student_tied: bool, pruned: bool
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A teacher whose heads are one, or nearly, and its student: noisy and perhaps narrower."""
    values = initializers(pyramid(False, {}))
    rng = np.random.default_rng(4)
    for key in "hio":
        for level in "23":
            value = values[f"{key}1"]
            noise = rng.standard_normal(value.shape) * value.std() / 20
            values[f"{key}{level}"] = (value + noise).astype(value.dtype)
    teacher = pyramid(teacher_tied, values)
    if pruned:
        for level in "123":
            for key in "hi":
                values[f"{key}{level}"] = values[f"{key}{level}"][KEPT]
            values[f"o{level}"] = values[f"o{level}"][:, KEPT]
    student = pyramid(student_tied, values, len(KEPT) if pruned else WIDTH)
    return teacher, noisy(student, amount=0.02 if pruned else 0.1)


def fitted(
    teacher: onnx.ModelProto,
    student: onnx.ModelProto,
    samples: dict[str, Array],
    targets: str = "kept",
) -> FitResult:
    """Fit, and check what holds of every student."""
    before = student.SerializeToString()
    result = fit(teacher, student, samples, FitOptions(CPU, targets=targets))
    assert student.SerializeToString() == before
    assert result.report.after.relative_mse < result.report.before.relative_mse
    if targets == "kept":
        assert_survives(result, student, Canonicalize()(student).model)
    return result


def rows(result: FitResult) -> dict[str, BlockReport]:
    return {block.student: block for block in result.report.blocks}


TIES = [(True, True), (True, False), (False, True), (False, False)]
# Channels of one head that stands for several of different weights cannot be chosen anew.
CASES = [
    *((*ties, pruned, "kept") for ties in TIES for pruned in (False, True)),
    *((*ties, True, "select") for ties in TIES if ties != (False, True)),
]


@pytest.mark.parametrize(("teacher_tied", "student_tied", "pruned", "targets"), CASES)
def test_heads_of_three_scales_are_fitted_together(
    teacher_tied: bool, student_tied: bool, pruned: bool, targets: str
) -> None:
    teacher, student = networks(teacher_tied, student_tied, pruned)
    samples = {"x": np.random.default_rng(5).standard_normal((60, 3, 8, 8), np.float32)}
    result = fitted(teacher, student, samples, targets=targets)
    # A narrower head cannot give it all; one that is as wide, all that one head can.
    limit = 0.9 if pruned else 0.2
    assert result.report.after.relative_mse < limit * result.report.before.relative_mse
    found = rows(result)
    assert list(found) == list(linears(student))
    for block in ("inner", "outer"):
        uses = [found[f"{block}{level}"] for level in "123"]
        # Chosen channels start from the teacher's weights, which for the inner layer are enough.
        if block == "outer" or targets == "kept":
            assert {use.status for use in uses} == {"fitted"}
        output = "s" if block == "inner" else "z"
        assert [use.teacher for use in uses] == [f"{output}{level}" for level in "123"]
        if student_tied:
            shared = {(u.adapter, u.ridge, u.error_before, u.error_after, u.channels) for u in uses}
            assert len(shared) == 1
    fused = result.model
    assert ops(fused) == ops(student)
    assert [list(node.input[:2]) for node in fused.graph.node] == [
        list(node.input[:2]) for node in student.graph.node
    ]
    new_biases = sum(len(v.bias) for v in linears(fused).values() if v.name.startswith("outer"))
    # The bias of three layers is one constant no more, as ever; that of the heads still is.
    grown = 2 * 6 + (new_biases // 3 if student_tied else new_biases)
    assert count_parameters(fused) <= count_parameters(student) + grown
    if student_tied:
        for block in ("inner", "outer"):
            views = [linears(fused)[f"{block}{level}"] for level in "123"]
            assert len({view.weight.name for view in views}) == 1
            assert len({str(view.bias_constant and view.bias_constant.name) for view in views}) == 1


def test_fusing_equals_explicit_adapters_behind_every_use() -> None:
    _, student = networks(True, True, False)
    adapters = random_adapters(student)
    assert set(adapters) == set(linears(student))
    explicit = InsertAdapter(adapters)(student).model
    fused = FuseAdapter()(explicit).model
    feeds = {"x": np.random.default_rng(6).standard_normal((4, 3, 8, 8), np.float32)}
    assert_close(run(fused, feeds), run(explicit, feeds))
    assert ops(fused) == ops(student)


BRANCHES = """g (float[N,6] x1, float[N,6] x2) => (float[N,4] z1, float[N,4] z2)
  <{kind}[6,8] ws, float[8] b, float[8,4] k, float[8,4] m> {{
    w = {cast} (ws)
    [one] y1 = MatMul (x1, w)
    h1 = Add (y1, b)
    r1 = Relu (h1)
    [out1] z1 = MatMul (r1, k)
    [two] y2 = MatMul (x2, w)
    h2 = Add (y2, b)
    r2 = {behind} (h2)
    [out2] z2 = MatMul (r2, m)
}}"""


@pytest.mark.parametrize("behind", ["Relu", "Tanh"])
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_siamese_branches_with_the_same_or_another_activation(kind: str, behind: str) -> None:
    cast = "Identity" if kind == "float" else "Cast <to = 1>"
    teacher = build(BRANCHES.format(kind=kind, cast=cast, behind=behind))
    rng = np.random.default_rng(5)
    samples = {name: rng.standard_normal((70, 6)).astype(np.float32) for name in ("x1", "x2")}
    result = fitted(teacher, noisy(teacher), samples)
    assert {row.status for row in rows(result).values()} == {"fitted"}
    assert result.report.after.relative_mse < 1e-4 * result.report.before.relative_mse
    stored = {tensor.name: tensor for tensor in result.model.graph.initializer}["ws"]
    assert stored.data_type == onnx.helper.np_dtype_to_tensor_dtype(
        np.dtype(np.float16 if kind == "float16" else np.float32)
    )


def test_one_block_is_fitted_to_two_of_the_teacher_as_least_squares_would() -> None:
    text = """g (float[N,6] x1, float[N,6] x2) => (float[N,4] z1, float[N,4] z2)
      <float[6,4] w, float[6,4] v, float[4] b, float[4] c> {
        [one] z1 = Gemm (x1, w, b)
        [two] z2 = Gemm (x2, %s)
    }"""
    teacher, student = build(text % "v, c", seed=1), build(text % "w, b", seed=2)
    rng = np.random.default_rng(5)
    samples = {name: rng.standard_normal((3000, 6)).astype(np.float32) for name in ("x1", "x2")}
    given = initializers(teacher)
    result = fitted(teacher, student, samples)
    view = linears(result.model)["one"]
    # Of as many columns of equal covariance each, the middle of both.
    np.testing.assert_allclose(view.matrix[0].T, (given["w"] + given["v"]) / 2, atol=0.1)
    np.testing.assert_allclose(view.bias, (given["b"] + given["c"]) / 2, atol=0.1)


def test_a_weight_that_is_also_an_output_or_read_by_a_mul_is_left_alone() -> None:
    text = """g (float[N,6] x1, float[N,6] x2) => (float[N,4] z1, float[N,4] z2{more})
      <float[6,4] w, float[4,4] k, float[4,4] l> {{
        [one] y1 = Gemm (x1, w)
        [two] y2 = Gemm (x2, w)
        {node}
        [out1] z1 = Gemm (y1, k)
        [out2] z2 = Gemm (y2, l)
    }}"""
    rng = np.random.default_rng(5)
    samples = {name: rng.standard_normal((60, 6)).astype(np.float32) for name in ("x1", "x2")}
    for more, node, reason in (
        (", float[6,4] w", "", "its weight 'w' is also an output of the graph"),
        (", float[6,4] v", "[scaled] v = Mul (w, w)", "its weights are also those of 'scaled'"),
    ):
        teacher = build(text.format(more=more, node=node))
        student = noisy(teacher)
        result = fit(teacher, student, samples, FitOptions(CPU))
        found = rows(result)
        for name in ("one", "two"):
            assert (found[name].status, found[name].reason) == ("kept", reason)
        fused = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
        np.testing.assert_array_equal(fused["w"], initializers(student)["w"])


@pytest.mark.parametrize("teacher_tied", [True, False])
def test_activations_of_all_uses_decide_on_channels_that_weights_leave_open(
    teacher_tied: bool,
) -> None:
    teacher, student = networks(teacher_tied, True, True)
    student = noisy(student, amount=0.5, seed=3)
    samples = {"x": np.random.default_rng(5).standard_normal((60, 3, 8, 8), np.float32)}
    result = fitted(teacher, student, samples)
    for level in "123":
        assert rows(result)[f"inner{level}"].channels == tuple(KEPT)
        assert rows(result)[f"inner{level}"].status == "fitted"
