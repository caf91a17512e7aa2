"""A plan as the text of a file, which ``plan.py`` reads back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from fskd_onnx.compress_results import Plan, UnitPlan

PLAN_VERSION = 1
"""Counts the changes of the keys of a plan."""


def unit_to_json(unit: UnitPlan) -> dict[str, object]:
    """Return the record of a unit as JSON has it: one size as a number, several as a list."""
    error = unit.error
    return {
        "unit": unit.unit,
        "kind": unit.kind.value,
        "method": unit.method,
        "before": _plain(unit.before),
        "after": _plain(unit.after),
        "kept": None if unit.kept is None else list(unit.kept),
        "macs_before": unit.macs_before,
        "macs_after": unit.macs_after,
        "parameters_before": unit.parameters_before,
        "parameters_after": unit.parameters_after,
        "error": None if error is None or not math.isfinite(error) else error,
        "reason": unit.reason,
    }


def plan_to_json(plan: Plan) -> str:
    """Return a plan as the text of a file: ASCII that ends with a newline."""
    units = [unit_to_json(unit) for unit in plan.units]
    document = {"plan_version": PLAN_VERSION, "teacher": plan.teacher, "units": units}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _plain(sizes: Sequence[int]) -> int | list[int] | None:
    """Return sizes as JSON has them."""
    if not sizes:
        return None
    return sizes[0] if len(sizes) == 1 else list(sizes)
