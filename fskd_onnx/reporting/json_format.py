"""Records and matchings as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fskd_onnx.reporting.record import SCHEMA_VERSION, Record, plain
from fskd_onnx.results import Matching


def to_json(record: Record) -> str:
    """Return a record as JSON: ASCII text that ends with a newline.

    Args:
        record: see `fskd_onnx.reporting.record`.
    """
    return _dump(record)


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
    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"
