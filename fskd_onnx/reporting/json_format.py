"""Results as JSON. The keys are stable; ``SCHEMA_VERSION`` counts their changes."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict

from fskd_onnx.compress_results import CompressReport, UnitPlan
from fskd_onnx.compression.plan_json import unit_to_json
from fskd_onnx.results import FitReport, Matching

SCHEMA_VERSION = 1

_OF_PLANS = ("kind", "kept")


def to_json(report: FitReport | CompressReport) -> str:
    """Return the report of a fit or of a compression as JSON.

    Args:
        report: what `fskd_onnx.pipeline.fit.fit` or `fskd_onnx.pipeline.compress.compress` found.

    Returns:
        ASCII text that ends with a newline. NaN and infinities, which JSON does not have, are
        ``null``.
    """
    if isinstance(report, FitReport):
        return _dump(_fit_document(report))
    return _dump(_compress_document(report))


def _fit_document(report: FitReport) -> dict[str, object]:
    blocks = [asdict(block) for block in report.blocks]
    for block in blocks:
        del block["teacher_width"], block["adds_node"]
        if not block["note"]:
            del block["note"]
    samples: dict[str, object] = {
        "count": report.sample_count,
        "independent": report.independent_count,
        "held_out": report.held_out_count,
    }
    if report.samples_left_out:
        samples["left_out"] = report.samples_left_out
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
        "seconds": asdict(report.seconds),
        "versions": report.versions,
    }


def _compress_document(report: CompressReport) -> dict[str, object]:
    totals = report.totals
    document = {
        "schema_version": SCHEMA_VERSION,
        "teacher": report.teacher,
        "output": report.output,
        "options": report.options,
        "units": [_unit(unit) for unit in report.plan.units],
        "totals": {
            "macs": asdict(totals.macs),
            "parameters": asdict(totals.parameters),
            "bytes": asdict(totals.bytes),
            "latency_ratio": asdict(totals.latency),
        },
        "fit": None if report.fit is None else _fit_document(report.fit),
        "seconds": asdict(report.seconds),
        "versions": report.versions,
    }
    return document | ({"notes": report.notes} if report.notes else {})


def _unit(unit: UnitPlan) -> dict[str, object]:
    """Return the record of a unit without what only a plan needs."""
    return {key: value for key, value in unit_to_json(unit).items() if key not in _OF_PLANS}


def matching_to_json(matching: Matching) -> str:
    """Return the block and channel pairs as JSON, as ``--map`` reads them.

    Args:
        matching: what `fskd_onnx.pipeline.match.match` found.

    Returns:
        ASCII text that ends with a newline.
    """
    return _dump(
        {
            "schema_version": SCHEMA_VERSION,
            "pairs": [
                {
                    "student": pair.student,
                    "op": pair.op,
                    "teacher": pair.teacher,
                    "channels": pair.channels,
                    "teacher_width": pair.teacher_width,
                    "paired_by": pair.paired_by,
                    "evidence": pair.evidence,
                    "confidence": pair.confidence,
                    "reason": pair.reason,
                }
                for pair in matching.pairs
            ],
        }
    )


def _dump(document: Mapping[str, object]) -> str:
    return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """Return a value as JSON has it: finite numbers, text, lists and objects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
