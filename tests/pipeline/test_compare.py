"""Two models are compared on samples, and models that cannot be are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fskd_onnx import RunOptions
from fskd_onnx.errors import ModelError, SamplesError
from fskd_onnx.pipeline.compare import compare
from fskd_onnx.reporting.agreement import agreement
from tests.helpers import Array, build, run

CPU = RunOptions(providers=("cpu",))


def outputs(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


ROWS = "g (float[N,8,6] x) => ({1}) <float[6,4] w, int64[2] s = {{-1,4}}, float[3] t> {{ {0} }}"


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_every_row_of_a_sample_is_compared(batch_size: int | None) -> None:
    teacher, student = (
        build(ROWS.format("h = MatMul (x, w) y = Reshape (h, s)", "float[M,4] y"), seed=seed)
        for seed in (0, 1)
    )
    x = np.random.default_rng(0).standard_normal((40, 8, 6)).astype(np.float32)
    x[:, :2] = 0  # the first rows of each sample agree
    one, other = (run(model, {"x": x})["y"].astype(np.float64) for model in (teacher, student))
    expected = np.sum((other - one) ** 2) / np.sum((one - one.mean(0)) ** 2)
    found = compare(teacher, student, x, RunOptions(("cpu",), batch_size=batch_size))
    np.testing.assert_allclose(found.agreement.relative_mse, expected, rtol=1e-5)


def test_outputs_are_compared_by_name_and_tables_are_left_out() -> None:
    nodes = "y = MatMul (x, w) z = Neg (y) table = Identity (t)"
    y, z, table = "float[N,8,4] y", "float[N,8,4] z", "float[3] table"
    teacher = build(ROWS.format(nodes, f"{y}, {z}, {table}"))
    student = build(ROWS.format(nodes, f"{table}, {z}, {y}"))
    x = np.random.default_rng(0).standard_normal((20, 8, 6)).astype(np.float32)
    found = compare(teacher, student, x, CPU)
    assert found.agreement.relative_mse == 0
    assert found.outputs_left_out == (("table", "it is the same for all samples"),)


def test_outputs_are_compared_each_on_its_own_scale() -> None:
    weights = outputs(0, 2, 4, 3)
    teacher = build(TEXT.format(n="N", x="x"), {"w": weights[0]})
    student = build(TEXT.format(n="N", x="x"), {"w": weights[1]})
    x = outputs(3, 7, 4)
    z, r = compare(teacher, student, x, CPU).outputs
    direct = agreement([x @ weights[0]], [x @ weights[1]])
    assert (z.name, r.name) == ("z", "r")
    assert z.relative_mse == pytest.approx(direct.relative_mse, rel=1e-5)
    assert z.top1_agreement == direct.top1_agreement
    assert r.relative_mse == 0
    assert r.cosine == pytest.approx(1)


def test_accuracies_have_standard_errors(tmp_path: Path) -> None:
    weights = outputs(0, 2, 4, 3)
    teacher, student = (build(TEXT.format(n="N", x="x"), {"w": w}) for w in weights)
    x, labels = outputs(3, 40, 4), tmp_path / "labels.npy"
    truth = np.random.default_rng(0).integers(0, 3, 40)
    np.save(labels, truth)
    found = compare(teacher, student, x, CPU, labels)
    right = np.array([(x @ w).argmax(1) == truth for w in weights], float)
    assert found.accuracy_teacher == right[0].mean()
    p = right.mean(axis=1)
    expected = [*np.sqrt(p * (1 - p) / 40), (right[1] - right[0]).std() / np.sqrt(40)]
    assert found.accuracy_errors == pytest.approx(expected)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: int) -> None:
    model = build(TEXT.format(n="N", x="x"))
    labels = tmp_path / "labels.npy"
    np.save(labels, np.array([0, 1, 2, label]))
    with pytest.raises(SamplesError, match=rf"holds the label {label} and .* 'z' has 3 classes"):
        compare(model, model, outputs(3, 4, 4), CPU, labels)


@pytest.mark.parametrize(("batch", "samples"), [("N", 1), ("4", 4)])
def test_both_are_timed_on_what_they_read(batch: str, samples: int) -> None:
    teacher = build(TEXT.format(n="N", x="x"))
    student = build(TEXT.format(n=batch, x="other"))
    found = compare(teacher, student, outputs(3, 3, 4), CPU, time=True).latency
    assert found is not None
    assert (found.samples, found.turns) == (samples, 40)
    assert 0 < found.quartiles[0] <= found.ratio <= found.quartiles[1]


def test_models_that_run_no_common_number_of_samples_are_not_timed() -> None:
    teacher, student = (build(TEXT.format(n=n, x="x")) for n in ("2", "3"))
    with pytest.raises(ModelError, match=r"runs 3 samples at once and .* 2, so their times"):
        compare(teacher, student, outputs(3, 6, 4), CPU, time=True)
    assert compare(teacher, student, outputs(3, 6, 4), CPU).count == 6
