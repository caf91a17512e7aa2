"""Plans and compressions as tables on a terminal."""

from __future__ import annotations

from dataclasses import fields

from rich.console import Console

from fskd_onnx.compress_results import Change, CompressReport, Plan, UnitKind, UnitPlan
from fskd_onnx.reporting.tables import (
    NOT_KNOWN,
    number,
    percent,
    print_facts,
    print_reasons,
    print_table,
    short,
)
from fskd_onnx.reporting.terminal import facts_of_fit, print_advice


def print_compression(report: CompressReport, console: Console) -> None:
    """Print what became of each unit, what the student costs, and how close it is.

    Args:
        report: what `fskd_onnx.pipeline.compress.compress` found.
        console: where to.
    """
    print_plan(report.plan, console)
    console.print()
    totals, seconds = report.totals, report.seconds
    facts = {
        "multiply-adds": _change(totals.macs),
        "parameters": _change(totals.parameters),
        "size": _change(totals.bytes, "B"),
        "latency": _latency(totals.latency),
    }
    stages = (field.name for field in fields(seconds) if field.name != "total")
    timed = ((stage, getattr(seconds, stage)) for stage in stages)
    print_facts(
        {name: fact for name, fact in facts.items() if fact}
        | ({"fit": "none"} if report.fit is None else facts_of_fit(report.fit))
        | {
            "time": f"{seconds.total:.1f} s ("
            + ", ".join(f"{stage} {value:.1f}" for stage, value in timed if value)
            + ")",
            "output": report.output or "none was written",
        },
        console,
    )
    print_advice([*report.notes, *(report.fit.advice if report.fit is not None else ())], console)


def print_plan(plan: Plan, console: Console) -> None:
    """Print what becomes of each unit, and why units are left whole.

    Args:
        plan: of a teacher.
        console: where to.
    """
    # Most nodes may be factorized and are not: only those that are have a row.
    shown = [u for u in plan.units if u.is_reduced or u.kind != UnitKind.FACTORS]
    rows = [
        (
            unit.unit,
            unit.method or NOT_KNOWN,
            _size(unit, unit.before),
            _size(unit, unit.after),
            short(unit.macs_before),
            short(unit.macs_after),
            short(unit.parameters_after),
            number(unit.error),
        )
        for unit in shown
    ]
    numbers = ("before", "after", "macs", "left", "params", "error")
    print_table(("unit", "method", *numbers), rows, numbers, ("unit",), console)
    titles = {
        UnitKind.WIDTH: "channels that all stay:",
        UnitKind.FACTORS: "nodes that are not factorized:",
        UnitKind.BLOCK: "blocks that stay:",
    }
    for kind, title in titles.items():
        whole = (u for u in plan.units if u.kind == kind and not u.is_reduced and u.reason)
        print_reasons(title, ((unit.unit, unit.reason) for unit in whole), console)
    noted = ((u.unit, u.reason) for u in plan.units if u.is_reduced and u.reason)
    print_reasons("to be known of those that are reduced:", noted, console)


def _size(unit: UnitPlan, sizes: tuple[int, ...]) -> str:
    """Return the sizes of a unit: channels or ranks, or whether a block is there."""
    if unit.kind == UnitKind.BLOCK:
        return "there" if any(sizes) else "gone"
    return ",".join(map(str, sizes)) or NOT_KNOWN


def _change(change: Change, unit: str = "") -> str:
    """Return a figure before and after; nothing where it is not known."""
    if change.before is None:
        return ""
    if change.after is None:
        return f"{short(change.before)}{unit}"
    left = "" if change.ratio is None else f" ({percent(change.ratio)} left)"
    return f"{short(change.before)}{unit} -> {short(change.after)}{unit}{left}"


def _latency(latency: Change) -> str:
    """Return how long a run takes, by the teacher's."""
    return "" if latency.ratio is None else f"{percent(latency.ratio)} of the teacher's"
