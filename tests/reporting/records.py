"""Results to report on: of a fit, a match, a compression and a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fskd_onnx.compare_results import BlockError, Comparison, LatencyComparison, OutputAgreement
from fskd_onnx.compress_results import (
    Change,
    CompressReport,
    CompressSeconds,
    CompressTotals,
    Plan,
    UnitKind,
    UnitPlan,
)
from fskd_onnx.results import (
    Agreement,
    BlockPair,
    BlockReport,
    BlockStatus,
    Evidence,
    FitReport,
    Matching,
    SampleError,
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
    worst_samples=(SampleError("photos/b.png", 0.31, 2.5), SampleError("photos/a.png", 0.02, 0.9)),
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

PLAN = Plan(
    teacher="teacher.onnx",
    units=(
        UnitPlan(
            *("conv1", UnitKind.WIDTH, "thinet", (64,), (24,), tuple(range(24))),
            macs_before=31_021_952,
            macs_after=11_600_000,
            parameters_before=36_928,
            parameters_after=5_208,
            error=0.001234,
            reason="the last multiple of 8 that fits",
        ),
        UnitPlan(
            *(LONG, UnitKind.WIDTH, "", (10,), (10,)),
            macs_before=640,
            macs_after=640,
            parameters_before=650,
            parameters_after=650,
            reason="an output of the network carries them",
        ),
        UnitPlan("conv1", UnitKind.FACTORS, "tucker", (3, 24), (3, 8), error=float("nan")),
        UnitPlan("odd[1]", UnitKind.FACTORS, "", (), (), reason="its kernel sees one position"),
        UnitPlan("add1", UnitKind.BLOCK, "drop-block", (1,), (0,), error=0.0),
        UnitPlan("add2", UnitKind.BLOCK, "", (1,), (1,)),
    ),
)

COMPRESSION = CompressReport(
    teacher="teacher.onnx",
    output="teacher.small.onnx",
    options={"reduce": "macs=50%", "methods": ("auto",)},
    plan=PLAN,
    totals=CompressTotals(
        macs=Change(31_021_952, 15_400_000),
        parameters=Change(271_402, 99_999),
        bytes=Change(1_100_000, 410_000),
        latency=Change(1.0, 0.625),
    ),
    fit=REPORT,
    seconds=CompressSeconds(total=20.5, analysis=5, plan=1.25, rewrite=0, latency=2, fit=12.25),
    versions={"onnx": "1.23.2"},
    notes=("conv9: has half of the multiply-adds and is no faster",),
)

COMPARISON = Comparison(
    agreement=Agreement(relative_mse=0.25, top1_agreement=0.9),
    count=40,
    accuracy_teacher=0.95,
    accuracy_student=0.875,
    samples_left_out=("x.npy, sample 3",),
    outputs_left_out=(("boxes", "no rows"),),
    teacher="teacher.onnx",
    student="student.onnx",
    options={"seed": 0},
    providers=("CPUExecutionProvider",),
    worst_samples=(SampleError("x.npy, sample 7", 3.0),),
    error_quantiles=(0.0, 0.01, 0.2, 3.0),
    versions={"onnx": "1.23.2"},
    command="fskd-onnx compare teacher.onnx student.onnx x.npy",
    outputs=(
        OutputAgreement("logits", "scores", 0.25, 0.98, 0.9, None, 0.125),
        OutputAgreement("boxes[1]", "boxes[1]", 0.5),
    ),
    accuracy_errors=(0.03, 0.05, 0.04),
    blocks=(
        BlockError("conv1", "conv1_output", "Conv", (0, 2), 4, 0.01, ""),
        BlockError(LONG, "gemm_output", "Gemm", (0, 1), 2, 0.4, ""),
        BlockError("odd[1]", None, "Conv", (), None, None, "no counterpart"),
    ),
    latency=LatencyComparison(0.002, 0.0015, 0.75, (0.7, 0.8), turns=40, samples=1),
)
