"""JSON is stable for machines: its keys, its types, and numbers that it lacks."""

from __future__ import annotations

import dataclasses
import json
from typing import cast

import numpy as np

from fskd_onnx.reporting import json_format
from fskd_onnx.reporting.json_format import matching_to_json
from fskd_onnx.reporting.record import SCHEMA_VERSION, Report, record_of
from tests.reporting.records import COMPARISON, COMPRESSION, LONG, MATCHING, REPORT, block
from tests.reports import checked


def to_json(report: Report) -> str:
    text = json_format.to_json(record_of(report))
    checked(json.loads(text))
    return text


def test_the_keys_are_those_of_the_contract() -> None:
    text = to_json(REPORT)
    assert text.isascii()
    document = json.loads(text)
    assert list(document) == [
        "schema_version",
        "teacher",
        "student",
        "output",
        "options",
        "providers",
        "samples",
        "blocks",
        "end_to_end",
        "parameters",
        "seconds",
        "versions",
    ]
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["samples"] == {
        "count": 500,
        "independent": 400,
        "held_out": 100,
        "worst": [
            {"name": "photos/b.png", "error": 0.31, "error_before": 2.5},
            {"name": "photos/a.png", "error": 0.02, "error_before": 0.9},
        ],
    }
    assert list(document["blocks"][0]) == [
        "student",
        "teacher",
        "op",
        "adapter",
        "ridge",
        "channels",
        "error_before",
        "error_after",
        "status",
        "reason",
        "teacher_width",
        "evidence",
    ]
    assert document["blocks"][0]["channels"] == list(range(0, 32, 2))
    assert document["parameters"] == {"student": 3_700_000, "fused": 3_700_128}
    added = dataclasses.replace(REPORT, blocks=(block("q", adds_node=True),))
    assert json.loads(to_json(added))["parameters"]["added_nodes"] == ["q"]
    assert list(document["seconds"]) == ["total", "capture", "solve", "fuse", "verify"]
    assert document["options"] == {"seed": 0, "providers": ["auto"], "scale": None, "path": "a"}


def test_numbers_that_json_lacks_are_null() -> None:
    document = json.loads(to_json(REPORT))
    assert document["end_to_end"] == {
        "before": {"relative_mse": None, "top1_agreement": 0.1},
        "after": {"relative_mse": 0.0123, "top1_agreement": None},
        "verdict": {
            "independent_count": 100,
            "error_ratio": 0.0213,
            "interval": [0.0198, 0.0231],
            "stands": True,
            "doubt": "",
        },
    }


def test_outputs_that_are_left_out_are_named() -> None:
    report = dataclasses.replace(REPORT, outputs_left_out=(("boxes", "no rows"),))
    assert json.loads(to_json(report))["end_to_end"]["left_out"] == {"boxes": "no rows"}


def test_numbers_of_numpy_are_numbers() -> None:
    odd = dataclasses.replace(
        REPORT,
        blocks=(block("a", ridge=np.float64(0.1), error_before=np.float32(0.5)),),
        parameters_fused=cast("int", np.int64(5)),
    )
    document = json.loads(to_json(odd))
    assert document["parameters"]["fused"] == 5
    assert document["blocks"][0]["ridge"] == 0.1
    assert document["blocks"][0]["error_before"] == 0.5


def test_matchings_for_machines() -> None:
    document = json.loads(matching_to_json(MATCHING))
    assert list(document) == ["schema_version", "pairs"]
    assert document["pairs"][0] == {
        "student": "conv1",
        "op": "Conv",
        "teacher": "t1",
        "channels": [0, 3],
        "teacher_width": 8,
        "paired_by": "structure",
        "evidence": "weights",
        "confidence": 0.98765,
        "reason": "",
    }
    assert document["pairs"][1]["channels"] is None


def test_what_is_left_out_is_listed_where_there_is_some() -> None:
    report = dataclasses.replace(
        REPORT, blocks=(block("conv1", note="odd"),), samples_left_out=("x.npy, sample 3",)
    )
    document = json.loads(to_json(report))
    assert document["samples"]["left_out"] == ["x.npy, sample 3"]
    assert document["blocks"][0]["note"] == "odd"


