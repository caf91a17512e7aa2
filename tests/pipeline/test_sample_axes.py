"""Fits of networks whose samples lie on any axis, and whose inputs and outputs are in any order."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions, fit
from tests.helpers import build, initializers, run

CPU = RunOptions(providers=("cpu",))
# Tokens on the second axis, on the first one, joined with the samples and joined in front of them;
# a pair of heads beside them.
TOKENS = """net (float[{shape},6] x) => ({order})
  <float[6,8] w, float[8,4] v, float[8,4] u, int64[2] flat = {{-1,6}}, float[3,2] t> {{
    {front} = {how} (x{more})
    [a] h = MatMul (f, w)
    r = Relu (h)
    [b] y = MatMul (r, v)
    [c] z = MatMul (r, u)
    table = Identity (t)
}}"""
LAYOUTS = {
    "tokens": ("N,5", "Identity", "", "float[N,5,4]"),
    "time first": ("5,N", "Identity", "", "float[5,N,4]"),
    "time first, any": ("T,N", "Identity", "", "float[T,N,4]"),
    "turned": ("N,5", "Transpose <perm = [1,0,2]>", "", "float[5,N,4]"),
    "an axis in front": ("N", "Unsqueeze", ", axis", "float[1,N,4]"),
    "rows": ("N,5", "Reshape", ", flat", "float[M,4]"),
    "rows, fixed": ("4,5", "Reshape", ", flat", "float[20,4]"),
    "rows, one sample": ("1,5", "Reshape", ", flat", "float[5,4]"),
    "interleaved": ("5,N", "Reshape", ", flat", "float[M,4]"),
}


def tokens(layout: str, order: str = "yz", seed: int = 0) -> onnx.ModelProto:
    shape, how, more, kind = LAYOUTS[layout]
    outputs = [f"{kind} {name}" for name in order]
    text = TOKENS.format(
        shape=shape, how=how, more=more, front="f", order=", ".join([*outputs, "float[3,2] table"])
    )
    if more == ", axis":
        text = text.replace("float[3,2] t>", "float[3,2] t, int64[1] axis = {0}>")
    return build(text, seed=seed)


def with_noise(teacher: onnx.ModelProto, student: onnx.ModelProto) -> onnx.ModelProto:
    """Give a student its teacher's weights with some noise."""
    rng, values = np.random.default_rng(3), initializers(teacher)
    for tensor in student.graph.initializer:
        value = values[tensor.name]
        if tensor.name in ("w", "v", "u"):
            value = (value * rng.uniform(0.7, 1.3, value.shape)).astype(value.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return student


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_on_any_axis_are_fitted_and_judged(layout: str) -> None:
    teacher = tokens(layout)
    student = with_noise(teacher, tokens(layout, "zy"))
    shape = [60 if size in ("N", "4", "1") else 5 for size in LAYOUTS[layout][0].split(",")]
    x = np.random.default_rng(0).standard_normal((*shape, 6)).astype(np.float32)
    result = fit(teacher, student, x, FitOptions(CPU))
    report = result.report
    assert [block.status for block in report.blocks] == ["fitted"] * 3
    assert report.before.relative_mse > 0.01
    assert report.after.relative_mse < 1e-9
    assert report.outputs_left_out == (("table", "it is the same for all samples"),)
    assert [output.name for output in result.model.graph.output] == ["z", "y", "table"]
    fresh = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    if student.graph.input[0].type.tensor_type.shape.dim[0].dim_value in (1, 4):
        fresh = fresh[: student.graph.input[0].type.tensor_type.shape.dim[0].dim_value]
    one, other = (run(model, {"x": fresh}) for model in (teacher, result.model))
    for name in ("y", "z"):
        np.testing.assert_allclose(other[name], one[name], atol=2e-4)


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (3, 4), ("N", 4), (4, "N"), (2, 2)])
def test_teacher_and_student_take_other_numbers_of_samples(sizes: tuple[object, object]) -> None:
    text = """net (float[{0},3,5,5] x) => (float[{0},4] y)
      <float[6,3,3,3] w, float[6,6,1,1] u, float[6,4] v, float[6] b> {{
        h = Conv <pads = [1,1,1,1]> (x, w, b)
        r = Relu (h)
        k = Conv (r, u)
        s = Add (k, r)
        p = GlobalAveragePool (s)
        f = Flatten (p)
        y = MatMul (f, v)
    }}"""
    models = [build(text.format(size)) for size in sizes]
    student = with_noise(models[0], models[1])
    x = np.random.default_rng(0).standard_normal((62, 3, 5, 5)).astype(np.float32)
    report = fit(models[0], student, x, FitOptions(CPU)).report
    assert report.after.relative_mse < 1e-6 < report.before.relative_mse
    assert "fitted" in [block.status for block in report.blocks]
    same = fit(
        build(text.format("N")), with_noise(models[0], build(text.format("N"))), x, FitOptions(CPU)
    ).report
    np.testing.assert_allclose(report.before.relative_mse, same.before.relative_mse, rtol=1e-5)
    assert [block.status for block in report.blocks] == [block.status for block in same.blocks]
