"""Records to report on: of a fit and of a match."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fskd_onnx.results import (
    Agreement,
    BlockPair,
    BlockReport,
    BlockStatus,
    Evidence,
    FitReport,
    Matching,
    StageSeconds,
    Verdict,
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
        status=BlockStatus.FITTED,
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
    "status": BlockStatus.KEPT,
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
    independent_count=400,
    held_out_count=100,
    blocks=(block("conv1"), block(LONG), block("odd[1]", **KEPT), block("gemm", **KEPT)),
    before=Agreement(relative_mse=float("nan"), top1_agreement=0.1),
    after=Agreement(relative_mse=0.0123, top1_agreement=None),
    verdict=Verdict(100, 0.0213, (0.0198, 0.0231), stands=True),
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
