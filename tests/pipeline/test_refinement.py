"""Gradient steps go on from the closed form, and stay only where held-out samples say so."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, FitResult, RunOptions, fit
from fskd_onnx.errors import FskdError, ModelError
from fskd_onnx.gradient import gradient_steps as gradient_steps_module
from fskd_onnx.passes import Canonicalize
from fskd_onnx.pipeline import refinement
from fskd_onnx.pipeline.gradient_setup import check_trainable
from fskd_onnx.pipeline.networks import load_networks
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.refinement import gradient_steps
from fskd_onnx.pipeline.trials import fits
from fskd_onnx.results import RefineReport
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, build, initializers, prepared, run
from tests.networks import NETWORKS, Network
from tests.students import decomposed, is_spatial, separable

CPU = RunOptions(providers=("cpu",))


def steps_of(result: FitResult) -> RefineReport:
    assert result.report.refine is not None
    return result.report.refine


def refined(network: Network, count: int, steps: int = 24) -> tuple[FitResult, FitResult]:
    """Fit without gradient steps, and with."""
    samples = network.samples(count)
    both = (
        fit(network.teacher(), network.student(), samples, FitOptions(CPU, refine=refine))
        for refine in (0, steps)
    )
    without, with_steps = both
    return without, with_steps


def assert_of_the_student(model: onnx.ModelProto, student: onnx.ModelProto) -> None:
    """Check that nothing differs but the values of weights and biases; a bias may appear."""
    canonical = Canonicalize()(student).model
    for node, old in zip(model.graph.node, canonical.graph.node, strict=True):
        del node.input[len(old.input) :]
        assert node == old
    assert model.graph.input == canonical.graph.input
    assert model.graph.output == canonical.graph.output
    assert model.opset_import == canonical.opset_import
    before, after = initializers(canonical), initializers(model)
    assert {n: after[n].shape for n in before} == {n: v.shape for n, v in before.items()}


def error(network: Network, model: onnx.ModelProto, samples: dict[str, Array]) -> float:
    target, found = run(network.teacher(), samples), run(model, samples)
    return sum(float(np.sum((found[name] - target[name]) ** 2.0)) for name in target)


@pytest.mark.parametrize(
    "name",
    ["residual", "depthwise", "two inputs, two outputs", "rank 3"],
)
def test_steps_bring_a_student_closer_on_samples_that_nobody_saw(name: str) -> None:
    network = NETWORKS[name]
    without, result = refined(network, 70)
    report, fresh = steps_of(result), network.samples(100, seed=77)
    assert report.kept
    assert 0 < report.steps_taken <= report.steps == 24
    assert report.error_before == without.report.after.relative_mse
    assert report.error_after == result.report.after.relative_mse
    assert report.error_after < report.error_before
    assert error(network, result.model, fresh) < error(network, without.model, fresh)
    assert_of_the_student(result.model, network.student())


def test_steps_follow_scores_beside_boxes_that_are_joined_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = """g (float[N,3,4,4] x) => (float[N,6,4,4] y) <
      float[{width},3,3,3] w, float[4,{width},1,1] wb, float[2,{width},1,1] ws,
      float size = {{1000.0}}> {{
        h = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (h)
        l = Conv (r, wb)
        b = Mul (l, size)
        p = Conv (r, ws)
        s = Sigmoid (p)
        y = Concat <axis = 1> (b, s)
    }}"""
    teacher = build(text.format(width=16), seed=1)
    w, wb, ws = (initializers(teacher)[name] for name in ("w", "wb", "ws"))
    student = build(text.format(width=8), {"w": w[:8], "wb": wb[:, :8], "ws": ws[:, :8]})
    samples = {"x": np.random.default_rng(0).standard_normal((60, 3, 4, 4)).astype(np.float32)}
    found = {}
    for parts in ("each", "all as one"):
        if parts == "all as one":
            monkeypatch.setattr(FitProblem, "parts_by_sample", [[None]])
        result = fit(teacher, student, samples, FitOptions(CPU, refine=60))
        assert steps_of(result).kept
        assert [output.name for output in result.report.outputs] == ["y: b", "y: s"]
        found[parts] = result.report.outputs[1].after
    assert found["each"] < 0.97 * found["all as one"]


def test_few_samples_are_held_out_in_turn_and_the_student_sees_all() -> None:
    network = NETWORKS["residual"]
    without, result = refined(network, 20)
    assert result.report.verdict.independent_count == 20
    assert steps_of(result).kept
    fresh = network.samples(100, seed=77)
    assert error(network, result.model, fresh) < error(network, without.model, fresh)


def test_the_same_call_gives_the_same_bytes() -> None:
    network = NETWORKS["chain"]
    one, other = (refined(network, 70, 8)[1].model for _ in range(2))
    assert one.SerializeToString() == other.SerializeToString()


def test_the_closed_form_stays_where_nothing_beats_it() -> None:
    # The student can be the teacher, and is, to rounding.
    network = NETWORKS["chain"]
    noisy = network.teacher()
    for tensor in noisy.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        rng = np.random.default_rng(1)
        new = values * (1 + 0.1 * rng.standard_normal(values.shape).astype(values.dtype))
        tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
    samples = network.samples(70)
    options = FitOptions(CPU, targets="kept")
    without = fit(network.teacher(), noisy, samples, options)
    result = fit(network.teacher(), noisy, samples, replace(options, refine=8))
    report = steps_of(result)
    assert not report.kept
    assert report.steps_taken == 0
    assert report.reason == "the error on held-out samples is no less than that of the closed form"
    assert result.model.SerializeToString() == without.model.SerializeToString()
    assert result.report.after == without.report.after


def after_steps(
    teacher: onnx.ModelProto, student: onnx.ModelProto, *shape: int
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Give a student in closed form and after four steps, kept or not."""
    samples = np.random.default_rng(0).standard_normal((70, *shape)).astype(np.float32)
    options = FitOptions(CPU, targets="kept", refine=4)
    problem = prepared(teacher, student, samples, options)
    fitted = next(fits(problem, problem.splits.final, options, StageTimer()))
    *_, point = gradient_steps(problem, problem.splits.final, fitted, options).points(4)
    return fitted.model, point.model


