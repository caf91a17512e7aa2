"""Agreement of two models: the numbers, and models that cannot be held against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fskd_onnx import RunOptions
from fskd_onnx.errors import ModelError
from fskd_onnx.reporting.agreement import agreement
from fskd_onnx.reporting.compare import compare
from fskd_onnx.serialization.interface import check_same_interface
from tests.helpers import Array, build

CPU = RunOptions(providers=("cpu",))


def outputs(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_error_is_relative_to_the_teachers_variance() -> None:
    teacher, student = outputs(0, 6, 4) + 100, outputs(1, 6, 4) + 100
    found = agreement([teacher], [student])
    t, s = teacher.astype(np.float64), student.astype(np.float64)
    expected = ((t - s) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    assert found.relative_mse == pytest.approx(expected, rel=1e-12)
    assert agreement([teacher], [np.broadcast_to(t.mean(0), t.shape)]).relative_mse == 1.0
    assert agreement([teacher], [teacher]).relative_mse == 0.0


def test_all_outputs_count_by_their_size() -> None:
    one, other = outputs(0, 6, 4), 10 * outputs(1, 6, 2, 3)
    found = agreement([one, other], [one, other + 1])
    energies = [((t.astype(np.float64) - t.mean(0)) ** 2).sum() for t in (one, other)]
    assert found.relative_mse == pytest.approx(36 / sum(energies), rel=1e-5)


def test_without_variance_the_error_is_relative_to_the_size() -> None:
    one = np.array([[3.0, 4.0]])
    assert agreement([one], [one + np.array([0.0, 5.0])]).relative_mse == 1.0
    assert agreement([one], [one]).relative_mse == 0.0
    still = np.full((4, 2), 2.0)
    assert agreement([still], [still + 1]).relative_mse == 0.25
    zero = np.zeros((4, 2))
    assert agreement([zero], [zero + 0.5]).relative_mse == 2.0
    assert agreement([zero], [zero]).relative_mse == 0.0


def test_outputs_of_other_shapes_are_refused() -> None:
    one, other = [outputs(0, 4, 3), outputs(0, 4, 6, 2)], [outputs(0, 4, 3), outputs(0, 4, 5, 2)]
    with pytest.raises(ModelError, match=r"^output 2 .* \(5, 2\) .* teacher \(6, 2\)"):
        agreement(one, other)


def test_small_types_do_not_overflow() -> None:
    teacher = np.array([[6e4], [-6e4]], np.float16)
    assert agreement([teacher], [-teacher]).relative_mse == 4.0


def test_what_is_not_finite_is_not_hidden() -> None:
    teacher, student = outputs(0, 6, 4), outputs(1, 6, 4)
    student[0, 0] = np.nan
    assert np.isnan(agreement([teacher], [student]).relative_mse)


SCORES = np.array([[1, 2, 0], [5, 4, 3], [0, 1, 9], [7, 0, 6]], np.float32)


@pytest.mark.parametrize(
    ("teacher", "student", "top1"),
    [
        ([SCORES], [SCORES[:, [0, 2, 1]]], 0.5),
        ([SCORES.reshape(4, 3, 1, 1)], [SCORES.reshape(4, 3, 1, 1)], 1.0),
        ([outputs(0, 4, 3, 2), SCORES], [outputs(1, 4, 3, 2), -SCORES], 0.0),
        ([outputs(0, 4, 3, 2)], [outputs(1, 4, 3, 2)], None),
        ([outputs(0, 4, 1)], [outputs(1, 4, 1)], None),
        ([outputs(0, 4)], [outputs(1, 4)], None),
    ],
    ids=["rows", "maps of one position", "second output", "maps", "one class", "no class"],
)
def test_top_1(teacher: list[Array], student: list[Array], top1: float | None) -> None:
    assert agreement(teacher, student).top1_agreement == top1


# x ─▶ Gemm ─▶ z, and x ─▶ Relu ─▶ r
TEXT = """g (float[{n},4] {x}) => (float[{n},3] z, float[{n},4] r) <float[4,3] w> {{
    z = Gemm ({x}, w)
    r = Relu ({x})
}}"""


@pytest.mark.parametrize("batch", ["N", "4", "1"])
def test_models_are_run_in_batches_that_they_take(batch: str, tmp_path: Path) -> None:
    weights = outputs(0, 2, 4, 3)
    teacher = build(TEXT.format(n="N", x="x"), {"w": weights[0]})
    student = build(TEXT.format(n=batch, x="other"), {"w": weights[1]})
    x = outputs(3, 7, 4)
    labels = tmp_path / "labels.npy"
    expected = [x @ w for w in weights]
    np.save(labels, expected[0].argmax(1))
    found = compare(teacher, student, {"x": x}, CPU, labels)
    assert found.count == 7
    relu = np.maximum(x, 0)
    direct = agreement([expected[0], relu], [expected[1], relu])
    assert found.agreement.relative_mse == pytest.approx(direct.relative_mse, rel=1e-5)
    assert found.agreement.top1_agreement == direct.top1_agreement
    assert found.accuracy_teacher == 1.0
    assert found.accuracy_student == direct.top1_agreement

    small = RunOptions(providers=("cpu",), batch_size=2, max_samples=5)
    fewer = compare(teacher, student, {"x": x}, small)
    assert fewer.count == 5
    assert fewer.accuracy_teacher is None
    assert fewer == compare(teacher, student, {"x": x}, small)


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        ("float[N,4] x", "float[N,4] x, float[N,4] y"),
        ("float[N,4] x", "double[N,4] x"),
        ("float[N,4] x", "float[N,4,1] x"),
        ("float[N,4] x", "float[N,5] x"),
    ],
    ids=["count", "type", "rank", "extent"],
)
def test_other_inputs_are_refused(inputs: str, other: str) -> None:
    big, small = (
        build(f"g ({part}) => ({part.split()[0]} z) {{ z = Neg (x) }}") for part in (inputs, other)
    )
    with pytest.raises(ModelError, match=r"^small: takes other inputs \(x .*\) than big \(x "):
        check_same_interface(big, small, "big", "small")


def test_open_extents_and_batches_fit_all() -> None:
    one, other = (
        build(f"g (float[{shape}] x) => (float[{shape}] z) {{ z = Neg (x) }}")
        for shape in ("4,3,H,7", "N,3,5,7")
    )
    check_same_interface(one, other, "one", "other")
    check_same_interface(other, one, "other", "one")


def test_another_number_of_outputs_is_refused() -> None:
    one = build("g (float[N,4] x) => (float[N,4] z) { z = Neg (x) }")
    two = build("g (float[N,4] x) => (float[N,4] z, float[N,4] y) { z = Neg (x) y = Abs (x) }")
    with pytest.raises(ModelError, match=r"^small: has 2 outputs and big has 1"):
        check_same_interface(one, two, "big", "small")


def test_what_the_runtime_cannot_run_is_named() -> None:
    text = "{} (double[N,4,5] x) => (double[N,6,5] z) <double[6,4,1] w> {{ z = Conv (x, w) }}"
    big, small = (build(text.format(name)) for name in ("big", "small"))
    with pytest.raises(ModelError, match=r"^big: ONNX Runtime cannot run it: .*Conv") as caught:
        compare(big, small, {"x": np.zeros((3, 4, 5))}, CPU)
    assert "\n" not in str(caught.value)


def test_an_output_without_samples_is_named() -> None:
    model = build("g (float[N,3] x) => (float mean) { mean = ReduceMean <keepdims = 0> (x) }")
    with pytest.raises(ModelError, match=r"^g: its output 'mean' is one number for all samples"):
        compare(model, model, outputs(0, 4, 3), CPU)


def test_errors_of_the_runtime_come_without_places_in_its_source() -> None:
    newer = build("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }", opset=99)
    with pytest.raises(ModelError) as caught:
        compare(newer, newer, outputs(0, 4, 3), CPU)
    start = "g: ONNX Runtime cannot run it: ONNX Runtime only *guarantees* support"
    assert str(caught.value).startswith(start)
