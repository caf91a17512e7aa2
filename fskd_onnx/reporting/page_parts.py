"""What pages of several kinds have in common: samples, facts, options, captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from fskd_onnx.reporting.page import UNKNOWN, Reasons, Sample
from fskd_onnx.reporting.page_tables import number_text
from fskd_onnx.reporting.pictures import Pairs
from fskd_onnx.reporting.record import Record
from fskd_onnx.reporting.thumbnails import thumbnail

IN_ORDER = "block in network order, numbered as in the table"
"""What the axis of a picture of blocks counts."""


def caption_of(panel: Pairs) -> str:
    """Return what a reader has to know of the marks of blocks."""
    found = "Each block by its number in the table, from the network's input to its output."
    if panel.floor is None:
        return found
    return f"{found} Errors below {panel.floor:.1g} are drawn at the lower edge."


def samples_left_out(record: Record) -> Reasons:
    """Return which samples are left out, and why."""
    names = record["samples"].get("left_out", ())
    return Reasons.group("Samples left out", ((n, "their outputs are not finite") for n in names))


def worst(record: Record) -> list[Sample]:
    """Return the samples on which the student errs most."""
    return [
        Sample(
            short_name(sample["name"]),
            sample["name"],
            number_text(sample["error"]),
            number_text(sample["error_before"]) if "error_before" in sample else "",
            thumbnail(sample["name"]),
        )
        for sample in record["samples"].get("worst", ())
    ]


def facts_of(record: Record, run: Record) -> dict[str, str]:
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


def flat_options(options: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield options by name, those inside of others behind a dot."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flat_options(value, f"{above}{name}.")
        else:
            items = value if isinstance(value, list) else [value]
            texts = (UNKNOWN if item is None else str(item) for item in items)
            yield f"{above}{name}", ", ".join(texts) or UNKNOWN


def short_name(path: str) -> str:
    """Return the last part of a path."""
    return PurePath(path).name or path
