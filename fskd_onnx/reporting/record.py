"""The record of a result: what every format of reports is made from, so that none can disagree.

A record holds what JSON has: finite numbers, text, lists, and objects with keys that are stable;
``SCHEMA_VERSION`` counts their changes. NaN and infinities, which JSON does not have, are None.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from fskd_onnx.compare_results import Comparison
from fskd_onnx.compress_results import CompressReport
from fskd_onnx.compression.plan_json import unit_to_json
from fskd_onnx.results import FitReport

SCHEMA_VERSION = 1

Report: TypeAlias = FitReport | CompressReport | Comparison
"""What a record is made of."""

Record: TypeAlias = Mapping[str, Any]
"""What a format has to show; of a compression it has ``units``, of a fit ``end_to_end``."""


def record_of(report: Report) -> Record:
    """Return the record of a result.

    Args:
        report: what a fit, a compression or a comparison found.
    """
    if isinstance(report, FitReport):
        found = _of_fit(report)
    elif isinstance(report, CompressReport):
        found = _of_compression(report)
    else:
        found = _of_comparison(report)
    if report.command:
        found["command"] = report.command
    return {key: plain(value) for key, value in found.items()}


def _of_fit(report: FitReport) -> dict[str, object]:
    blocks = [asdict(block) for block in report.blocks]
    for block in blocks:
        del block["adds_node"]
        for key in ("note", "first_use"):
            if not block[key]:
                del block[key]
    samples = {
        "count": report.sample_count,
        "independent": report.independent_count,
        "held_out": report.held_out_count,
        **_told_of(report),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": report.teacher,
        "student": report.student,
        "output": report.output,
        "options": report.options,
        "providers": report.providers,
        "samples": samples,
        "blocks": blocks,
        "end_to_end": {
            "before": asdict(report.before),
            "after": asdict(report.after),
            "verdict": asdict(report.verdict),
        }
        | ({"left_out": dict(report.outputs_left_out)} if report.outputs_left_out else {}),
        "parameters": {
            "student": report.parameters_student,
            "fused": report.parameters_fused,
        }
        | ({"added_nodes": report.added_nodes} if report.added_nodes else {}),
        "seconds": _seconds(report),
        "versions": report.versions,
        **({"outputs": list(map(asdict, report.outputs))} if report.outputs else {}),
        **({"advice": report.advice} if report.advice else {}),
    } | ({} if report.refine is None else {"refine": asdict(report.refine)})


def _seconds(report: FitReport) -> dict[str, float]:
    """Return the seconds of all stages; that of gradient steps where some were asked for."""
    found = asdict(report.seconds)
    if report.refine is None:
        del found["refine"]
    return found


def _of_compression(report: CompressReport) -> dict[str, object]:
    totals = report.totals
    found: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "teacher": report.teacher,
        "output": report.output,
        "options": report.options,
        "units": [unit_to_json(unit) for unit in report.plan.units],
        "totals": {
            "macs": asdict(totals.macs),
            "parameters": asdict(totals.parameters),
            "bytes": asdict(totals.bytes),
            "latency_ratio": asdict(totals.latency),
        },
        "fit": None if report.fit is None else _of_fit(report.fit),
        "seconds": asdict(report.seconds),
        "versions": report.versions,
    }
    return found | ({"notes": report.notes} if report.notes else {})


def _of_comparison(report: Comparison) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "teacher": report.teacher,
        "student": report.student,
        "options": report.options,
        "providers": report.providers,
        "samples": {"count": report.count, **_told_of(report)},
        "agreement": asdict(report.agreement),
        "outputs": [asdict(output) for output in report.outputs],
        "accuracy": {"teacher": report.accuracy_teacher, "student": report.accuracy_student}
        | _standard_errors(report),
        "error_quantiles": report.error_quantiles,
        "versions": report.versions,
        **({"left_out": dict(report.outputs_left_out)} if report.outputs_left_out else {}),
        **({"blocks": [asdict(block) for block in report.blocks]} if report.blocks else {}),
        **({"latency": asdict(report.latency)} if report.latency is not None else {}),
    }


def _standard_errors(report: Comparison) -> dict[str, object]:
    if report.accuracy_errors is None:
        return {}
    names = ("teacher", "student", "difference")
    return {"standard_errors": dict(zip(names, report.accuracy_errors, strict=True))}


def departure(errors: Sequence[float | None]) -> int | None:
    """Return the place of the first error that is half of the greatest; None without errors.

    Args:
        errors: of blocks in network order; None where there is none.
    """
    known = [(place, error) for place, error in enumerate(errors) if error is not None]
    greatest = max((error for _, error in known), default=0.0)
    return next((place for place, error in known if 0 < greatest <= 2 * error), None)


def _told_of(report: FitReport | Comparison) -> dict[str, object]:
    """Return which samples are told of, where there are some."""
    worst = [asdict(sample) for sample in report.worst_samples]
    for sample in worst:
        if sample["error_before"] is None:
            del sample["error_before"]
    return ({"left_out": report.samples_left_out} if report.samples_left_out else {}) | (
        {"worst": worst} if worst else {}
    )


def plain(value: object) -> Any:
    """Return a value as JSON has it: finite numbers, text, lists and objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
