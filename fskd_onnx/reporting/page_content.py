"""The pages of a fit, a compression and a comparison, each from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.reporting.compare_page import page_of_comparison
from fskd_onnx.reporting.page import Page, Reasons, Table, Tile
from fskd_onnx.reporting.page_parts import (
    IN_ORDER,
    caption_of,
    facts_of,
    flat_options,
    samples_left_out,
    short_name,
    worst,
)
from fskd_onnx.reporting.page_tables import (
    block_table,
    fitted_output_table,
    number_text,
    percent_text,
    unit_table,
)
from fskd_onnx.reporting.pictures import Bars, Pairs, Panel
from fskd_onnx.reporting.record import Record
from fskd_onnx.reporting.tables import short
from fskd_onnx.results import BlockStatus

_STATUS_TITLES = {
    BlockStatus.KEPT: "Blocks that were kept as they were",
    BlockStatus.REPLACED: "Blocks that were not fitted, but are not as they were",
}
_KIND_TITLES = {
    UnitKind.WIDTH: "Channels that all stay",
    UnitKind.FACTORS: "Nodes that are not factorized",
    UnitKind.BLOCK: "Residual blocks that stay",
}


def page_of(record: Record) -> Page:
    """Return the page of a record: of a compression, of a fit or of a comparison."""
    if "units" in record:
        return _page_of_compression(record)
    return _page_of_fit(record) if "end_to_end" in record else page_of_comparison(record)


def _page_of_fit(record: Record) -> Page:
    student = short_name(record["output"] or record["student"])
    before, after = _ends(record)
    old, new = (percent_text(end["top1_agreement"]) for end in (before, after))
    headline = (
        f"{student} agrees with its teacher on {new} of the held-out samples; before the fit on "
        f"{old}."
    )
    if after["top1_agreement"] is None:
        old, new = (number_text(end["relative_mse"]) for end in (before, after))
        headline = (
            f"The relative error of {student} on held-out samples is {new}; before the fit {old}."
        )
    parameters = record["parameters"]
    panel = _error_panel(record)
    return Page(
        title=f"Fit of {short_name(record['student'])}",
        headline=headline,
        tiles=[
            *_tiles_of_fit(record),
            Tile("parameters", short(parameters["fused"]), short(parameters["student"])),
        ],
        panels=[panel],
        caption=caption_of(panel),
        tables=list(_tables_of_fit(record)),
        reasons=list(_reasons_of_fit(record)),
        samples=worst(record),
        notes=record.get("advice", ()),
        facts=facts_of(record, record),
        options=dict(flat_options(record["options"])),
    )


def _page_of_compression(record: Record) -> Page:
    fit, totals, units = record["fit"], record["totals"], record["units"]
    made = short_name(record["output"]) if record["output"] else "The plan"
    needs = "needs" if record["output"] else "comes to"
    headline = (
        f"{made} {needs} {percent_text(_left(totals['macs']))} of the multiply-adds of "
        f"{short_name(record['teacher'])}"
    )
    if fit is None:
        panel = Pairs(
            [unit["macs_before"] or None for unit in units],
            [unit["macs_after"] or None for unit in units],
            "choice unit, see the table",
            "multiply-adds",
        )
        headline += "; it is not fitted."
    else:
        panel = _error_panel(fit)
        agreement = fit["end_to_end"]["after"]["top1_agreement"]
        headline += (
            "."
            if agreement is None
            else f" and agrees with it on {percent_text(agreement)} of the held-out samples."
        )
    shares = {
        label: _left(totals[key])
        for key, label in (
            ("macs", "multiply-adds"),
            ("parameters", "parameters"),
            ("bytes", "size of the file"),
            ("latency_ratio", "time of a run"),
        )
    }
    agreements = {} if fit is None else {"agreement": _ends(fit)[1]["top1_agreement"]}
    known = {k: v for k, v in {**shares, **agreements}.items() if v is not None}
    old = None if fit is None else _ends(fit)[0]["top1_agreement"]
    panels: list[Panel] = [Bars(known, {} if old is None else {"agreement": old}), panel]
    return Page(
        title=f"Compression of {short_name(record['teacher'])}",
        headline=headline,
        tiles=[
            *(
                Tile(label, short(total["after"]) + unit, short(total["before"]) + unit)
                for label, total, unit in (
                    ("multiply-adds", totals["macs"], ""),
                    ("parameters", totals["parameters"], ""),
                    ("size of the file", totals["bytes"], "B"),
                )
                if total["before"] is not None and total["after"] is not None
            ),
            *(() if fit is None else _tiles_of_fit(fit)),
        ],
        panels=panels,
        caption="What is left of the teacher's cost. " + caption_of(panel),
        tables=[unit_table(units), *(() if fit is None else _tables_of_fit(fit))],
        reasons=[
            *(
                Reasons.group(
                    title,
                    (
                        (unit["unit"], unit["reason"])
                        for unit in units
                        if unit["kind"] == kind and not unit["method"] and unit["reason"]
                    ),
                )
                for kind, title in _KIND_TITLES.items()
            ),
            *(() if fit is None else _reasons_of_fit(fit)),
        ],
        samples=[] if fit is None else worst(fit),
        notes=[*record.get("notes", ()), *(fit or {}).get("advice", ())],
        facts=facts_of(record, fit or {}),
        options=dict(flat_options(record["options"])),
    )


def _tables_of_fit(fit: Record) -> Iterator[Table]:
    """Yield the tables of blocks and, of several, of outputs."""
    yield block_table(fit)
    if "outputs" in fit:
        yield fitted_output_table(fit["outputs"])


def _tiles_of_fit(fit: Record) -> Iterator[Tile]:
    """Yield how close a fit brought a student to its teacher, and how certain that is."""
    before, after = _ends(fit)
    verdict = fit["end_to_end"]["verdict"]
    for label, key, text in (
        ("top-1 agreement", "top1_agreement", percent_text),
        ("relative error", "relative_mse", number_text),
    ):
        if (before[key], after[key]) != (None, None) or key == "relative_mse":
            yield Tile(label, text(after[key]), text(before[key]))
    low, high = verdict["interval"]
    yield Tile(
        "error of a sample",
        f"\N{MULTIPLICATION SIGN} {number_text(verdict['error_ratio'])}",
        note=f"{number_text(low)} to {number_text(high)}, 90% interval by "
        f"{verdict['independent_count']} independent samples",
    )


def _error_panel(fit: Record) -> Pairs:
    return Pairs(
        [block["error_before"] for block in fit["blocks"]],
        [block["error_after"] for block in fit["blocks"]],
        IN_ORDER,
        "relative error of a block",
    )


def _reasons_of_fit(fit: Record) -> Iterator[Reasons]:
    """Yield which blocks were left alone, and which outputs and samples were left out."""
    for status, title in _STATUS_TITLES.items():
        blocks = (b for b in fit["blocks"] if b["status"] == status)
        yield Reasons.group(title, ((block["student"], block["reason"]) for block in blocks))
    yield Reasons.group("Outputs left out", fit["end_to_end"].get("left_out", {}).items())
    yield samples_left_out(fit)


def _ends(fit: Record) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return fit["end_to_end"]["before"], fit["end_to_end"]["after"]


def _left(change: Mapping[str, Any]) -> float | None:
    """Return what is left of a figure."""
    before, after = change["before"], change["after"]
    return None if after is None or not before else float(after / before)
