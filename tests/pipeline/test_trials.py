"""Which fit is given out: judged on samples that it has not seen; on all, where they are few."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, NoImprovementError, RunOptions
from fskd_onnx.fitting.adapters import Kernel
from fskd_onnx.linalg.moments import Moments
from fskd_onnx.linalg.ridge import RIDGES, Ridge
from fskd_onnx.options import TargetsName
from fskd_onnx.pipeline import fit as fit_story
from fskd_onnx.pipeline import trials
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.pipeline.fitted_student import FittedStudent
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.starts import Start
from fskd_onnx.pipeline.trials import (
    Candidate,
    choose,
    error_of,
    fits,
    judged_by_own_fits,
    try_out,
)
from fskd_onnx.reporting.agreement import agreement
from fskd_onnx.results import Agreement, Verdict
from fskd_onnx.timing import StageTimer
from tests.helpers import build, initializers, prepared, run
from tests.networks import NETWORKS

CPU = RunOptions(providers=("cpu",))
CHAIN = NETWORKS["chain"]
BEFORE = Agreement(1.0, 0.1)


def candidate(
    targets: TargetsName, errors: list[float], relative: float | None = None, stands: bool = True
) -> Candidate:
    after = Agreement(float(np.mean(errors)) if relative is None else relative, 0.5)
    verdict = Verdict(len(errors), 0.5, (0.4, 0.6), stands)
    return Candidate(
        FittedStudent(Start(targets, (Kernel,)), onnx.ModelProto(), ()),
        after,
        np.array(errors),
        verdict,
        (),
    )


def chosen(kept: list[float], selected: list[float], relative: float | None = None) -> str:
    candidates = [
        candidate(TargetsName.KEPT, kept),
        candidate(TargetsName.SELECT, selected, relative),
    ]
    return choose(candidates, BEFORE).fitted.start.targets


def test_chosen_channels_are_taken_unless_the_kept_ones_are_closer_beyond_chance() -> None:
    assert chosen([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]) == "select"
    assert chosen([0.4, 0.5, 0.4], [0.5, 0.4, 0.51]) == "select"  # closer, by accident maybe
    assert chosen([0.40, 0.41, 0.42], [0.5, 0.52, 0.51]) == "kept"
    assert chosen([0.1], [0.9]) == "select"  # one sample says nothing
    # Most are no closer, and a few rule the sum.
    few = [0.1] * 20 + [0.5] * 5
    assert chosen(few, [0.09] * 20 + [0.8] * 5) == "select"
    assert chosen(few, [0.15] * 20 + [0.8] * 5) == "kept"


def test_what_comes_no_closer_is_out() -> None:
    assert chosen([0.9, 0.9], [1.1, 1.1]) == "kept"
    assert chosen([0.9, 0.9], [0.1, 0.1], math.nan) == "kept"
    assert error_of(Agreement(math.nan, None)) == math.inf


def test_what_may_be_chance_is_out() -> None:
    candidates = [
        candidate(TargetsName.KEPT, [0.9, 0.9]),
        candidate(TargetsName.SELECT, [0.1, 0.1], stands=False),
    ]
    assert choose(candidates, BEFORE).fitted.start.targets == "kept"


def problem_of(count: int) -> FitProblem:
    teacher, student = CHAIN.teacher(), CHAIN.student()
    return prepared(teacher, student, CHAIN.samples(count), FitOptions(CPU))


def test_few_samples_are_judged_each_by_a_fit_that_has_not_seen_it() -> None:
    problem = problem_of(12)
    options = FitOptions(CPU, targets="kept")
    (found,) = try_out(problem, options, StageTimer())
    (fitted,) = fits(problem, problem.splits.final, options, StageTimer(), without_folds=True)
    errors = []
    for number, trial in enumerate(problem.splits.trials):
        names = ["teacher", "fused"]
        models = [problem.teacher.model, fitted.of_trial(number).model]
        target, outputs = (
            problem.outputs(model, name, trial.held_out)
            for model, name in zip(models, names, strict=True)
        )
        errors.append(problem.errors_to(target, outputs))
    np.testing.assert_allclose(found.errors, np.concatenate(errors), rtol=1e-6)
    assert len(found.errors) == 12
    errors_of = dict(zip(problem.held_out.tolist(), np.concatenate(errors), strict=True))
    worst = sorted(errors_of, key=lambda sample: -errors_of[sample])[:8]
    assert [sample.name for sample in found.worst] == [*map(problem.samples.describe, worst)]
    together = problem.outputs(problem.student.model, "student", problem.held_out)
    assert problem.before == agreement(problem.target, together)


@pytest.mark.parametrize("adapter", ["pointwise", "kernel", "auto"])
def test_the_judged_fits_are_nearly_those_to_the_samples_of_their_trial(adapter: str) -> None:
    """A descent per trial is what the students without a fold stand for."""
    problem = problem_of(20)
    options = FitOptions(CPU, adapter, "kept")
    (found,) = try_out(problem, options, StageTimer())
    errors = []
    for trial in problem.splits.trials:
        (alone,) = fits(problem, trial, options, StageTimer())
        target = problem.outputs(problem.teacher.model, "teacher", trial.held_out)
        errors.append(problem.errors_to(target, problem.outputs(alone.model, "it", trial.held_out)))
    strict = float(np.mean(np.concatenate(errors)))
    assert 0.8 * strict < found.errors.mean() < 1.25 * strict
    assert found.errors.mean() < 0.5 * problem.errors_before.mean()


def test_a_student_without_a_fold_knows_no_target_of_it() -> None:
    """Its only block is what the other samples make of it, with one of the ridges."""
    text = "g (float[N,6] x) => (float[N,4] y) <float[6,4] w, float[4] b> { y = Gemm (x, w, b) }"
    models, samples = (
        (build(text, {}, 0), build(text, {}, 1)),
        {"x": np.random.default_rng(2).normal(size=(12, 6))},
    )
    problem = prepared(*models, samples, FitOptions(CPU))
    (found,) = fits(problem, problem.splits.final, FitOptions(CPU), StageTimer(), True)
    for number, trial in enumerate(problem.splits.trials):
        rest = np.setdiff1d(np.arange(12), trial.held_out)
        x = samples["x"][rest].astype(np.float32).astype(np.float64)
        y = next(iter(run(models[0], {"x": x.astype(np.float32)}).values()))
        given, fitted = (initializers(m) for m in (models[1], found.of_trial(number).model))
        moments = Moments.of(x.T[np.newaxis], y.T[np.newaxis])
        ridge = Ridge(moments.of_x, given["w"].T[np.newaxis].astype(np.float64))
        solutions = [ridge.solver(strength)(moments) for strength in RIDGES]
        expected = min(solutions, key=lambda one: np.abs(fitted["w"].T - one.matrix[0]).max())
        np.testing.assert_allclose(fitted["w"].T, expected.matrix[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fitted["b"], expected.shift[0], rtol=1e-5, atol=1e-6)


def test_where_no_start_has_anything_to_fit_there_is_no_candidate() -> None:
    teacher = CHAIN.teacher()
    problem = prepared(teacher, teacher, CHAIN.samples(12), FitOptions(CPU))
    assert try_out(problem, FitOptions(CPU, targets="select"), StageTimer()) == []


@pytest.mark.parametrize("targets", ["auto", "kept", "select"])
def test_few_samples_all_fit_what_is_given_out(targets: str) -> None:
    options = FitOptions(CPU, targets=targets)
    teacher, student = CHAIN.teacher(), CHAIN.student()
    result = fit(teacher, student, CHAIN.samples(12), options)
    models = [
        fitted.model
        for fitted in fits(problem_of(12), problem_of(12).splits.final, options, StageTimer())
    ]
    assert any(result.model == model for model in models)
    assert result.report.sample_count == 12
    assert result.report.held_out_count == 3


def test_many_samples_take_one_fit() -> None:
    problem = problem_of(60)
    options = FitOptions(CPU, targets="kept")
    (found,) = try_out(problem, options, StageTimer())
    (fitted,) = fits(problem, problem.splits.final, options, StageTimer())
    assert found.fitted.model == fitted.model
    assert len(found.errors) == 6


@pytest.mark.parametrize(("error", "again"), [(1.5, True), (3.0, False)])
def test_a_refusal_of_few_samples_takes_fits_of_their_own(
    error: float, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the error is so large that strictness does not explain it."""
    network = NETWORKS["residual"]
    made: list[float] = []

    def strict(problem: FitProblem, *arguments: Any) -> list[Candidate]:
        worse = Agreement(error * problem.before.relative_mse, None)
        return [replace(found, after=worse) for found in try_out(problem, *arguments)]

    def by_own(problem: FitProblem, fitted: FittedStudent, *arguments: Any) -> Candidate:
        judged = judged_by_own_fits(problem, fitted, *arguments)
        made.append(judged.after.relative_mse)
        assert judged.fitted.model is fitted.model
        return judged

    monkeypatch.setattr(fit_story, "try_out", strict)
    monkeypatch.setattr(fit_story, "judged_by_own_fits", by_own)
    options = FitOptions(CPU, targets="kept")
    arguments = network.teacher(), network.student(), network.samples(20), options
    if again:
        report = fit(*arguments).report
        assert made == [report.after.relative_mse]
    else:
        with pytest.raises(NoImprovementError):
            fit(*arguments)
        assert not made


def test_judges_that_do_not_fit_into_memory_are_fitted_one_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = NETWORKS["residual"]
    options = FitOptions(CPU, targets="kept")
    arguments = network.teacher(), network.student(), network.samples(20), options
    beside = fit(*arguments)
    monkeypatch.setattr(trials, "_MOST_BYTES", 100)
    alone = fit(*arguments)
    assert alone.model.SerializeToString() == beside.model.SerializeToString()
    ratio = alone.report.after.relative_mse / beside.report.after.relative_mse
    assert 0.5 < ratio < 2
    assert ratio != 1
