"""The page of a comparison, from its record."""

from __future__ import annotations

from collections.abc import Iterator

from fskd_onnx.reporting.page import Page, Reasons, Tile
from fskd_onnx.reporting.page_parts import (
    IN_ORDER,
    caption_of,
    facts_of,
    flat_options,
    samples_left_out,
    short_name,
    worst,
)
from fskd_onnx.reporting.page_tables import departure_table, number_text, output_table, percent_text
from fskd_onnx.reporting.pictures import Bars, Curve, Pairs, Panel
from fskd_onnx.reporting.record import Record, departure


def page_of_comparison(record: Record) -> Page:
    """Return the page of the record of a comparison."""
    found, accuracy, count = record["agreement"], record["accuracy"], record["samples"]["count"]
    names = short_name(record["student"]), short_name(record["teacher"])
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
    blocks = record.get("blocks", ())
    panels: list[Panel] = [Bars(known, {})] if known else []
    panels.append(Curve(quantiles))
    caption = "The error of a sample is relative to how far the teacher's outputs spread."
    notes = []
    errors = [block["error"] for block in blocks]
    if any(error is not None for error in errors):
        figure = "relative error of a block output, the student running as it is"
        panel = Pairs([None] * len(errors), errors, IN_ORDER, figure)
        panels.append(panel)
        caption = f"{caption} {caption_of(panel)}"
    at = departure(errors)
    if at is not None:
        notes.append(
            f"The student departs from its teacher at {blocks[at]['student']}: it is the first "
            "block with half of the greatest error of one."
        )
    return Page(
        title=f"{names[0]} beside {names[1]}",
        headline=headline,
        tiles=[
            Tile("relative error", error),
            *(
                Tile(label, percent_text(share), note=_standard_error(record, label))
                for label, share in known.items()
            ),
            *_tiles_of_latency(record),
            Tile("samples", f"{count:,}"),
        ],
        panels=panels,
        caption=caption,
        tables=[
            *((departure_table(blocks),) if blocks else ()),
            output_table(record["outputs"]),
        ],
        reasons=[
            Reasons.group(
                "Blocks that are not compared",
                ((block["student"], block["reason"]) for block in blocks if block["reason"]),
            ),
            Reasons.group("Outputs left out", record.get("left_out", {}).items()),
            samples_left_out(record),
        ],
        samples=worst(record),
        notes=notes,
        facts=facts_of(record, record),
        options=dict(flat_options(record["options"])),
    )


def _standard_error(record: Record, label: str) -> str:
    """Return the standard error of an accuracy, "" for another share."""
    errors, whose = record["accuracy"].get("standard_errors"), label.removeprefix("accuracy, ")
    if errors is None or whose not in errors:
        return ""
    own = f"\N{PLUS-MINUS SIGN} {percent_text(errors[whose])}, its standard error"
    if whose == "teacher":
        return own
    return f"{own}; that of the difference is {percent_text(errors['difference'])}"


def _tiles_of_latency(record: Record) -> Iterator[Tile]:
    """Yield how long a run takes, where that was measured."""
    latency = record.get("latency")
    if latency is not None:
        low, high = map(percent_text, latency["quartiles"])
        one, other = (f"{1e3 * latency[whose]:.3g} ms" for whose in ("teacher", "student"))
        yield Tile(
            "time, relative",
            percent_text(latency["ratio"]),
            note=f"{one} \N{RIGHTWARDS ARROW} {other} for a run; quartiles of "
            f"{latency['turns']} turns {low} and {high}",
        )
