"""The tables of a page: blocks and outputs, choice units of a compression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.reporting.page import UNKNOWN, Cell, Column, Table
from fskd_onnx.reporting.record import Record
from fskd_onnx.reporting.tables import number, percent, short
from fskd_onnx.results import Evidence

# Runs of channels that a row names; the JSON report has all.
_MOST_RUNS = 60
_BLOCK_COLUMNS = (
    Column("#", is_number=True),
    Column("block"),
    Column("operator"),
    Column("adapter"),
    Column("channels", is_number=True),
    Column("before", is_number=True),
    Column("after", is_number=True),
    Column("status"),
)
_UNIT_COLUMNS = (
    Column("#", is_number=True),
    Column("unit"),
    Column("kind"),
    Column("method"),
    Column("size", is_number=True),
    Column("multiply-adds", is_number=True),
    Column("left", is_number=True),
    Column("error", is_number=True),
)
_DEPARTURE_COLUMNS = (
    Column("#", is_number=True),
    Column("block"),
    Column("operator"),
    Column("teacher"),
    Column("channels", is_number=True),
    Column("error", is_number=True),
)
_OUTPUT_COLUMNS = (
    Column("#", is_number=True),
    Column("output"),
    Column("relative error", is_number=True),
    Column("cosine", is_number=True),
    Column("top-1", is_number=True),
    Column("top-5", is_number=True),
    Column("KL", is_number=True),
)
_FITTED_OUTPUT_COLUMNS = (
    Column("#", is_number=True),
    Column("output"),
    Column("before", is_number=True),
    Column("after", is_number=True),
)
_KIND_NAMES = {UnitKind.WIDTH: "channels", UnitKind.FACTORS: "node", UnitKind.BLOCK: "block"}


def block_table(fit: Record) -> Table:
    """Return the table of the blocks of a fit."""
    return Table(
        "Blocks",
        "Errors are relative to the spread of the teacher's block output, on held-out folds of the "
        "samples.",
        _BLOCK_COLUMNS,
        [
            (
                block["status"],
                (
                    Cell(str(place), place),
                    Cell(block["student"], note=block["reason"] or block.get("note", "")),
                    Cell(block["op"]),
                    Cell(block["adapter"] or UNKNOWN),
                    _channels(block),
                    Cell(number_text(block["error_before"]), block["error_before"]),
                    Cell(number_text(block["error_after"]), block["error_after"]),
                    Cell(block["status"]),
                ),
            )
            for place, block in enumerate(fit["blocks"], 1)
        ],
    )


def departure_table(blocks: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the block outputs of a comparison."""
    return Table(
        "Blocks",
        "How far each block output is from the teacher's, the student running as it is: relative "
        "to the spread of the teacher's, with all errors that came in through the block's input.",
        _DEPARTURE_COLUMNS,
        [
            (
                "left alone" if block["reason"] else "compared",
                (
                    Cell(str(place), place),
                    Cell(block["student"], note=block["reason"]),
                    Cell(block["op"]),
                    Cell(block["teacher"] or UNKNOWN),
                    _channels(block),
                    Cell(number_text(block["error"]), block["error"]),
                ),
            )
            for place, block in enumerate(blocks, 1)
        ],
    )


def fitted_output_table(outputs: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the outputs of a fit, each on its own scale."""
    return Table(
        "Outputs",
        "The relative error of each on held-out samples, on its own scale.",
        _FITTED_OUTPUT_COLUMNS,
        [
            (
                "output",
                (
                    Cell(str(place), place),
                    Cell(output["name"]),
                    Cell(number_text(output["before"]), output["before"]),
                    Cell(number_text(output["after"]), output["after"]),
                ),
            )
            for place, output in enumerate(outputs, 1)
        ],
    )


def output_table(outputs: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the outputs of a comparison, each on its own scale."""
    return Table(
        "Outputs",
        "Each on its own scale. The divergence is that of the classes' probabilities, in nats.",
        _OUTPUT_COLUMNS,
        [
            (
                "scores" if output["top1_agreement"] is not None else "numbers",
                (
                    Cell(str(place), place),
                    Cell(output["name"]),
                    *(
                        Cell(text(output[key]), output[key])
                        for key, text in (
                            ("relative_mse", number_text),
                            ("cosine", _cosine),
                            ("top1_agreement", percent_text),
                            ("top5_agreement", percent_text),
                            ("kl_divergence", number_text),
                        )
                    ),
                ),
            )
            for place, output in enumerate(outputs, 1)
        ],
    )


def _cosine(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.5f}"


def _channels(block: Mapping[str, Any]) -> Cell:
    """Return how many of the teacher's channels a block has, and which."""
    channels, width = block["channels"], block["teacher_width"]
    if not channels:
        return Cell(UNKNOWN)
    count = len(channels)
    chosen = block.get("evidence") == Evidence.SELECTED
    # All of them in their order need no list.
    detail = "" if channels == list(range(width or 0)) else ranges(channels, _MOST_RUNS)
    return Cell(
        f"{count}/{width}" if width is not None else str(count),
        count,
        detail=detail and f"{'chosen anew' if chosen else 'kept'}: {detail}",
    )


def unit_table(units: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the choice units of a compression."""
    return Table(
        "Plan",
        "What becomes of each set of coupled channels, each factorized node and each residual "
        "block; the error is an estimate of what it adds to the network's output.",
        _UNIT_COLUMNS,
        [
            (
                "reduced" if unit["method"] else "whole",
                (
                    Cell(str(place), place),
                    Cell(unit["unit"], note=unit["reason"]),
                    Cell(_KIND_NAMES[unit["kind"]]),
                    Cell(unit["method"] or UNKNOWN),
                    _sizes(unit),
                    Cell(short(unit["macs_after"]), unit["macs_after"]),
                    _part(unit["macs_after"], unit["macs_before"]),
                    Cell(number_text(unit["error"]), unit["error"]),
                ),
            )
            for place, unit in enumerate(units, 1)
        ],
    )


def _sizes(unit: Mapping[str, Any]) -> Cell:
    """Return what is left of a unit: channels, ranks, or whether a block is there."""
    before, after = unit["before"], unit["after"]
    if unit["kind"] == UnitKind.BLOCK:
        return Cell("there" if after else "gone", 1.0 if after else 0.0)
    if after is None:
        return Cell(UNKNOWN)
    ranks = after if isinstance(after, list) else [after]
    text = ", ".join(map(str, ranks))
    if unit["kind"] == UnitKind.WIDTH:
        text = f"{text}/{before}"
    kept = unit["kept"] or ()
    return Cell(text, ranks[0], detail=f"kept: {ranges(kept, _MOST_RUNS)}" if kept else "")


def _part(after: float, before: float) -> Cell:
    return Cell(percent_text(after / before), after / before) if before else Cell(UNKNOWN)


def ranges(numbers: Iterable[int], most: int) -> str:
    """Return numbers as text, runs of them as their ends: 0-3, 7.

    Args:
        numbers: in their order.
        most: how many runs are shown.
    """
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    shown = [str(a) if a == b else f"{a}\N{EN DASH}{b}" for a, b in runs[:most]]
    hidden = sum(b - a + 1 for a, b in runs[most:])
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


def number_text(value: float | None) -> str:
    """Return a number as people read it."""
    return UNKNOWN if value is None else number(value)


def percent_text(value: float | None) -> str:
    """Return a fraction as a percentage."""
    return UNKNOWN if value is None else percent(value)
