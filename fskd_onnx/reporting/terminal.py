"""Results as tables on a terminal: of a fit, of a match, of a comparison.

80 columns are enough, and what goes to a pipe is plain ASCII.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fskd_onnx.results import BlockStatus, Comparison, FitReport, Matching, Verdict

_NOT_KNOWN = "-"
# Samples that are named of those that were left out.
_NAMED = 3


def print_report(report: FitReport, console: Console) -> None:
    """Print the report of a fit: a line per block, why blocks were kept, the outcome.

    Args:
        report: what `fskd_onnx.pipeline.fit.fit` found.
        console: where to.
    """
    table = _table("node", "op", "adapter")
    for header in ("ridge", "channels", "before", "after"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for block in report.blocks:
        _add_row(
            table,
            block.student,
            block.op,
            block.adapter or _NOT_KNOWN,
            _number(block.ridge),
            _channels(block.channels, block.teacher_width),
            _number(block.error_before),
            _number(block.error_after),
            block.status,
        )
    console.print(table)
    titles = {
        BlockStatus.KEPT: "kept as they were:",
        BlockStatus.REPLACED: "not fitted, but not as they were:",
    }
    for status, title in titles.items():
        rows = ((b.student, b.reason) for b in report.blocks if b.status == status)
        _print_reasons(title, rows, console)
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
    table = _table("student", "op", "teacher")
    table.columns[2].overflow = "fold"
    table.columns[2].no_wrap = False
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("evidence")
    table.add_column("confidence", justify="right", no_wrap=True)
    for pair in matching.pairs:
        _add_row(
            table,
            pair.student,
            pair.op,
            pair.teacher or _NOT_KNOWN,
            _channels(pair.channels, pair.teacher_width),
            ", ".join(dict.fromkeys(filter(None, (pair.paired_by, pair.evidence)))),
            f"{pair.confidence:.2f}",
        )
    console.print(table)
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


def _table(name: str, *others: str) -> Table:
    """Return a table without lines whose first column takes the width that is left, and folds."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold")
    for header in others:
        table.add_column(header, no_wrap=True)
    return table


def _add_row(table: Table, *cells: str) -> None:
    # As Text, because names of nodes may hold brackets, which strings would lose as markup.
    table.add_row(*map(Text, cells))


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
        console.print(Text(f"  {', '.join(names)}: {reason}", overflow="fold"))


def _print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print names and what is known of each, in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        _add_row(grid, name, fact)
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