def test_steps_that_lead_away_begin_anew_half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["residual"]
    options = FitOptions(CPU, targets="kept", refine=40)
    samples = network.samples(70)
    problem = prepared(network.teacher(), network.student(), samples, options)
    fitted = next(fits(problem, problem.splits.final, options, StageTimer()))
    steps = gradient_steps(problem, problem.splits.final, fitted, options)

    def last(length: float) -> onnx.ModelProto:
        *_, point = replace(steps, length=length).points(40)
        return point.model

    short, long = last(steps.length), last(64 * steps.length)
    assert long == last(32 * steps.length)
    monkeypatch.setattr(gradient_steps_module, "_HALVINGS", 0)
    assert short == last(steps.length)
    errors = [
        error(network, model, samples) for model in (long, fitted.model, last(64 * steps.length))
    ]
    assert errors == sorted(errors)


def test_zeros_of_sparse_kernels_stay() -> None:
    text = """m (float[n,4] x) => (float[n,3] y)
        <float[4,8] a, float[8] b, float[8,3] c, float[3] d>
        { h = Gemm(x, a, b) r = Relu(h) y = Gemm(r, c, d) }"""
    teacher = build(text)
    weights = initializers(teacher)
    sparse = weights["a"] * (np.indices((4, 8)).sum(0) % 2)
    before, after = after_steps(teacher, build(text, {**weights, "a": sparse}), 4)
    one, other = initializers(before)["a"], initializers(after)["a"]
    np.testing.assert_array_equal(other == 0, sparse == 0)
    assert (one != other)[sparse != 0].all()


def test_nodes_that_share_weights_go_on_sharing_them() -> None:
    text = """m (float[n,4] x) => (float[n,4] y)
        <float[4,4] w, float[4] b, float[4,4] c, float[4] d>
        { q = Relu(x) h = Gemm(x, w, b) k = Gemm(q, w, b)
          r = Tanh(h) s = Tanh(k) t = Add(r, s) y = Gemm(t, c, d) }"""
    teacher = build(text)
    weights = initializers(teacher)
    student = build(text, {name: 1.2 * values for name, values in weights.items()})
    before, after = after_steps(teacher, student, 4)
    assert after.graph.node == student.graph.node
    assert not np.array_equal(initializers(before)["w"], initializers(after)["w"])


