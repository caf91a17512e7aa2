"""Reports are stable for machines and readable for people, on 80 columns and in pipes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from fskd_onnx.reporting.json_format import SCHEMA_VERSION, matching_to_json, to_json
from fskd_onnx.reporting.terminal import render, render_comparison, render_matching
from fskd_onnx.results import (
    Agreement,
    BlockPair,
    BlockReport,
    Evidence,
    FitReport,
    Matching,
    StageSeconds,
)

LONG = "/features/features.3/conv/conv.0/conv.0.0/Conv[quantized]/with/a/very/long/name"


def block(student: str, **changes: Any) -> BlockReport:
    default = BlockReport(
        student=student,
        teacher=f"{student}_output",
        op="Conv",
        adapter="pointwise",
        ridge=1e-3,
        channels=tuple(range(0, 32, 2)),
        error_before=0.93217,
        error_after=0.0123456,
        status="fitted",
        reason="",
        teacher_width=32,
    )
    return dataclasses.replace(default, **changes)


KEPT: dict[str, Any] = {
    "teacher": None,
    "adapter": None,
    "ridge": None,
    "channels": (),
    "error_before": None,
    "error_after": None,
    "status": "kept",
    "reason": "the teacher has no counterpart",
    "teacher_width": None,
}

REPORT = FitReport(
    teacher="teacher.onnx",
    student="student.onnx",
    output="fused.onnx",
    options={"seed": 0, "providers": ("auto",), "scale": float("inf"), "path": Path("a")},
    providers=("CPUExecutionProvider",),
    sample_count=500,
    held_out_count=100,
    blocks=(block("conv1"), block(LONG), block("odd[1]", **KEPT), block("gemm", **KEPT)),
    before=Agreement(relative_mse=float("nan"), top1_agreement=0.1),
    after=Agreement(relative_mse=0.0123, top1_agreement=None),
    parameters_student=3_700_000,
    parameters_fused=3_700_128,
    seconds=StageSeconds(total=12.34, capture=6, solve=3, fuse=0.5, verify=2),
    versions={"onnx": "1.23.2"},
)

MATCHING = Matching(
    pairs=(
        BlockPair(
            "conv1", "Conv", "t1", (0, 3), 8, Evidence.WEIGHTS, 0.98765, "", Evidence.STRUCTURE
        ),
        BlockPair(LONG, "Conv", LONG, None, 8, Evidence.ACTIVATIONS, 0.5, ""),
        BlockPair("odd[1]", "Gemm", None, (), None, Evidence.NONE, 0.0, "no counterpart"),
    )
)


def printed(render_it: Any, thing: Any, width: int = 80) -> str:
    """What a pipe receives."""
    stream = io.StringIO()
    render_it(thing, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


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
    assert document["samples"] == {"count": 500, "held_out": 100}
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
    ]
    assert document["blocks"][0]["channels"] == list(range(0, 32, 2))
    assert document["parameters"] == {"student": 3_700_000, "fused": 3_700_128}
    assert list(document["seconds"]) == ["total", "capture", "solve", "fuse", "verify"]
    assert document["options"] == {"seed": 0, "providers": ["auto"], "scale": None, "path": "a"}


def test_numbers_that_json_lacks_are_null() -> None:
    document = json.loads(to_json(REPORT))
    assert document["end_to_end"] == {
        "before": {"relative_mse": None, "top1_agreement": 0.1},
        "after": {"relative_mse": 0.0123, "top1_agreement": None},
    }


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


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_all_information(width: int) -> None:
    text = printed(render, REPORT, width)
    assert "\x1b" not in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    first = next(line for line in text.splitlines() if line.startswith("conv1"))
    words = ["conv1", "Conv", "pointwise", "0.001", "16/32", "0.932", "0.0123", "fitted"]
    assert first.split() == words
    assert LONG in "".join(line.split(" ")[0] for line in text.splitlines())
    assert "odd[1], gemm: the teacher has no counterpart" in text
    facts = {line[:15].strip(): line[15:].strip() for line in text.splitlines()[-7:]}
    assert facts == {
        "samples": "500, of which 100 held out",
        "relative mse": "nan -> 0.0123",
        "top-1 agreement": "10.0% -> -",
        "parameters": "3,700,000 -> 3,700,128",
        "time": "12.3 s (capture 6.0, solve 3.0, fuse 0.5, verify 2.0)",
        "providers": "CPUExecutionProvider",
        "output": "fused.onnx",
    }


def test_matchings_for_people() -> None:
    text = printed(render_matching, MATCHING)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    first = next(line for line in text.splitlines() if line.startswith("conv1"))
    assert first.split() == ["conv1", "Conv", "t1", "2/8", "structure,", "0.99"]
    assert "?/8" in text
    assert "odd[1]: no counterpart" in text
    assert LONG in "".join(line.split(" ")[0] for line in text.splitlines())


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


def test_comparisons() -> None:
    comparison = SimpleNamespace(
        agreement=Agreement(0.25, 0.9), count=40, accuracy_teacher=None, accuracy_student=None
    )
    text = printed(render_comparison, comparison)
    assert [line.split("  ", 1)[1].strip() for line in text.splitlines()] == ["40", "0.25", "90.0%"]
    comparison.accuracy_teacher, comparison.accuracy_student = 0.934, 0.9
    text = printed(render_comparison, comparison)
    assert "teacher accuracy  93.4%" in text
    assert "student accuracy  90.0%" in text
