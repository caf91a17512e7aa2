"""Reports that tests make, each held against its published schema as it is read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from fskd_onnx.reporting.json_format import to_json
from fskd_onnx.reporting.record import Report, record_of

SCHEMA = Path(__file__).parents[1] / "docs" / "report.schema.json"


@cache
def validator() -> Any:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def checked(document: Any) -> Any:
    """Give a document back that is what the schema says."""
    errors = [f"{error.json_path}: {error.message}" for error in validator().iter_errors(document)]
    assert not errors, "; ".join(errors)
    return document


def read_report(path: Path) -> Any:
    """Read the JSON report that a command has written."""
    return checked(json.loads(path.read_text(encoding="utf-8")))


def report_of(report: Report) -> Any:
    """Give the JSON report of a result, as a program reads it."""
    text = to_json(record_of(report))
    assert text.isascii()
    return checked(json.loads(text))
