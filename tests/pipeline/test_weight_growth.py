"""A fit to all samples whose weights blow up beside the judged ones is not given out."""

from __future__ import annotations

import numpy as np

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.pipeline.trials import fits
from fskd_onnx.pipeline.weight_growth import growth, sizes_of, steadiest
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, build, prepared, run
from tests.networks import NETWORKS


def test_sizes_are_those_of_initializers_and_constants() -> None:
    text = (
        "g (float[N,3] x) => (float[N,2] z) <float[3,2] w, float[2] b>"
        "{ c = Constant <value = float[1,2] {3, 4}> () y = Gemm (x, w, b) z = Add (y, c) }"
    )
    model = build(text)
    sizes = sizes_of(model)
    assert set(sizes) == {"w", "b", "c"}
    assert sizes["c"] == 5.0


def test_growth_is_that_of_the_tensor_that_grows_most() -> None:
    trials = [{"v": 1.0, "w": 10.0}, {"v": 2.0, "w": 11.0}, {"v": 50.0, "w": 12.0, "new": 1.0}]
    assert growth({"v": 2.0, "w": 11.0}, trials) == 1.0
    assert growth({"v": 3.0, "w": 44.0}, trials) == 4.0
    assert growth({"v": 2.0, "w": 5.0, "new": 99.0}, trials) == 1.0  # few trials have it
    assert growth({"z": 5.0}, [{"z": 0.0}] * 3) == 1.0
    assert growth({"w": 9.0, "z": 5.0}, [{"w": 9.0, "z": 1e-4}] * 3) == 1.0  # next to nothing


def test_the_trial_of_least_growth_is_taken_instead() -> None:
    trials = [
        {"v": 5.0, "w": 1.0},
        {"v": 1.0, "w": 9.0},
        {"v": 1.0, "w": 1.1},
        {"v": 1.1, "w": 0.9},
    ]
    assert steadiest({"v": 1.5, "w": 1.2}, trials) is None
    assert steadiest({"v": 1.0, "w": 9.0}, trials) == 2


def test_a_fit_to_all_that_blows_up_is_not_given_out() -> None:
    """Five samples are as many equations as the last layer has unknowns, four are less."""
    seed = 1853
    network = NETWORKS["chain"]
    teacher, student = network.teacher(seed), network.student(seed)
    samples = network.samples(5, seed + 1)
    options = FitOptions(RunOptions(providers=("cpu",), seed=5), "pointwise", "select")
    result = fit(teacher, student, samples, options)

    problem = prepared(teacher, student, samples, options)
    final = next(fits(problem, problem.splits.final, options, StageTimer()))
    models = problem.teacher.model, problem.student.model, final.model, result.model
    fresh = network.samples(200, seed + 2)
    target, before, blown_up, after = (next(iter(run(m, fresh).values())) for m in models)

    def error(outputs: Array) -> float:
        return float(np.mean((outputs - target) ** 2))

    assert error(blown_up) > error(before)
    assert error(after) < 0.5 * error(before)
    trials = [
        next(fits(problem, trial, options, StageTimer())).model for trial in problem.splits.trials
    ]
    assert any(result.model == model for model in trials)