def test_all_factors_of_a_decomposed_block_are_trained_and_stay_factors() -> None:
    text = """m (float[n,3,8,8] x) => (float[n,5] y)
        <float[8,3,3,3] a, float[8] b, float[8,8,3,3] c, float[8] d, float[8,5] e, float[5] f>
        { h = Conv <pads = [1,1,1,1]> (x, a, b) r = Relu(h)
          k = Conv <pads = [1,1,1,1]> (r, c, d) s = Relu(k)
          p = GlobalAveragePool(s) q = Flatten(p) y = Gemm(q, e, f) }"""
    teacher = build(text)
    student, _ = decomposed(teacher, separable, is_spatial)
    before, after = after_steps(teacher, student, 3, 8, 8)
    assert after.graph.node == student.graph.node
    one, other = initializers(before), initializers(after)
    assert [name for name in one if np.array_equal(one[name], other[name])] == []


def test_nodes_without_a_counterpart_stay_as_they_are() -> None:
    text = """m (float[n,4] x) => (float[n,4] y) <float[4,4] w, float[4,4] v, float[4,4] c>
        { h = MatMul(x, w) r = Tanh(h) k = MatMul(r, v) s = Tanh(k) y = MatMul(s, c) }"""
    teacher = build(text)
    student = build(text, {n: 1.1 * v for n, v in initializers(teacher).items()})
    options = FitOptions(CPU, targets="kept", refine=4)
    samples = np.random.default_rng(0).standard_normal((70, 4)).astype(np.float32)
    problem = prepared(teacher, student, samples, options)
    pairs = tuple(
        replace(pair, reason="by the map") if pair.student == "k" else pair
        for pair in problem.matching.pairs
    )
    problem = replace(problem, matching=replace(problem.matching, pairs=pairs))
    fitted = next(fits(problem, problem.splits.final, options, StageTimer()))
    *_, point = gradient_steps(problem, problem.splits.final, fitted, options).points(4)
    before, after = initializers(fitted.model), initializers(point.model)
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {"w", "c"}


def test_what_pytorch_does_not_run_is_refused_before_the_samples_are_read() -> None:
    text = """m (float[n,4] x) => (float[n,4] y) <float[4,4] w, float[4] b>
        { h = Gemm(x, w, b) i = NonZero(h) j = Cast <to = 1> (i) k = ReduceSum(j) y = Add(h, k) }"""
    model = build(text)
    with pytest.raises(
        ModelError,
        match=r"its node 'i' \(NonZero\) cannot be used there: .*--refine or --optimizer sgd out$",
    ):
        fit(model, model, np.zeros((70, 4), np.float32), FitOptions(CPU, refine=1))


def test_a_network_that_gives_whole_numbers_alone_is_refused() -> None:
    model = build(
        "m (float[n,4] x) => (int64[n,1] y) <float[4,4] w> { h = MatMul(x, w) "
        "y = ArgMax <axis = 1> (h) }"
    )
    with pytest.raises(ModelError, match="no output is of floats, so gradient steps have nothing"):
        check_trainable(*load_networks(model, model))


def test_networks_of_two_batch_sizes_are_refused() -> None:
    def model(size: int) -> onnx.ModelProto:
        return build(
            f"m (float[{size},4] x) => (float[{size},4] y) <float[4,4] w> {{ y = MatMul(x, w) }}"
        )

    with pytest.raises(ModelError, match=r"runs on 2 samples at once and its teacher on 4"):
        check_trainable(*load_networks(model(4), model(2)))


def test_without_pytorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FskdError, match=r"gradient steps need PyTorch.*the extra 'torch'"):
        fit("none.onnx", "none.onnx", "nothing", FitOptions(CPU, refine=1))


def test_a_fit_without_steps_imports_no_pytorch() -> None:
    code = "import sys, fskd_onnx.pipeline.fit, fskd_onnx.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_state_is_judged_by_samples_that_others_have_chosen_it_by() -> None:
    # The first state is better on the groups of the first part, the second on all others.
    first, second = np.full(10, 2.0), np.full(10, 1.0)
    first[[0, 5]], second[[0, 5]] = 0.0, 2.5
    taken, judged_by = refinement._choose({5: first, 10: second})
    assert taken == 10
    assert judged_by == [10] * 10
    # Without the groups of the second part the second state is better, with them it is not.
    first, second = np.ones(10), np.full(10, 0.9)
    first[[1, 6]], second[[1, 6]] = 0.0, 9.0
    taken, judged_by = refinement._choose({5: first, 10: second})
    assert taken == 5
    assert judged_by == [5, 10, 5, 5, 5] * 2
    assert refinement._choose({5: np.array([np.nan]), 10: np.array([1.0])}) == (10, [10])
