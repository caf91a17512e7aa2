"""Results as tables on a terminal: of a fit, of a match, of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console

from fskd_onnx.reporting.tables import (
    NOT_KNOWN,
    number,
    percent,
    print_facts,
    print_reasons,
    print_table,
)
from fskd_onnx.results import BlockStatus, Comparison, FitReport, Matching, RefineReport, Verdict

# Samples that are named of those that were left out.
_NAMED = 3


def print_report(report: FitReport, console: Console) -> None:
    """Print the report of a fit: a line per block, why blocks were kept, the outcome.

    Args:
        report: what `fskd_onnx.pipeline.fit.fit` found.
        console: where to.
    """
    rows = [
        (
            block.student,
            block.op,
            block.adapter or NOT_KNOWN,
            number(block.ridge),
            _channels(block.channels, block.teacher_width),
            number(block.error_before),
            number(block.error_after),
            block.status,
        )
        for block in report.blocks
    ]
    numbers = ("ridge", "channels", "before", "after")
    print_table(("node", "op", "adapter", *numbers, "status"), rows, numbers, ("node",), console)
    titles = {
        BlockStatus.KEPT: "kept as they were:",
        BlockStatus.REPLACED: "not fitted, but not as they were:",
    }
    for status, title in titles.items():
        reasons = ((b.student, b.reason) for b in report.blocks if b.status == status)
        print_reasons(title, reasons, console)
    print_reasons(
        "to be known of those that were fitted:",
        ((block.student, block.note) for block in report.blocks if block.note),
        console,
    )
    print_reasons("outputs left out of the verdict:", report.outputs_left_out, console)
    console.print()
    seconds = report.seconds
    stages = [field.name for field in fields(seconds) if field.name != "total"]
    if report.refine is None:
        stages.remove("refine")
    print_facts(
        {
            **facts_of_fit(report),
            "parameters": f"{report.parameters_student:,} -> {report.parameters_fused:,}"
            + _added(report.added_nodes),
            "time": f"{seconds.total:.1f} s ("
            + ", ".join(f"{stage} {getattr(seconds, stage):.1f}" for stage in stages)
            + ")",
            "providers": ", ".join(report.providers),
            "output": report.output or "none was written",
        },
        console,
    )


def facts_of_fit(report: FitReport) -> dict[str, str]:
    """Return how close a fit brought a student to its teacher, and how certain that is."""
    before, after = report.before, report.after
    return {
        "samples": f"{report.sample_count}, of which {report.held_out_count} held out"
        + _independent(report)
        + _left_out(report.samples_left_out),
        "relative mse": f"{number(before.relative_mse)} -> {number(after.relative_mse)}",
        "top-1 agreement": f"{percent(before.top1_agreement)} -> {percent(after.top1_agreement)}",
        "verdict": _verdict(report.verdict),
    } | ({} if report.refine is None else {"gradient steps": _steps(report.refine)})


def _steps(report: RefineReport) -> str:
    """Return what gradient steps came to."""
    errors = f"relative mse {number(report.error_before)} -> {number(report.error_after)}"
    if report.kept:
        return f"{report.steps_taken} of {report.steps} kept, {errors}"
    return f"none of {report.steps} kept, {errors}: {report.reason}"


def _independent(report: FitReport) -> str:
    """Return how many independent groups the samples are, where these are fewer."""
    fewer = report.independent_count < report.sample_count
    return f", in {report.independent_count} independent groups" if fewer else ""


def _added(names: Sequence[str]) -> str:
    """Return which blocks have a node more."""
    if not names:
        return ""
    count = "1 node" if len(names) == 1 else f"{len(names)} nodes"
    return f"; {count} added: an Add for the bias of {', '.join(names)}"


def _verdict(verdict: Verdict) -> str:
    """Return how certain a gain is."""
    low, high = map(number, verdict.interval)
    doubt = "" if verdict.stands else ": not beyond chance"
    return (
        f"error of a sample x {number(verdict.error_ratio)} ({low} to {high}, 90% interval) by "
        f"{verdict.independent_count} independent ones{doubt}"
    )


def print_matching(matching: Matching, console: Console) -> None:
    """Print the block and channel pairs.

    Args:
        matching: what `fskd_onnx.pipeline.match.match` found.
        console: where to.
    """
    rows = [
        (
            pair.student,
            pair.op,
            pair.teacher or NOT_KNOWN,
            _channels(pair.channels, pair.teacher_width),
            ", ".join(dict.fromkeys(filter(None, (pair.paired_by, pair.evidence)))),
            f"{pair.confidence:.2f}",
        )
        for pair in matching.pairs
    ]
    headers = ("student", "op", "teacher", "channels", "evidence", "confidence")
    numbers = ("channels", "confidence")
    print_table(headers, rows, numbers, ("student", "teacher"), console)
    print_reasons(
        "left alone:",
        ((pair.student, pair.reason) for pair in matching.pairs if pair.reason),
        console,
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print how far two models agree.

    Args:
        comparison: what `fskd_onnx.reporting.compare.compare` found.
        console: where to.
    """
    facts = {
        "samples": f"{comparison.count}{_left_out(comparison.samples_left_out)}",
        "relative mse": number(comparison.agreement.relative_mse),
        "top-1 agreement": percent(comparison.agreement.top1_agreement),
    }
    if comparison.accuracy_teacher is not None or comparison.accuracy_student is not None:
        facts["teacher accuracy"] = percent(comparison.accuracy_teacher)
        facts["student accuracy"] = percent(comparison.accuracy_student)
    print_facts(facts, console)
    print_reasons("outputs left out of the comparison:", comparison.outputs_left_out, console)


def _left_out(names: Sequence[str]) -> str:
    """Return how many samples the verdict leaves out, and which; nothing where there are none."""
    if not names:
        return ""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"; {len(names)} left out, whose outputs are not finite ({listed})"


def _channels(channels: tuple[int, ...] | None, teacher_width: int | None) -> str:
    """Return how many of the teacher's channels, as in 16/32; ? where the fit finds that out."""
    if channels is not None and not channels:
        return NOT_KNOWN
    own = "?" if channels is None else str(len(channels))
    return own if teacher_width is None else f"{own}/{teacher_width}"
