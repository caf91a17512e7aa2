"""The plan of a compression as a file, which ``--save-plan`` writes and ``--plan`` takes back.

It may be edited, and it may be partial: a unit that it does not name stays whole. What makes it the
plan of a teacher are the names of the units and how wide they are. Costs and errors in the file
are for people; they are not read, since whoever edits a width does not edit them. Of an entry::

    {"unit": "conv1", "kind": "width", "method": "l1", "before": 64, "after": 24, "kept": null}

``kept`` null lets the method choose which of the channels stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.plan_entry import LEFT_WHOLE, EntryCheck
from fskd_onnx.compression.plan_json import PLAN_VERSION, plan_to_json
from fskd_onnx.compression.plan_limits import PlanLimits
from fskd_onnx.errors import PlanError
from fskd_onnx.printable import shortened
from fskd_onnx.serialization.input_files import open_regular

__all__ = ["PlanLimits", "plan_to_json", "read_plan"]


def read_plan(path: str | Path, teacher: str, limits: PlanLimits) -> Plan:
    """Read a plan, and check it against the teacher that it is for.

    Args:
        path: JSON with a list ``units``, see the module's docstring.
        teacher: what the teacher is called.
        limits: what a plan of it may name.

    Returns:
        A plan with a record for each unit of the teacher; costs and errors are unknown.

    Raises:
        PlanError: the file cannot be read, or an entry says what cannot be.
    """
    document = _read_json(path)
    units = document.get("units") if isinstance(document, dict) else None
    if not isinstance(units, list):
        raise PlanError(
            f"{path}: has no list 'units'; save a plan with 'fskd-onnx compress --save-plan' and "
            "edit that"
        )
    version = document.get("plan_version", PLAN_VERSION)
    if version != PLAN_VERSION:
        raise PlanError(
            f"{path}: is a plan of version {shortened(repr(version))}, and this program reads "
            f"version {PLAN_VERSION}; save the plan again"
        )
    check = EntryCheck(str(path), limits)
    given: dict[tuple[UnitKind, str], UnitPlan] = {}
    for entry in units:
        unit = check(entry)
        key = unit.kind, unit.unit
        if key in given:
            raise PlanError(f"{path}: names the unit '{unit.unit}' twice; keep one of them")
        given[key] = unit
    return Plan(
        teacher,
        tuple(
            given.get((kind, name)) or limits.whole(kind, name, LEFT_WHOLE)
            for kind in UnitKind
            for name in limits.names(kind)
        ),
    )


def _read_json(path: str | Path) -> Any:
    try:
        with open_regular(path) as stream:
            return json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise PlanError(f"{path}: nests its lists too deep for a plan; correct it") from error
    except ValueError as error:
        what = str(error).split(";")[0]  # what follows is for those who write programs
        raise PlanError(f"{path}: is not JSON: {what}") from error