def test_compressions_for_machines() -> None:
    text = to_json(COMPRESSION)
    assert text.isascii()
    document = json.loads(text)
    assert list(document) == [
        "schema_version",
        "teacher",
        "output",
        "options",
        "units",
        "totals",
        "fit",
        "seconds",
        "versions",
        "notes",
    ]
    assert document["units"][0] == {
        "unit": "conv1",
        "kind": "width",
        "method": "thinet",
        "before": 64,
        "after": 24,
        "kept": list(range(24)),
        "macs_before": 31_021_952,
        "macs_after": 11_600_000,
        "parameters_before": 36_928,
        "parameters_after": 5_208,
        "error": 0.001234,
        "reason": "the last multiple of 8 that fits",
    }
    assert [unit["after"] for unit in document["units"]] == [24, 10, [3, 8], None, 0, 1]
    assert document["units"][2]["error"] is None
    assert document["totals"] == {
        "macs": {"before": 31_021_952, "after": 15_400_000},
        "parameters": {"before": 271_402, "after": 99_999},
        "bytes": {"before": 1_100_000, "after": 410_000},
        "latency_ratio": {"before": 1.0, "after": 0.625},
    }
    assert document["fit"] == json.loads(to_json(REPORT))
    assert list(document["seconds"]) == ["total", "analysis", "plan", "rewrite", "latency", "fit"]


def test_compressions_without_a_fit_or_notes() -> None:
    document = json.loads(to_json(dataclasses.replace(COMPRESSION, fit=None, notes=())))
    assert document["fit"] is None
    assert "notes" not in document


def test_comparisons_for_machines() -> None:
    assert json.loads(to_json(COMPARISON)) == {
        "schema_version": SCHEMA_VERSION,
        "teacher": "teacher.onnx",
        "student": "student.onnx",
        "options": {"seed": 0},
        "providers": ["CPUExecutionProvider"],
        "samples": {
            "count": 40,
            "left_out": ["x.npy, sample 3"],
            "worst": [{"name": "x.npy, sample 7", "error": 3.0}],
        },
        "agreement": {"relative_mse": 0.25, "top1_agreement": 0.9},
        "outputs": [
            {
                "name": "logits",
                "student": "scores",
                "relative_mse": 0.25,
                "cosine": 0.98,
                "top1_agreement": 0.9,
                "top5_agreement": None,
                "kl_divergence": 0.125,
            },
            {
                "name": "boxes[1]",
                "student": "boxes[1]",
                "relative_mse": 0.5,
                "cosine": None,
                "top1_agreement": None,
                "top5_agreement": None,
                "kl_divergence": None,
            },
        ],
        "accuracy": {
            "teacher": 0.95,
            "student": 0.875,
            "standard_errors": {"teacher": 0.03, "student": 0.05, "difference": 0.04},
        },
        "error_quantiles": [0.0, 0.01, 0.2, 3.0],
        "versions": {"onnx": "1.23.2"},
        "left_out": {"boxes": "no rows"},
        "blocks": [
            {
                "student": "conv1",
                "teacher": "conv1_output",
                "op": "Conv",
                "channels": [0, 2],
                "teacher_width": 4,
                "error": 0.01,
                "reason": "",
            },
            {
                "student": LONG,
                "teacher": "gemm_output",
                "op": "Gemm",
                "channels": [0, 1],
                "teacher_width": 2,
                "error": 0.4,
                "reason": "",
            },
            {
                "student": "odd[1]",
                "teacher": None,
                "op": "Conv",
                "channels": [],
                "teacher_width": None,
                "error": None,
                "reason": "no counterpart",
            },
        ],
        "latency": {
            "teacher": 0.002,
            "student": 0.0015,
            "ratio": 0.75,
            "quartiles": [0.7, 0.8],
            "turns": 40,
            "samples": 1,
        },
        "command": "fskd-onnx compare teacher.onnx student.onnx x.npy",
    }


def test_the_command_is_there_where_there_was_one() -> None:
    for report in (REPORT, COMPRESSION):
        called = dataclasses.replace(report, command="fskd-onnx 'a b'")
        assert json.loads(to_json(called))["command"] == "fskd-onnx 'a b'"
        assert "command" not in json.loads(to_json(report))
