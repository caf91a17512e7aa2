"""Results as tables on a terminal: of a fit, of a match, of a comparison.

80 columns are enough. What goes to a pipe is plain ASCII but for names, one row a line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fskd_onnx.printable import printable
from fskd_onnx.results import BlockStatus, Comparison, FitReport, Matching, Verdict

_NOT_KNOWN = "-"
_ELLIPSIS = "..."
_LEAST_NAME = 8
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
            block.adapter or _NOT_KNOWN,
            _number(block.ridge),
            _channels(block.channels, block.teacher_width),
            _number(block.error_before),
            _number(block.error_after),
            block.status,
        )
        for block in report.blocks
    ]
    numbers = ("ridge", "channels", "before", "after")
    _print_table(("node", "op", "adapter", *numbers, "status"), rows, numbers, ("node",), console)
    titles = {
        BlockStatus.KEPT: "kept as they were:",
        BlockStatus.REPLACED: "not fitted, but not as they were:",
    }
    for status, title in titles.items():
        reasons = ((b.student, b.reason) for b in report.blocks if b.status == status)
        _print_reasons(title, reasons, console)
    _print_reasons(
        "to be known of those that were fitted:",
        ((block.student, block.note) for block in report.blocks if block.note),
        console,
    )
    _print_reasons("outputs left out of the verdict:", report.outputs_left_out, console)
    console.print()
    seconds = report.seconds
    stages = (field.name for field in fields(seconds) if field.name != "total")
    _print_facts(
        {
            "samples": f"{report.sample_count}, of which {report.held_out_count} held out"
            + _independent(report)
            + _left_out(report.samples_left_out),
            "relative mse": f"{_number(report.before.relative_mse)} -> "
            f"{_number(report.after.relative_mse)}",
            "top-1 agreement": f"{_percent(report.before.top1_agreement)} -> "
            f"{_percent(report.after.top1_agreement)}",
            "verdict": _verdict(report.verdict),
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
    low, high = map(_number, verdict.interval)
    doubt = "" if verdict.stands else ": not beyond chance"
    return (
        f"error of a sample x {_number(verdict.error_ratio)} ({low} to {high}, 90% interval) by "
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
            pair.teacher or _NOT_KNOWN,
            _channels(pair.channels, pair.teacher_width),
            ", ".join(dict.fromkeys(filter(None, (pair.paired_by, pair.evidence)))),
            f"{pair.confidence:.2f}",
        )
        for pair in matching.pairs
    ]
    headers = ("student", "op", "teacher", "channels", "evidence", "confidence")
    numbers = ("channels", "confidence")
    _print_table(headers, rows, numbers, ("student", "teacher"), console)
    _print_reasons(
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
        "relative mse": _number(comparison.agreement.relative_mse),
        "top-1 agreement": _percent(comparison.agreement.top1_agreement),
    }
    if comparison.accuracy_teacher is not None or comparison.accuracy_student is not None:
        facts["teacher accuracy"] = _percent(comparison.accuracy_teacher)
        facts["student accuracy"] = _percent(comparison.accuracy_student)
    _print_facts(facts, console)
    _print_reasons("outputs left out of the comparison:", comparison.outputs_left_out, console)


def _print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Collection[str],
    names: Collection[str],
    console: Console,
) -> None:
    """Print a table without lines.

    Names are cut in the middle where a row does not fit; a pipe, which has no width, gets them
    whole.

    Args:
        headers: of its columns.
        rows: its cells.
        numbers: headers of the columns that are aligned to the right.
        names: headers of the columns of names of nodes.
        console: where to.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headers, *cells, strict=True)]
    cut = [headers.index(name) for name in names]
    excess = sum(widths) + len(widths) - console.width
    while excess > 0 and max(widths[column] for column in cut) > _LEAST_NAME:
        widths[max(cut, key=widths.__getitem__)] -= 1
        excess -= 1
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in numbers else "left"
        table.add_column(header, justify=justify, no_wrap=True)
    for row in cells:
        # As Text, because names of nodes may hold brackets, which strings would lose as markup.
        table.add_row(
            *(Text(_shortened(cell, width)) for cell, width in zip(row, widths, strict=True))
        )
    console.print(table)


def _shortened(text: str, width: int) -> str:
    """Return a text with an ellipsis in its middle where it takes more cells than a width."""
    if cell_len(text) <= width:
        return text
    kept = width - len(_ELLIPSIS)
    while True:
        front = (kept + 1) // 2
        found = f"{text[:front]}{_ELLIPSIS}{text[len(text) - kept // 2 :]}"
        if cell_len(found) <= width or kept <= 1:
            return found
        kept -= 1


def _print_reasons(title: str, reasons: Iterable[tuple[str, str]], console: Console) -> None:
    """Print each reason once, with the nodes that it holds for."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons:
        nodes.setdefault(reason, []).append(node)
    if not nodes:
        return
    console.print()
    console.print(Text(title))
    for reason, names in nodes.items():
        console.print(Text(printable(f"  {', '.join(names)}: {reason}"), overflow="fold"))


def _print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print names and what is known of each, in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(Text(name), Text(printable(fact)))
    console.print(grid)


def _left_out(names: Sequence[str]) -> str:
    """Return how many samples the verdict leaves out, and which; nothing where there are none."""
    if not names:
        return ""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"; {len(names)} left out, whose outputs are not finite ({listed})"


def _number(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f"{value:.1%}"


def _channels(channels: tuple[int, ...] | None, teacher_width: int | None) -> str:
    """Return how many of the teacher's channels, as in 16/32; ? where the fit finds that out."""
    if channels is not None and not channels:
        return _NOT_KNOWN
    own = "?" if channels is None else str(len(channels))
    return own if teacher_width is None else f"{own}/{teacher_width}"
