"""Results as JSON. The keys are stable; ``SCHEMA_VERSION`` counts their changes."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict

from fskd_onnx.results import FitReport, Matching

SCHEMA_VERSION = 1


def to_json(report: FitReport) -> str:
    """Return the report of a fit as JSON.

    Args:
        report: what `fskd_onnx.pipeline.fit.fit` found.

    Returns:
        ASCII text that ends with a newline. NaN and infinities, which JSON does not have, are
        ``null``.
    """
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
    return _dump(
        {
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
            },
            "added_nodes": report.added_nodes,
            "seconds": asdict(report.seconds),
            "versions": report.versions,
        }
    )


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
