"""Plans come back from their files as they were, edited ones too, or are refused by the entry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.plan import plan_to_json, read_plan
from fskd_onnx.errors import PlanError
from tests.compression.plans import LIMITS, PLAN


def read(folder: Path, text: str) -> Plan:
    path = folder / "plan.json"
    path.write_text(text)
    return read_plan(path, "teacher.onnx", LIMITS)


def edited(change: Callable[[list[dict[str, Any]]], None]) -> str:
    document = json.loads(plan_to_json(PLAN))
    change(document["units"])
    return json.dumps(document)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    text = plan_to_json(PLAN)
    assert text.isascii()
    assert text.endswith("}\n")
    assert read(tmp_path, text) == PLAN


def test_what_a_plan_says_of_each_kind() -> None:
    assert dict(PLAN.kept) == {"conv1": (0, 2, 3, 7), "grouped": (1, 2, 4, 7)}
    assert dict(PLAN.ranks("tucker")) == {"conv1": (2, 4)}
    assert not PLAN.ranks("spatial-svd")
    assert PLAN.dropped == ("add1",)


def test_costs_and_errors_are_not_read_and_numbers_json_lacks_are_null(tmp_path: Path) -> None:
    costly = [
        dataclasses.replace(unit, macs_before=9, macs_after=4, error=float("nan"))
        for unit in PLAN.units
    ]
    text = plan_to_json(dataclasses.replace(PLAN, units=tuple(costly)))
    assert json.loads(text)["units"][0]["error"] is None
    assert json.loads(text)["units"][0]["macs_before"] == 9
    assert read(tmp_path, text) == PLAN


def test_units_that_a_plan_does_not_name_stay_whole(tmp_path: Path) -> None:
    plan = read(tmp_path, edited(lambda units: units.__delitem__(slice(0, 5))))
    assert [unit.unit for unit in plan.units] == [unit.unit for unit in PLAN.units]
    assert plan.dropped == ("add1",)
    assert not plan.kept
    assert plan.units[0].reason == "the plan leaves it whole"
    assert plan.units[0].after == (8,)
    assert plan.units[2].reason == "an output of the network carries them"


def test_a_width_may_be_edited_without_channels(tmp_path: Path) -> None:
    plan = read(tmp_path, edited(lambda units: units[0].update(after=6, kept=None)))
    assert plan.units[0] == UnitPlan("conv1", UnitKind.WIDTH, "l1", (8,), (6,), None)
    assert "conv1" not in plan.kept
    whole = read(tmp_path, edited(lambda units: units[0].update(after=8, kept=None)))
    assert not whole.units[0].is_reduced
    full = read(tmp_path, edited(lambda units: units[3].update(after=[3, 8])))
    assert full.units[3] == LIMITS.whole(UnitKind.FACTORS, "conv1", "the plan leaves it whole")


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (0, {"unit": 3}, "an entry names no unit"),
        (0, {"kind": "depth"}, "the kind of 'conv1' must be width, factors or block"),
        (0, {"kind": ["width"]}, "the kind of 'conv1' must be"),
        (0, {"unit": "conv9"}, "no set of channels that may be narrowed called 'conv9'; it has"),
        (3, {"unit": "conv9"}, "no node that may be factorized called 'conv9'"),
        (5, {"unit": "add9"}, "no residual block called 'add9'; it has 'add1'"),
        (0, {"method": "tucker"}, "method of 'conv1' must be l1, slimming or thinet, or empty"),
        (0, {"method": "auto"}, "method of 'conv1' must be"),
        (0, {"method": 7}, "method of 'conv1' must be"),
        (0, {"method": ["l1"]}, "method of 'conv1' must be"),
        (2, {"method": "l1", "after": 5}, "'last' has to stay whole .an output of the network"),
        (3, {"method": "decouple"}, "'conv1' has to stay whole .its kernel sees one position"),
        (3, {"method": "channel-svd"}, "'conv1' has to stay whole .it has no such form"),
        (0, {"before": 16}, "of size 16, and the teacher's has 8; it is the plan of another"),
        (0, {"after": 0, "kept": []}, "size of 'conv1' must be between 1 and 8, not 0"),
        (0, {"after": 9}, "size of 'conv1' must be between 1 and 8, not 9"),
        (0, {"after": 4.5}, "'after' of 'conv1' must be an integer"),
        (0, {"after": True}, "'after' of 'conv1' must be an integer"),
        (0, {"after": None}, "'after' of 'conv1' must be an integer"),
        (0, {"after": [4, 4]}, "size of 'conv1' must be between"),
        (3, {"after": 2}, "size of 'conv1' must be between 1 and .3, 8., not 2"),
        (0, {"method": ""}, "'conv1' names no method and yet a size of 4 of 8"),
        (2, {"before": 12}, "of size 12, and the teacher's has 10; it is the plan of another"),
        (0, {"after": 3}, "keeps 4 channels of 'conv1' and gives it a size of 3; correct one"),
        (0, {"kept": [0, 1, 2, 8]}, "keeps the channel 8 of 'conv1', which has 0 to 7"),
        (0, {"kept": [0, 1, 2, 2]}, "channels that 'conv1' keeps must ascend"),
        (0, {"kept": [3, 2, 1, 0]}, "channels that 'conv1' keeps must ascend"),
        (0, {"kept": [2, 3, 4, 5]}, "one of the channels .0, 1. of 'conv1' has to stay; keep one"),
        (0, {"kept": "all"}, "'kept' of 'conv1' is not a list of channels or null"),
        (0, {"kept": [0.0, 1, 2, 3]}, "'kept' of 'conv1' is not a list"),
        (1, {"kept": [0, 1, 2, 4]}, "'grouped' has 2 groups, which must keep equally many"),
        (1, {"after": 5, "kept": None}, "size of 'grouped' must be a multiple of 2"),
        (1, {"unit": "conv1"}, "names the unit 'conv1' twice; keep one of them"),
    ],
)
def test_what_cannot_be_is_refused_by_the_file_and_the_entry(
    tmp_path: Path, number: int, change: dict[str, Any], words: str
) -> None:
    text = edited(lambda units: units[number].update(change))
    with pytest.raises(PlanError, match=f"^{tmp_path}/plan.json: .*{words}") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[]", "has no list 'units'"),
        ('{"units": {}}', "has no list 'units'"),
        ('{"units": [3]}', "an entry names no unit"),
        ('{"plan_version": 2, "units": []}', "is a plan of version 2"),
        ("[" * 100_000, "too deep"),
        ("\xff", "is not JSON"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=words):
        read_plan(path, "teacher.onnx", LIMITS)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.json: the plan cannot be read: No such file"):
        read_plan(tmp_path / "nowhere.json", "teacher.onnx", LIMITS)
