"""Which fits are tried: towards kept and chosen channels, and of decomposed blocks in part."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.starts import starts_of
from fskd_onnx.pipeline.trials import judged_by_own_fits, try_out
from fskd_onnx.timing import StageTimer
from tests.helpers import initializers, prepared
from tests.networks import NETWORKS
from tests.students import bottleneck, decomposed, is_spatial

CPU = RunOptions(providers=("cpu",))
CHAIN = NETWORKS["chain"]


def factored() -> onnx.ModelProto:
    return decomposed(CHAIN.teacher(), bottleneck, is_spatial)[0]


def problem_of(student: onnx.ModelProto, count: int, options: FitOptions) -> FitProblem:
    return prepared(CHAIN.teacher(), student, CHAIN.samples(count), options)


@pytest.mark.parametrize(
    ("adapter", "targets", "count", "expected"),
    [
        ("auto", "auto", 12, ["kept", "kept factors", "select", "select factors"]),
        ("auto", "kept", 12, ["kept", "kept factors"]),
        ("auto", "select", 12, ["select", "select factors"]),
        ("auto", "auto", 60, ["kept factors", "select factors"]),  # no folds are held out in turn
        ("factors", "kept", 12, ["kept factors"]),
        ("kernel", "auto", 12, ["kept", "select"]),
        ("pointwise", "auto", 12, ["kept"]),
    ],
)
def test_few_samples_of_decomposed_blocks_are_fitted_with_the_last_nodes_alone_too(
    adapter: str, targets: str, count: int, expected: list[str]
) -> None:
    options = FitOptions(CPU, adapter, targets)
    starts = starts_of(problem_of(factored(), count, options), options)
    names = [[str(start.targets), *(f.name for f in start.families)] for start in starts]
    assert [" ".join(n for n in name if n in ("kept", "select", "factors")) for name in names] == (
        expected
    )


def test_whole_blocks_have_no_last_node_to_fit_alone() -> None:
    options = FitOptions(CPU)
    starts = starts_of(problem_of(CHAIN.student(), 12, options), options)
    assert [start.targets for start in starts] == ["kept", "select"]


def test_no_fit_with_the_last_nodes_alone_changes_others() -> None:
    options = FitOptions(CPU, targets="kept")
    problem = problem_of(factored(), 12, options)
    last_alone, everything = try_out(problem, options, StageTimer())
    again = judged_by_own_fits(problem, last_alone.fitted, options, StageTimer())
    given = initializers(problem.student.given)

    def changed(model: onnx.ModelProto) -> set[str]:
        return {
            name.rsplit(".", 2)[1]
            for name, values in initializers(model).items()
            if ".part" in name and not np.array_equal(values, given[name])
        }

    for fitted in (last_alone.fitted, again.fitted):
        assert changed(fitted.model) == {"part2"}
        assert changed(fitted.of_trial(0).model) == {"part2"}
    assert {"part0", "part1"} <= changed(everything.fitted.model)
