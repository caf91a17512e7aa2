"""Results as tables on a terminal: of a fit, of a match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from fskd_onnx.printable import printable
from fskd_onnx.reporting.tables import (
    NOT_KNOWN,
    cut_in_middle,
    number,
    percent,
    print_facts,
    print_reasons,
    print_table,
)
from fskd_onnx.results import (
    Agreement,
    BlockPair,
    BlockReport,
    BlockStatus,
    FitReport,
    Matching,
    OutputErrors,
    RefineReport,
    Verdict,
)

Node = TypeVar("Node", BlockPair, BlockReport)

# Samples that are named of those that were left out.
_NAMED = 3
# Columns that the name of an output may take in front of its figures.
_NAME = 40


def print_report(report: FitReport, console: Console) -> None:
    """Print the report of a fit: a line per block, why blocks were kept, the outcome.

    Args:
        report: what `fskd_onnx.pipeline.fit.fit` found.
        console: where to.
    """
    blocks, others = _without_uses(report.blocks)
    rows = [
        (
            _named(block.student, others),
            block.op,
            block.adapter or NOT_KNOWN,
            number(block.ridge),
            channels_text(block.channels, block.teacher_width),
            number(block.error_before),
            number(block.error_after),
            block.status,
        )
        for block in blocks
    ]
    numbers = ("ridge", "channels", "before", "after")
    print_table(("node", "op", "adapter", *numbers, "status"), rows, numbers, ("node",), console)
    titles = {
        BlockStatus.KEPT: "kept as they were:",
        BlockStatus.REPLACED: "not fitted, but not as they were:",
    }
    for status, title in titles.items():
        reasons = ((_named(b.student, others), b.reason) for b in blocks if b.status == status)
        print_reasons(title, reasons, console)
    print_reasons(
        "to be known of those that were fitted:",
        ((_named(block.student, others), block.note) for block in blocks if block.note),
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
    print_advice(report.advice, console)


def print_advice(advice: Sequence[str], console: Console) -> None:
    """Print sentences below the figures; nothing where there are none."""
    if advice:
        console.print()
    for sentence in advice:
        console.print(Text(printable(sentence), overflow="fold"))


def facts_of_fit(report: FitReport) -> dict[str, str]:
    """Return how close a fit brought a student to its teacher, and how certain that is."""
    before, after = report.before, report.after
    return {
        "samples": f"{report.sample_count}, of which {report.held_out_count} held out"
        + _independent(report)
        + left_out_text(report.samples_left_out),
        "relative mse": f"{number(before.relative_mse)} -> {number(after.relative_mse)}",
        **dict(map(_of_output, report.outputs)),
        **_top1(before, after),
        "verdict": _verdict(report.verdict),
    } | ({} if report.refine is None else {"gradient steps": _steps(report.refine)})


def _steps(report: RefineReport) -> str:
    """Return what gradient steps came to."""
    errors = f"relative mse {number(report.error_before)} -> {number(report.error_after)}"
    if report.kept:
        return f"{report.steps_taken} of {report.steps} kept, {errors}"
    return f"none of {report.steps} kept, {errors}: {report.reason}"


def _of_output(output: OutputErrors) -> tuple[str, str]:
    """Return the name of one of several outputs, cut to its column, and its errors."""
    name = cut_in_middle(output.name, _NAME)
    return f"  of {name}", f"{number(output.before)} -> {number(output.after)}"


def _top1(before: Agreement, after: Agreement) -> dict[str, str]:
    """Return how often both rank the same class first, where an output holds scores of classes."""
    ends = before.top1_agreement, after.top1_agreement
    return {} if ends == (None, None) else {"top-1 agreement": " -> ".join(map(percent, ends))}


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
    doubt = "" if verdict.stands else f"; not beyond chance, {verdict.doubt}"
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
    pairs, others = _without_uses(matching.pairs)
    rows = [
        (
            _named(pair.student, others),
            pair.op,
            pair.teacher or NOT_KNOWN,
            channels_text(pair.channels, pair.teacher_width),
            ", ".join(dict.fromkeys(filter(None, (pair.paired_by, pair.evidence)))),
            f"{pair.confidence:.2f}",
        )
        for pair in pairs
    ]
    headers = ("student", "op", "teacher", "channels", "evidence", "confidence")
    numbers = ("channels", "confidence")
    print_table(headers, rows, numbers, ("student", "teacher"), console)
    print_reasons(
        "left alone:",
        ((_named(pair.student, others), pair.reason) for pair in pairs if pair.reason),
        console,
    )
    usable = matching.usable
    known = sum(pair.channels is not None for pair in usable)
    console.print()
    print_facts(
        {
            "blocks": f"{len(matching.pairs)}, of which {len(usable)} have a counterpart",
            "channels": f"known of {known} of these; a fit finds the others from activations"
            if known < len(usable)
            else "known of all of these",
        },
        console,
    )


def _without_uses(nodes: Sequence[Node]) -> tuple[list[Node], Counter[str]]:
    """Return one node of those that use the same weights, and how many others each stands for.

    A node of which something else became has a line of its own.
    """
    first = {node.student: node for node in nodes}
    shown, others = [], Counter[str]()
    for node in nodes:
        one = first.get(node.first_use, node)
        if one is not node and bool(one.reason) == bool(node.reason):
            others[one.student] += 1
        else:
            shown.append(node)
    return shown, others


def _named(name: str, others: Counter[str]) -> str:
    return f"{name} (+{others[name]})" if others[name] else name


def left_out_text(names: Sequence[str]) -> str:
    """Return how many samples the verdict leaves out, and which; nothing where there are none."""
    if not names:
        return ""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"; {len(names)} left out, whose outputs are not finite ({listed})"


def channels_text(channels: tuple[int, ...] | None, teacher_width: int | None) -> str:
    """Return how many of the teacher's channels, as in 16/32; ? where the fit finds that out."""
    if channels is not None and not channels:
        return NOT_KNOWN
    own = "?" if channels is None else str(len(channels))
    return own if teacher_width is None else f"{own}/{teacher_width}"
