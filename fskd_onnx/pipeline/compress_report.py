"""What is told of a student: what it costs, how long it takes, how close it is to its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions
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
from fskd_onnx.runtime.latency import compare_latency, random_feeds
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.samples.reader import Samples
from fskd_onnx.timing import StageTimer
from fskd_onnx.versions import versions_used

Feeds = Mapping[str, NDArray[Any]]

_SECONDS = 5.0
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


def latency_ratio(
    study: TeacherStudy, student: onnx.ModelProto, runtime: Runtime, feeds: Feeds
) -> float:
    """Return the time of a run of a student by that of its teacher, measured in turns."""
    models = {study.model.name: study.model.model, "the student": student}
    return compare_latency(models, [feeds] * 2, runtime, _SECONDS).ratios[1]


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
    latency, slow = UNKNOWN, []
    if not options.dry_run:
        with timer("latency"):
            ratio = latency_ratio(study, student, runtime, feeds)
            latency = Change(1.0, ratio)
            if ratio > costs.total.macs / max(before.macs, 1) + _NO_SPEED:
                slow = _slow_nodes(study, graph, costs, runtime)
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
        notes=(*notes, *_left_whole(study.model.graph()), *slow),
    )


def _slow_nodes(
    study: TeacherStudy, student: gs.Graph, costs: NetworkCosts, runtime: Runtime
) -> list[str]:
    """Say which nodes are no faster for having fewer multiply-adds."""
    before = LinearCase.find(study.model.graph(), study.shapes)
    after = LinearCase.find(student, study.shapes)
    reduced = reduced_nodes(before, after, (study.costs.linears, costs.linears))
    found = find_slow_nodes(reduced, NodeLatency(runtime, _SECONDS))
    return [f"'{name}' is no faster: {why}" for name, why in found.items()]


def _left_whole(graph: gs.Graph) -> list[str]:
    """Return a sentence on nodes with weights that no method can make smaller, if any."""
    refusals = [view for view in find_linear(graph) if isinstance(view, Refusal)]
    if not refusals:
        return []
    first, rest = refusals[0], len(refusals) - 1
    more = f", and {rest} more that no method applies to" if rest else ""
    return [f"'{first.name}' stays whole: {first.reason}{more}"]
