"""Which fit is given out: judged on samples that it has not seen; on all, where they are few."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline import trials
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.trials import Candidate, FittedStudent, choose, error_of, fits, try_out
from fskd_onnx.reporting.agreement import agreement, squared_errors
from fskd_onnx.results import Agreement, Verdict
from fskd_onnx.timing import StageTimer
from tests.helpers import prepared
from tests.networks import NETWORKS

CPU = RunOptions(providers=("cpu",))
CHAIN = NETWORKS["chain"]
BEFORE = Agreement(1.0, 0.1)


def candidate(
    targets: str, errors: list[float], relative: float | None = None, stands: bool = True
) -> Candidate:
    after = Agreement(float(np.mean(errors)) if relative is None else relative, 0.5)
    verdict = Verdict(len(errors), 0.5, (0.4, 0.6), stands)
    return Candidate(
        FittedStudent(targets, onnx.ModelProto(), ()), after, np.array(errors), verdict, ()
    )


def chosen(kept: list[float], selected: list[float], relative: float | None = None) -> str:
    candidates = [candidate("kept", kept), candidate("select", selected, relative)]
    return choose(candidates, BEFORE).last.targets


def test_chosen_channels_are_taken_unless_the_kept_ones_are_closer_beyond_chance() -> None:
    assert chosen([0.5, 0.5, 0.5], [0.4, 0.4, 0.4]) == "select"
    assert chosen([0.4, 0.5, 0.4], [0.5, 0.4, 0.51]) == "select"  # closer, by accident maybe
    assert chosen([0.40, 0.41, 0.42], [0.5, 0.52, 0.51]) == "kept"
    assert chosen([0.1], [0.9]) == "select"  # one sample says nothing


def test_what_comes_no_closer_is_out() -> None:
    assert chosen([0.9, 0.9], [1.1, 1.1]) == "kept"
    assert chosen([0.9, 0.9], [0.1, 0.1], math.nan) == "kept"
    assert error_of(Agreement(math.nan, None)) == math.inf


def test_what_may_be_chance_is_out() -> None:
    candidates = [candidate("kept", [0.9, 0.9]), candidate("select", [0.1, 0.1], stands=False)]
    assert choose(candidates, BEFORE).last.targets == "kept"


def problem_of(count: int) -> FitProblem:
    teacher, student = CHAIN.teacher(), CHAIN.student()
    return prepared(teacher, student, CHAIN.samples(count), FitOptions(CPU))


def test_few_samples_are_judged_each_by_a_fit_that_has_not_seen_it() -> None:
    problem = problem_of(12)
    options = FitOptions(CPU, targets="kept")
    (found,) = try_out(problem, options, StageTimer())
    errors = []
    for trial in problem.splits.trials:
        (fitted,) = fits(problem, trial, options, StageTimer())
        names = ["teacher", "fused"]
        models = [problem.teacher.model, fitted.model]
        target, outputs = (
            problem.outputs(model, name, trial.held_out)
            for model, name in zip(models, names, strict=True)
        )
        errors.append(squared_errors(target, outputs))
    np.testing.assert_allclose(found.errors, np.concatenate(errors), rtol=1e-6)
    assert len(found.errors) == 12
    errors_of = dict(zip(problem.held_out.tolist(), np.concatenate(errors), strict=True))
    worst = sorted(errors_of, key=lambda sample: -errors_of[sample])[:8]
    assert [sample.name for sample in found.worst] == [*map(problem.samples.describe, worst)]
    together = problem.outputs(problem.student.model, "student", problem.held_out)
    assert problem.before == agreement(problem.target, together)


def test_a_start_that_is_left_behind_is_not_tried_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = problem_of(20)
    tried: list[str] = []

    def counted(*arguments: Any) -> Iterator[FittedStudent]:
        for fitted in fits(*arguments):
            tried.append(fitted.targets)
            yield fitted

    monkeypatch.setattr(trials, "fits", counted)
    found = try_out(problem, FitOptions(CPU), StageTimer())
    assert len(problem.splits.trials) == 5
    assert tried[:4] == ["kept", "select"] * 2
    assert set(tried[4:]) == {candidate.last.targets for candidate in found}
    [candidate] = found
    alone = FitOptions(CPU, targets=candidate.last.targets)
    monkeypatch.undo()
    [same] = try_out(problem, alone, StageTimer())
    np.testing.assert_array_equal(candidate.errors, same.errors)


def test_where_no_start_has_anything_to_fit_there_is_no_candidate() -> None:
    teacher = CHAIN.teacher()
    problem = prepared(teacher, teacher, CHAIN.samples(12), FitOptions(CPU))
    assert try_out(problem, FitOptions(CPU, targets="select"), StageTimer()) == []


def test_which_start_is_ahead() -> None:
    near, far = np.array([0.4, 0.5, 0.4]), np.array([0.5, 0.4, 0.51])
    assert trials._ahead({"kept": near, "select": far}) is None
    assert trials._ahead({"kept": far, "select": near}) == "select"
    assert trials._ahead({"kept": near, "select": far + 1}) == "kept"
    assert trials._ahead({"kept": near, "select": far * np.nan}) is None


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
    assert found.last.model == fitted.model
    assert len(found.errors) == 6
