"""Result -> terminal table and JSON.

The JSON keys are stable; ``SCHEMA_VERSION`` counts changes.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fskd_onnx.match import Matching

SCHEMA_VERSION = 1

_NOT_KNOWN = "-"


@dataclass(frozen=True)
class BlockReport:
    """What became of one block of the student.

    Errors are relative, ``||student - teacher||^2 / ||teacher - mean||^2``, cross-validated over
    folds of samples; ``None`` where the block was never measured (it has no counterpart).
    """

    student: str  # name of the student's linear node
    teacher: str | None  # teacher tensor that it is aligned to
    op: str
    adapter: str | None  # family that was fused
    ridge: float | None  # relative to the mean diagonal of the Gram matrix
    channels: tuple[int, ...]  # teacher channel of each student channel
    error_before: float | None
    error_after: float | None
    status: str  # "fitted" or "kept"
    reason: str  # why it was kept; empty when fitted
    teacher_width: int | None = None  # channels of the teacher tensor; for the terminal only


@dataclass(frozen=True)
class Agreement:
    """How close a model's outputs are to the teacher's, on samples the fit never saw."""

    relative_mse: float
    top1_agreement: float | None  # fraction; None where the output is no row of class scores


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        agreement: of the student with the teacher.
        count: number of samples.
        accuracy_teacher: fraction of samples whose label the teacher ranks first; None without
            labels.
        accuracy_student: the same of the student.
    """

    agreement: Agreement
    count: int
    accuracy_teacher: float | None
    accuracy_student: float | None


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds per stage."""

    total: float
    capture: float
    solve: float
    fuse: float
    verify: float


@dataclass(frozen=True)
class FitReport:
    """Everything that the JSON report says, in its order."""

    teacher: str
    student: str
    output: str | None
    options: dict[str, object]
    providers: tuple[str, ...]
    sample_count: int
    held_out_count: int
    blocks: tuple[BlockReport, ...]
    before: Agreement
    after: Agreement
    parameters_student: int
    parameters_fused: int
    seconds: Seconds
    versions: dict[str, str]


def to_json(report: FitReport) -> str:
    """The report as JSON with stable keys.

    Args:
        report: what `fskd_onnx.pipeline.fit` found.

    Returns:
        ASCII text that ends with a newline. NaN and infinities, which JSON does not have, are
        ``null``.
    """
    blocks = [asdict(block) for block in report.blocks]
    for block in blocks:
        del block["teacher_width"]
    return _dump(
        {
            "schema_version": SCHEMA_VERSION,
            "teacher": report.teacher,
            "student": report.student,
            "output": report.output,
            "options": report.options,
            "providers": report.providers,
            "samples": {"count": report.sample_count, "held_out": report.held_out_count},
            "blocks": blocks,
            "end_to_end": {"before": asdict(report.before), "after": asdict(report.after)},
            "parameters": {
                "student": report.parameters_student,
                "fused": report.parameters_fused,
            },
            "seconds": asdict(report.seconds),
            "versions": report.versions,
        }
    )


def matching_to_json(matching: Matching) -> str:
    """The block and channel pairs as JSON, as ``--map`` will read them.

    Args:
        matching: what `fskd_onnx.pipeline.match` found.

    Returns:
        ASCII text that ends with a newline.
    """
    return _dump(
        {
            "schema_version": SCHEMA_VERSION,
            "pairs": [
                {
                    "student": pair.student,
                    "op": pair.op,
                    "teacher": pair.teacher,
                    "channels": pair.channels,
                    "teacher_width": pair.teacher_width,
                    "paired_by": pair.paired_by,
                    "evidence": pair.evidence,
                    "confidence": pair.confidence,
                    "reason": pair.reason,
                }
                for pair in matching.pairs
            ],
        }
    )


def render(report: FitReport, console: Console) -> None:
    """Prints the report for a person: a line per block, why blocks were kept, the outcome.

    Args:
        report: what `fskd_onnx.pipeline.fit` found.
        console: where to; 80 columns are enough.
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
    _print_reasons(
        "kept as they were:",
        ((block.student, block.reason) for block in report.blocks if block.reason),
        console,
    )
    console.print()
    seconds = report.seconds
    stages = (field.name for field in fields(seconds) if field.name != "total")
    _print_facts(
        {
            "samples": f"{report.sample_count}, of which {report.held_out_count} held out",
            "relative mse": f"{_number(report.before.relative_mse)} -> "
            f"{_number(report.after.relative_mse)}",
            "top-1 agreement": f"{_percent(report.before.top1_agreement)} -> "
            f"{_percent(report.after.top1_agreement)}",
            "parameters": f"{report.parameters_student:,} -> {report.parameters_fused:,}",
            "time": f"{seconds.total:.1f} s ("
            + ", ".join(f"{stage} {getattr(seconds, stage):.1f}" for stage in stages)
            + ")",
            "providers": ", ".join(report.providers),
            "output": report.output or "none was written",
        },
        console,
    )


def render_matching(matching: Matching, console: Console) -> None:
    """Prints the block and channel pairs for a person.

    Args:
        matching: what `fskd_onnx.pipeline.match` found.
        console: where to; 80 columns are enough.
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


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Prints how far two models agree.

    Args:
        comparison: what `fskd_onnx.compare.compare` found.
        console: where to.
    """
    facts = {
        "samples": str(comparison.count),
        "relative mse": _number(comparison.agreement.relative_mse),
        "top-1 agreement": _percent(comparison.agreement.top1_agreement),
    }
    if comparison.accuracy_teacher is not None or comparison.accuracy_student is not None:
        facts["teacher accuracy"] = _percent(comparison.accuracy_teacher)
        facts["student accuracy"] = _percent(comparison.accuracy_student)
    _print_facts(facts, console)


def _dump(document: Mapping[str, object]) -> str:
    return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """What JSON has: numbers that are finite, text, lists and objects."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _table(name: str, *others: str) -> Table:
    """A table without lines whose first column takes what width is left, and folds."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(name, overflow="fold")
    for header in others:
        table.add_column(header, no_wrap=True)
    return table


def _add_row(table: Table, *cells: str) -> None:
    # As Text, because names of nodes may hold brackets, which strings would lose as markup.
    table.add_row(*map(Text, cells))


def _print_reasons(title: str, reasons: Iterable[tuple[str, str]], console: Console) -> None:
    """Each reason once, with the nodes that it holds for."""
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
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        _add_row(grid, name, fact)
    console.print(grid)


def _number(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return _NOT_KNOWN if value is None else f"{value:.1%}"


def _channels(channels: tuple[int, ...] | None, teacher_width: int | None) -> str:
    """How many of the teacher's channels, as in 16/32; ? where the fit is to find that out."""
    if channels is not None and not channels:
        return _NOT_KNOWN
    own = "?" if channels is None else str(len(channels))
    return own if teacher_width is None else f"{own}/{teacher_width}"
