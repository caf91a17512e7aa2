"""The published schema says what is in reports: all of it, and nothing that is in none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fskd_onnx.reporting.record import Report
from fskd_onnx.results import OutputErrors, RefineReport
from tests.reporting.records import COMPARISON, COMPRESSION, REPORT, block
from tests.reports import SCHEMA, checked, report_of

# With all keys that may be there.
WHOLE_FIT = dataclasses.replace(
    REPORT,
    blocks=(block("conv1", note="odd", adds_node=True), *REPORT.blocks),
    samples_left_out=("x.npy, sample 3",),
    outputs_left_out=(("boxes", "no rows"),),
    command="fskd-onnx fit",
    advice=("Give more samples.",),
    refine=RefineReport(200, 80, 0.5, 0.25, True, ""),
    outputs=(OutputErrors("boxes", 0.5, 0.1), OutputErrors("scores", 0.25, float("nan"))),
)
WHOLE_COMPRESSION = dataclasses.replace(COMPRESSION, fit=WHOLE_FIT, command="fskd-onnx compress")
REPORTS: dict[str, Report] = {
    "fit": WHOLE_FIT,
    "compression": WHOLE_COMPRESSION,
    "comparison": COMPARISON,
}


def keys(document: Any) -> Iterator[str]:
    """Give all keys of a document, wherever they are; names of options and packages are none."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            if key not in ("options", "versions", "left_out"):
                yield from keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys(value)


def described(schema: Any) -> Iterator[str]:
    """Give all keys that a schema has a description of."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from described(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from described(value)


def test_every_key_is_described_and_every_description_is_of_a_key() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    written = {key for report in REPORTS.values() for key in keys(report_of(report))}
    assert written == set(described(schema))


@pytest.mark.parametrize("name", REPORTS)
def test_a_key_that_is_not_described_and_one_that_is_missing_are_found(name: str) -> None:
    document = report_of(REPORTS[name])
    with pytest.raises(AssertionError, match="novel"):
        checked({**document, "novel": 1})
    with pytest.raises(AssertionError, match="versions"):
        checked({key: value for key, value in document.items() if key != "versions"})


def test_a_number_that_is_none_is_found() -> None:
    document = report_of(WHOLE_FIT)
    document["blocks"][0]["error_after"] = "small"
    with pytest.raises(AssertionError, match=r"blocks\[0\].error_after"):
        checked(document)
