"""The pages of a fit, a compression and a comparison, each from its record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.reporting.page import UNKNOWN, Page, Reasons, Sample, Tile
from fskd_onnx.reporting.page_tables import block_table, number_text, percent_text, unit_table
from fskd_onnx.reporting.pictures import Bars, Curve, Pairs, Panel
from fskd_onnx.reporting.record import Record
from fskd_onnx.reporting.tables import short
from fskd_onnx.reporting.thumbnails import thumbnail
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
    return _page_of_fit(record) if "blocks" in record else _page_of_comparison(record)


def _page_of_fit(record: Record) -> Page:
    student = _name(record["output"] or record["student"])
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
        title=f"Fit of {_name(record['student'])}",
        headline=headline,
        tiles=[
            *_tiles_of_fit(record),
            Tile("parameters", short(parameters["fused"]), short(parameters["student"])),
        ],
        panels=[panel],
        caption=_caption(panel),
        tables=[block_table(record)],
        reasons=list(_reasons_of_fit(record)),
        samples=_worst(record),
        notes=[],
        facts=_facts(record, record),
        options=dict(_flat(record["options"])),
    )


def _page_of_compression(record: Record) -> Page:
    fit, totals, units = record["fit"], record["totals"], record["units"]
    made = _name(record["output"]) if record["output"] else "The plan"
    needs = "needs" if record["output"] else "comes to"
    headline = (
        f"{made} {needs} {percent_text(_left(totals['macs']))} of the multiply-adds of "
        f"{_name(record['teacher'])}"
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
        title=f"Compression of {_name(record['teacher'])}",
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
        caption="What is left of the teacher's cost. " + _caption(panel),
        tables=[unit_table(units), *(() if fit is None else (block_table(fit),))],
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
        samples=[] if fit is None else _worst(fit),
        notes=record.get("notes", ()),
        facts=_facts(record, fit or {}),
        options=dict(_flat(record["options"])),
    )


def _page_of_comparison(record: Record) -> Page:
    found, accuracy, count = record["agreement"], record["accuracy"], record["samples"]["count"]
    names = _name(record["student"]), _name(record["teacher"])
    agreement, error = percent_text(found["top1_agreement"]), number_text(found["relative_mse"])
    headline = (
        f"The relative error of {names[0]} is {error} on {count:,} samples."
        if found["top1_agreement"] is None
        else f"{names[0]} agrees with {names[1]} on {agreement} of {count:,} samples."
    )
    shares = {
        "agreement": found["top1_agreement"],
        "accuracy, teacher": accuracy["teacher"],
        "accuracy, student": accuracy["student"],
    }
    known = {label: share for label, share in shares.items() if share is not None}
    quantiles = record["error_quantiles"]
    bars: list[Panel] = [Bars(known, {})] if known else []
    return Page(
        title=f"{names[0]} beside {names[1]}",
        headline=headline,
        tiles=[
            Tile("relative error", error),
            *(Tile(label, percent_text(share)) for label, share in known.items()),
            Tile("samples", f"{count:,}"),
        ],
        panels=[*bars, Curve(quantiles)],
        caption="The error of a sample is relative to how far the teacher's outputs spread.",
        tables=[],
        reasons=[
            Reasons.group("Outputs left out", record.get("left_out", {}).items()),
            _samples_left_out(record),
        ],
        samples=_worst(record),
        notes=[],
        facts=_facts(record, record),
        options=dict(_flat(record["options"])),
    )


def _tiles_of_fit(fit: Record) -> Iterator[Tile]:
    """Yield how close a fit brought a student to its teacher, and how certain that is."""
    before, after = _ends(fit)
    verdict = fit["end_to_end"]["verdict"]
    for label, key, text in (
        ("top-1 agreement", "top1_agreement", percent_text),
        ("relative error", "relative_mse", number_text),
    ):
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
        "block in network order, numbered as in the table",
        "relative error of a block",
    )


def _caption(panel: Pairs) -> str:
    """Return what a reader has to know of the marks of blocks."""
    found = "Each block by its number in the table, from the network's input to its output."
    if panel.floor is None:
        return found
    return f"{found} Errors below {panel.floor:.1g} are drawn at the lower edge."


def _reasons_of_fit(fit: Record) -> Iterator[Reasons]:
    """Yield which blocks were left alone, and which outputs and samples were left out."""
    for status, title in _STATUS_TITLES.items():
        blocks = (b for b in fit["blocks"] if b["status"] == status)
        yield Reasons.group(title, ((block["student"], block["reason"]) for block in blocks))
    yield Reasons.group("Outputs left out", fit["end_to_end"].get("left_out", {}).items())
    yield _samples_left_out(fit)


def _samples_left_out(record: Record) -> Reasons:
    names = record["samples"].get("left_out", ())
    return Reasons.group("Samples left out", ((n, "their outputs are not finite") for n in names))


def _worst(record: Record) -> list[Sample]:
    """Return the samples on which the student errs most."""
    return [
        Sample(
            _name(sample["name"]),
            sample["name"],
            number_text(sample["error"]),
            number_text(sample["error_before"]) if "error_before" in sample else "",
            thumbnail(sample["name"]),
        )
        for sample in record["samples"].get("worst", ())
    ]


def _facts(record: Record, run: Record) -> dict[str, str]:
    """Return how a result was made: `run` is what tells of samples and providers."""
    samples = run.get("samples", {})
    counts = [f"{samples['count']:,}"] if samples else []
    if samples.get("independent", samples.get("count")) != samples.get("count"):
        counts.append(f"in {samples['independent']:,} independent groups")
    if "held_out" in samples:
        counts.append(f"of which {samples['held_out']:,} held out")
    seconds = dict(record.get("seconds", {}))
    total = seconds.pop("total", None)
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items() if value)
    facts = {
        "teacher": record["teacher"],
        "student": record.get("student", ""),
        "output": record.get("output") or "",
        "samples": ", ".join(counts),
        "gradient steps": _steps(run["refine"]) if "refine" in run else "",
        "providers": ", ".join(run.get("providers", ())),
        "time": "" if total is None else f"{total:.1f} s ({stages})",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _steps(refine: Mapping[str, Any]) -> str:
    """Return what gradient steps came to."""
    taken = f"{refine['steps_taken']} of {refine['steps']}"
    errors = f"{number_text(refine['error_before'])} to {number_text(refine['error_after'])}"
    reason = f"; {refine['reason']}" if refine["reason"] else ""
    return f"{taken} kept; relative error on held-out samples {errors}{reason}"


def _flat(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield options by name, those inside of others behind a dot."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            items = value if isinstance(value, list) else [value]
            texts = (UNKNOWN if item is None else str(item) for item in items)
            yield f"{above}{name}", ", ".join(texts) or UNKNOWN


def _ends(fit: Record) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return fit["end_to_end"]["before"], fit["end_to_end"]["after"]


def _left(change: Mapping[str, Any]) -> float | None:
    """Return what is left of a figure."""
    before, after = change["before"], change["after"]
    return None if after is None or not before else float(after / before)


def _name(path: str) -> str:
    return PurePath(path).name or path
