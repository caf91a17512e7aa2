"""Students of random graphs: ``python -m tests.random_compressions --count 1000 --jobs 2``.

Each seed gives a teacher (``tests/random_graphs``), samples, and what to take off by which methods.
What has to hold of every student is in ``LIMITS``; the counts are printed, with the seeds that
broke a limit, and the exit status is 1 if any is broken.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import onnx

from fskd_onnx import CompressOptions, CompressResult, NoImprovementError, compress
from fskd_onnx.compress_options import CostName, MethodName, Reduction
from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.plan import plan_to_json
from fskd_onnx.errors import FskdError
from fskd_onnx.pipeline import compress_report
from fskd_onnx.runtime.latency import Latency
from tests.helpers import check
from tests.random_graphs.case import Case, draw
from tests.random_graphs.judging import (
    FRESH,
    Outcome,
    command,
    errors_and_faults,
    guarded,
    judge_fresh,
    normalised,
    outputs_of,
    where,
)

LIMITS = {
    "invalid case": 0.0,
    "traceback": 0.0,
    "invalid student": 0.0,
    "target missed": 0.0,
    "cost unlike the plan": 0.0,
    "plan gives another student": 0.0,
    "worse on fresh samples": 0.002,
}
"""Faults, and the share of the accepted students that may show each."""

# What a ratio may be beyond a budget of whole numbers.
_ROUNDING = 1e-9


def judge(seed: int) -> Outcome:
    """Draw a teacher and a wish, compress it, and hold the student against both."""
    return guarded(seed, _judge)


def draw_options(case: Case) -> CompressOptions:
    """Draw what to take off, and by which methods."""
    rng = np.random.default_rng([case.seed, 77])
    methods: Sequence[str] = [MethodName.AUTO]
    if rng.random() < 0.6:
        single = [method for method in MethodName if method != MethodName.AUTO]
        methods = [str(m) for m in rng.choice(single, rng.integers(1, 4), replace=False)]
    what = rng.choice([CostName.MACS, CostName.PARAMS])
    return CompressOptions(
        run=case.options.run,
        reduce=f"{what}={rng.choice([10, 20, 30, 50, 70])}%",
        methods=tuple(methods),
        round_to=int(rng.choice([1, 2, 4, 8])),
        max_ratio=float(rng.choice([0.5, 0.9, 1.0])),
        fit=case.options,
    )


def _judge(outcome: Outcome) -> None:
    case = draw(outcome.seed)
    options = draw_options(case)
    outcome.recipe = f"{options.reduce} by {','.join(options.methods)}"
    # How long models take says nothing here, and takes long to measure.
    latency = Latency((1.0, 1.0), (1.0, 0.0), ((1.0, 1.0), (0.0, 0.0)), turns=1)
    with mock.patch.object(compress_report, "compare_latency", return_value=latency):
        bare = _compressed(case, replace(options, no_fit=True), outcome)
        if bare is None:
            return
        _judge_student(case, bare, options, outcome)
        again = _carried_out(case, bare, options, outcome)
        if _bytes(again) != _bytes(bare.model):
            outcome.faults.append(("plan gives another student", outcome.result))
        fitted = _compressed(case, options, outcome)
        if fitted is None:
            return
        # A fit adds biases, which count, so its plan may be another one.
        bare_model = _carried_out(case, fitted, options, outcome)
    _judge_student(case, fitted, options, outcome)
    report = fitted.report.fit
    if report is None or bare_model is None or fitted.model is None:
        return  # nothing to take off
    said = f"{report.before.relative_mse:.4g} -> {report.after.relative_mse:.4g}"
    said += f" on {case.count} samples"
    judge_fresh(outcome, case, (bare_model, fitted.model), said)


def _compressed(case: Case, options: CompressOptions, outcome: Outcome) -> CompressResult | None:
    """Compress; None where no student comes out."""
    start = time.perf_counter()
    try:
        result = compress(case.teacher.model, case.samples(), options)
    except NoImprovementError:
        outcome.result = "refused"
        return None
    except FskdError as error:
        outcome.result = f"{type(error).__name__}: {normalised(str(error))}"
        return None
    except Exception as error:
        outcome.result = "traceback"
        outcome.faults.append(("traceback", where(error)))
        return None
    finally:
        outcome.seconds += time.perf_counter() - start
    outcome.result = "accepted"
    return result


def _judge_student(
    case: Case, result: CompressResult, options: CompressOptions, outcome: Outcome
) -> None:
    """Check that a student runs as its teacher does, and costs no more than was asked for."""
    teacher, student = case.teacher.model, result.model
    assert student is not None
    try:
        check(student)
        for part in ("input", "output"):
            assert getattr(student.graph, part) == getattr(teacher.graph, part), part
        target = outputs_of(teacher, case, FRESH)
        own = outputs_of(student, case, FRESH, target)
        assert {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in target.items()}
    except Exception as error:
        outcome.faults.append(("invalid student", where(error)))
    reduction = Reduction.read(options.reduce)
    totals = result.report.totals
    found = totals.macs if reduction.what == CostName.MACS else totals.parameters
    assert found.ratio is not None and totals.macs.before is not None
    if found.ratio > reduction.budget + _ROUNDING:
        text = f"{found} where {reduction} was asked for"
        outcome.faults.append(("target missed", text))
    # Every linear node whose cost can change is one that may be factorized, whatever becomes of it.
    nodes = [unit for unit in result.plan.units if unit.kind == UnitKind.FACTORS]
    less = sum(unit.macs_before - unit.macs_after for unit in nodes)
    if totals.macs.before - less != totals.macs.after:
        text = f"{totals.macs}, and {less} less by the plan"
        outcome.faults.append(("cost unlike the plan", text))


def _carried_out(
    case: Case, result: CompressResult, options: CompressOptions, outcome: Outcome
) -> onnx.ModelProto | None:
    """Return the bare student of a result's plan, read from a file; None where there is none."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(plan_to_json(result.plan), encoding="utf-8")
        planned = CompressOptions(run=options.run, plan=str(file), no_fit=True)
        again = _compressed(case, planned, outcome)
    return None if again is None else again.model


def _bytes(model: onnx.ModelProto | None) -> bytes:
    return b"" if model is None else model.SerializeToString(deterministic=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Give the counts, one a line."""
    seconds = sum(outcome.seconds for outcome in outcomes)
    first = f"graphs {len(outcomes)}, seconds per graph {seconds / max(len(outcomes), 1):.3f}"
    return "\n".join([first, *errors_and_faults(LIMITS, outcomes)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge many seeds, print the counts; return 1 if a limit is broken."""
    return command("tests.random_compressions", __doc__, judge, LIMITS, summary, arguments)


if __name__ == "__main__":
    sys.exit(main())
