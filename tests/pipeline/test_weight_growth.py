"""A fit to all samples whose weights blow up beside the judged ones is not given out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline.fit import final_fit, fit
from fskd_onnx.pipeline.trials import try_out
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


def test_as_many_equations_as_unknowns_do_not_blow_up() -> None:
    """Five samples are as many equations as the last layer has unknowns.

    Weights of the weakest ridge, 8.4 times as large, have less error on held-out folds than those
    of the next ones, and 2.4 times the student's on fresh samples.
    """
    seed = 1853
    network = NETWORKS["chain"]
    teacher, student = network.teacher(seed), network.student(seed)
    samples = network.samples(5, seed + 1)
    options = FitOptions(RunOptions(providers=("cpu",), seed=5), "pointwise", "select")
    result = fit(teacher, student, samples, options)
    fresh = network.samples(200, seed + 2)
    target, before, after = (
        next(iter(run(model, fresh).values())) for model in (teacher, student, result.model)
    )

    def error(outputs: Array) -> float:
        return float(np.mean((outputs - target) ** 2))

    assert error(after) < 0.5 * error(before)
    assert result.report.blocks[-1].ridge == 10.0


@pytest.mark.parametrize(
    ("factor", "nearest"), [(9.0, False), (-1.0, True)], ids=["blows up", "errs"]
)
def test_a_fit_to_all_that_is_unlike_the_judged_ones_is_not_given_out(
    factor: float, nearest: bool
) -> None:
    network = NETWORKS["chain"]
    teacher, student = network.teacher(), network.student()
    samples = network.samples(12)
    options = FitOptions(RunOptions(providers=("cpu",)), "pointwise", "kept")
    problem = prepared(teacher, student, samples, options)
    (found,) = try_out(problem, options, StageTimer())
    assert final_fit(problem, found, StageTimer()) is found.fitted
    model = onnx.ModelProto()
    model.CopyFrom(found.fitted.model)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), tensor.name)
        )
    unlike = replace(found, fitted=replace(found.fitted, model=model))
    trials = [found.fitted.of_trial(number).model for number in range(len(problem.splits.trials))]
    given = final_fit(problem, unlike, StageTimer()).model
    assert given in trials
    if nearest:
        target, *outputs = (next(iter(run(m, samples).values())) for m in (teacher, *trials))
        errors = [float(np.mean((values - target) ** 2)) for values in outputs]
        assert given == trials[int(np.argmin(errors))]
