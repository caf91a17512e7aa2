"""What is told of a student: what it costs, how long it takes, how close it is to its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, CostName, Reduction
from fskd_onnx.compress_results import (
    UNKNOWN,
    Change,
    CompressReport,
    CompressTotals,
    Plan,
)
from fskd_onnx.compression.costs import NetworkCosts, count_costs
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.compression.slow_nodes import find_slow_nodes, reduced_nodes
from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.linear import find_linear
from fskd_onnx.passes.analysis.refusals import Refusal
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.results import FitReport
from fskd_onnx.runtime.latency import Latency, compare_latency, random_feeds
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.samples.reader import Samples
from fskd_onnx.timing import StageTimer
from fskd_onnx.versions import versions_used

Feeds = Mapping[str, NDArray[Any]]

_SECONDS = 5.0
# A latency is rough where the third quartile of turns is so many times the first.
_ROUGH = 1.25
# Nodes are looked at where so much more of the time is left than of the multiply-adds.
_NO_SPEED = 0.15


def latency_feeds(study: TeacherStudy, samples: Samples | None, seed: int) -> Feeds:
    """Return what a run of a teacher reads: the first samples, noise without any."""
    inputs = study.model.inputs
    if samples is None:
        return random_feeds(inputs, study.shapes, seed)
    taken = samples.take(np.resize(np.arange(len(samples)), study.count))
    pairs = zip(inputs, samples.inputs, strict=True)
    return {spec.name: np.asarray(given.joined(taken[given.name])) for spec, given in pairs}


def measured_latency(
    study: TeacherStudy, student: onnx.ModelProto, runtime: Runtime, feeds: Feeds
) -> Latency:
    """Return how long a teacher and its student take, in this order."""
    models = {study.model.name: study.model.model, "the student": student}
    return compare_latency(models, [feeds] * 2, runtime, _SECONDS)


def report_of(
    study: TeacherStudy,
    plan: Plan,
    student: onnx.ModelProto,
    fit: FitReport | None,
    options: CompressOptions,
    runtime: Runtime,
    timer: StageTimer,
    *,
    feeds: Feeds,
    notes: tuple[str, ...],
) -> CompressReport:
    """Return the report of a compression.

    Args:
        study: of the teacher.
        plan: what became of it.
        student: the student.
        fit: what its fit found; None where it was not fitted.
        options: of the compression.
        runtime: where latency is measured; not for a dry run.
        timer: the seconds of each stage, to which those of measuring are added.
        feeds: what a run reads whose time is measured.
        notes: what else there is to know.
    """
    graph = gs.import_onnx(Canonicalize()(student).model)
    costs, before = count_costs(graph, study.shapes, study.count), study.costs.total
    latency, of_latency = UNKNOWN, []
    if not options.dry_run:
        with timer("latency"):
            found = measured_latency(study, student, runtime, feeds)
            ratio = found.ratios[1]
            latency = Change(1.0, ratio)
            of_latency = _what_is_unsure(found, options.reduction)
            if ratio > costs.total.macs / max(before.macs, 1) + _NO_SPEED:
                of_latency += _slow_nodes(study, graph, costs, runtime, options)
    return CompressReport(
        teacher=study.model.name,
        output=None,
        options=options.named(),
        plan=plan,
        totals=CompressTotals(
            macs=Change(before.macs, costs.total.macs),
            parameters=Change(before.parameters, costs.total.parameters),
            bytes=Change(study.model.model.ByteSize(), student.ByteSize()),
            latency=latency,
        ),
        fit=fit,
        seconds=timer.compression(),
        versions=versions_used(),
        notes=(*notes, *_left_whole(study.model.graph()), *_not_counted(study), *of_latency),
    )


def _what_is_unsure(latency: Latency, reduction: Reduction) -> list[str]:
    """Say where a latency is rough, or a target no longer met that a student was chosen by."""
    low, high = latency.quartiles[1]
    notes = []
    if high > _ROUGH * low:
        notes.append(
            f"the latency is rough: the middle half of {latency.turns} turns took {low:.0%} to "
            f"{high:.0%} of the teacher's time, as on a machine with other work; measure again "
            "with fskd-onnx compare once it has none"
        )
    if reduction.what == CostName.LATENCY and low > reduction.budget:
        notes.append(
            f"the latency of {reduction.budget:.0%} that was asked for was measured when this "
            f"student was chosen, and {latency.ratios[1]:.0%} at the end; compress again once the "
            "machine has no other work, or ask for less"
        )
    return notes


def _slow_nodes(
    study: TeacherStudy,
    student: gs.Graph,
    costs: NetworkCosts,
    runtime: Runtime,
    options: CompressOptions,
) -> list[str]:
    """Say which nodes are no faster for having fewer multiply-adds."""
    before = LinearCase.find(study.model.graph(), study.shapes)
    after = LinearCase.find(student, study.shapes)
    reduced = reduced_nodes(before, after, (study.costs.linears, costs.linears))
    found = find_slow_nodes(reduced, NodeLatency(runtime, _SECONDS))
    notes = [f"'{name}' is no faster: {why}" for name, why in found.items()]
    by_cost = options.plan is None and options.max_drop is None
    if notes and by_cost and options.reduction.what != CostName.LATENCY:
        wanted = replace(options.reduction, what=CostName.LATENCY)
        notes.append(f"to choose by the time that nodes take on this machine, --reduce {wanted}")
    return notes


def _not_counted(study: TeacherStudy) -> list[str]:
    """Return a sentence on nodes whose multiply-adds are in no sum, if any."""
    unknown = study.costs.why_incomplete
    return [f"{unknown}, so they are in no sum"] if unknown else []


def _left_whole(graph: gs.Graph) -> list[str]:
    """Return a sentence on nodes with weights that no method can make smaller, if any."""
    refusals = [view for view in find_linear(graph) if isinstance(view, Refusal)]
    if not refusals:
        return []
    first, rest = refusals[0], len(refusals) - 1
    more = f", and {rest} more that no method applies to" if rest else ""
    return [f"'{first.name}' stays whole: {first.reason}{more}"]
