"""The adapters of all blocks at once, by gradient steps: fused, judged and reported as others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fskd_onnx import FitOptions, FitResult, NoImprovementError, fit
from fskd_onnx.errors import OptionError
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.pipeline import adapter_steps
from tests.helpers import build, initializers, linears
from tests.networks import NETWORKS
from tests.pipeline.test_refinement import CPU, assert_of_the_student, error

SGD = FitOptions(CPU, optimizer="sgd")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty steps are enough for small networks."""
    monkeypatch.setattr(adapter_steps, "_STEPS", 50)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise"])
def test_a_student_comes_closer_on_samples_that_nobody_saw(name: str) -> None:
    network = NETWORKS[name]
    result = fit(network.teacher(), network.student(), network.samples(150), SGD)
    fresh = network.samples(100, seed=77)
    assert error(network, result.model, fresh) < error(network, network.student(), fresh)
    assert_of_the_student(result.model, network.student())
    fitted = [block for block in result.report.blocks if block.status == "fitted"]
    assert fitted
    assert {block.adapter for block in fitted} == {"pointwise"}
    assert all(block.error_after is not None for block in fitted)
    assert result.report.options["optimizer"] == "sgd"
    assert result.report.options["adapter"] == "pointwise"


def test_new_weights_are_an_adapter_times_the_old_ones() -> None:
    text = """m (float[n,3,6,6] x) => (float[n,4,4,4] z)
        <float[8,3,3,3] a, float[8] b, float[8,2,1,1] c, float[8] d, float[8,2,2,2] e> {
        h = Conv <pads = [1,1,1,1]> (x, a, b) r = Relu (h)
        k = Conv <group = 4> (r, c, d) s = Relu (k)
        z = ConvTranspose <group = 2, strides = [2,2], pads = [4,4,4,4]> (s, e) }"""
    teacher = build(text)
    student = build(text, {n: 1.3 * v for n, v in initializers(teacher).items()})
    samples = np.random.default_rng(0).standard_normal((70, 3, 6, 6)).astype(np.float32)
    result = fit(teacher, student, samples, SGD)
    before, after = linears(student), linears(result.model)
    for name, old in before.items():
        assert _adapter_of(old, after[name]) < 1e-6


def _adapter_of(old: Linear, new: Linear) -> float:
    """Return how far new weights are from any 1x1 adapter's, relative."""
    rest = 0.0
    for one, other in zip(old.matrix, new.matrix, strict=True):
        adapter = np.linalg.lstsq(one.T, other.T, rcond=None)[0].T
        rest = max(rest, float(np.abs(adapter @ one - other).max() / np.abs(other).max()))
    return rest


def test_inputs_in_another_order_belong_together_by_name() -> None:
    text = """m ({0}) => (float[n,3] z) <float[4,6] a, float[6] b, float[5,6] c, float[6,3] d> {{
        h = Gemm (x, a, b) k = MatMul (y, c) s = Add (h, k) r = Relu (s) z = MatMul (r, d) }}"""
    inputs = "float[n,4] x", "float[n,5] y"
    teacher = build(text.format(", ".join(inputs)))
    new = {n: 1.4 * v for n, v in initializers(teacher).items()}
    student = build(text.format(", ".join(inputs[::-1])), new)
    rng = np.random.default_rng(0)
    samples = {"x": rng.standard_normal((150, 4)), "y": rng.standard_normal((150, 5))}
    samples = {name: values.astype(np.float32) for name, values in samples.items()}
    report = fit(teacher, student, samples, SGD).report
    assert {block.student for block in report.blocks} == {"h", "k", "z"}
    for block in report.blocks:
        assert block.error_before is not None
        assert block.error_after is not None
        assert block.error_after < 0.1 * block.error_before


def test_few_samples_are_held_out_in_turn() -> None:
    network = NETWORKS["residual"]
    result = fit(network.teacher(), network.student(), network.samples(20), SGD)
    assert result.report.verdict.independent_count == 20
    for block in result.report.blocks:
        assert block.error_before is not None
        assert block.error_after is not None


def test_steps_may_follow_steps() -> None:
    network = NETWORKS["residual"]
    options = FitOptions(CPU, optimizer="sgd", refine=20)
    result = fit(network.teacher(), network.student(), network.samples(70), options)
    assert result.report.refine is not None
    assert result.report.refine.kept


def test_the_same_call_gives_the_same_bytes() -> None:
    network = NETWORKS["chain"]

    def once() -> FitResult:
        return fit(network.teacher(), network.student(), network.samples(150), SGD)

    assert once().model.SerializeToString() == once().model.SerializeToString()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adapter": "kernel"}, "optimizer sgd fits pointwise adapters, not kernel"),
        ({"targets": "select"}, "cannot aim at channels chosen anew"),
    ],
)
def test_what_it_excludes_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        FitOptions(optimizer="sgd", **values)


def test_a_block_that_an_adapter_cannot_help_says_why() -> None:
    """Zeros of a sparse kernel would be filled; unknown channels would need activations."""
    text = """m (float[n,4] x) => (float[n,4] z) <float[4,8] a, float[8] b, float[8,4] c> {
        h = Gemm (x, a, b) r = Relu (h) z = MatMul (r, c) }"""
    teacher = build(text)
    weights = initializers(teacher)
    sparse = weights["a"] * (np.indices((4, 8)).sum(0) % 2)
    student = build(text, {**weights, "a": sparse})
    samples = np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32)
    try:
        blocks = fit(teacher, student, samples, SGD).report.blocks
    except NoImprovementError as refused:
        blocks = refused.report.blocks
    first = next(block for block in blocks if block.student == "h")
    assert first.status == "kept"
    assert "50% zeros, which a pointwise adapter would fill" in first.reason


def test_what_is_not_finite_leaves_the_student_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_steps, "_LENGTH", 1e30)
    network = NETWORKS["chain"]
    with pytest.raises(NoImprovementError) as refused:
        fit(network.teacher(), network.student(), network.samples(150), SGD)
    reasons = {block.reason for block in refused.value.report.blocks}
    assert reasons == {"gradient steps led to values that are not finite"}
