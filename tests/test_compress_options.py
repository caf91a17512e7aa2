"""What a compression may be asked for is complete, or refused with what excludes what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fskd_onnx.compress_options import (
    DEFAULT_REDUCTION,
    KIND_OF_METHOD,
    CompressOptions,
    CostName,
    MethodName,
    Reduction,
    read_percent,
)
from fskd_onnx.errors import OptionError
from fskd_onnx.options import FitOptions, RunOptions

RUN = RunOptions(seed=3)


@pytest.mark.parametrize(
    ("text", "reduction"),
    [
        ("macs=50%", Reduction(CostName.MACS, 0.5)),
        ("PARAMS = 60 %", Reduction(CostName.PARAMS, 0.6)),
        ("latency=30", Reduction(CostName.LATENCY, 0.3)),
        ("macs=0.5%", Reduction(CostName.MACS, 0.005)),
    ],
)
def test_reductions(text: str, reduction: Reduction) -> None:
    assert Reduction.read(text) == reduction
    assert CompressOptions(reduce=text).reduction == reduction
    assert reduction.budget == 1 - reduction.fraction


def test_options_of_a_report_are_those_that_hold() -> None:
    options = CompressOptions(run=RUN, fit=FitOptions(adapter="kernel")).named()
    assert options["reduce"] == "macs=50%"
    assert isinstance(options["fit"], dict)
    assert options["fit"]["adapter"] == "kernel"
    assert "run" not in options["fit"]
    assert isinstance(options["run"], dict)
    assert options["run"]["seed"] == 3
    assert CompressOptions(max_drop=0.01).named()["reduce"] is None
    assert CompressOptions(reduce="latency = 12.5").named()["reduce"] == "latency=12.5%"


def test_half_of_the_multiply_adds_go_unless_told() -> None:
    assert CompressOptions().reduction == DEFAULT_REDUCTION == Reduction(CostName.MACS, 0.5)


@pytest.mark.parametrize("text", ["", "0.5", "-1%", "1e1%", "nan", "50 percent", "%"])
def test_what_is_no_percentage(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_percent(text)


def _each(name: str, values: Sequence[object], words: str) -> list[tuple[dict[str, Any], str]]:
    return [({name: value}, words) for value in values]


IMPOSSIBLE: tuple[tuple[dict[str, Any], str], ...] = (
    *_each(
        "reduce",
        (
            *("macs", "macs=", "macs=0%", "macs=100%", "macs=0.5", "macs=-5%", "speed=5%"),
            *("", "50%", "macs=50%%", 0.5, ("macs", 0.5), {}),
        ),
        "reduce must be macs=PERCENT, params=PERCENT or latency=PERCENT",
    ),
    *_each(
        "max_drop",
        (0, 1, -0.1, "1%", True, float("nan"), 5),
        "max_drop must be a number between 0 and 1",
    ),
    *_each("methods", ("l1", None, ("wobble",), (7,), ("",), ("auto", "l1")), "methods must be"),
    *_each("methods", [()], "methods must name at least one"),
    *_each("skip", ("conv1", None, ("",), (3,)), "skip must be a tuple"),
    *_each("round_to", (0, -8, 1.5, True, None), "round_to must be"),
    *_each("max_ratio", (0, 1.1, -1, "80%", True, None), "max_ratio must be"),
    *_each("dry_run", [1], "dry_run must be bool"),
    *_each("no_fit", [None], "no_fit must be bool"),
    *_each("plan", (7, "", b"p.json", {}), "plan must be the path"),
    *_each("run", (None, 7, FitOptions()), "run must be RunOptions"),
    *_each("fit", (None, 7, RunOptions()), "fit must be FitOptions"),
    ({"reduce": "macs=50%", "max_drop": 0.01}, "reduce and max_drop exclude each other"),
    ({"plan": "p", "reduce": "macs=50%"}, "reduce and plan exclude each other"),
    ({"plan": "p", "max_drop": 0.01}, "max_drop and plan exclude each other"),
    ({"plan": "p", "methods": ("l1",)}, "methods and plan exclude each other"),
    ({"plan": "p", "skip": ("a",)}, "skip and plan exclude each other"),
    ({"plan": "p", "round_to": 4}, "round_to and plan exclude each other"),
    ({"plan": "p", "max_ratio": 0.5}, "max_ratio and plan exclude each other"),
    ({"max_drop": 0.01, "no_fit": True}, "max_drop and no_fit exclude each other"),
    *_each("rounds", (0, -1, 1.5, True, None), "rounds must be"),
    ({"rounds": 2, "max_drop": 0.01}, "max_drop and rounds exclude each other"),
    ({"rounds": 2, "plan": "p"}, "plan and rounds exclude each other"),
    ({"rounds": 2, "dry_run": True}, "dry_run and rounds exclude each other"),
    ({"rounds": 2, "no_fit": True}, "no_fit and rounds exclude each other"),
    ({"rounds": 2, "reduce": "latency=30%"}, "a latency is searched for in one round"),
    ({"fit": FitOptions(map="m.json")}, "fit must have no map"),
    ({"run": RUN, "fit": FitOptions(run=RunOptions(seed=4))}, "run and fit.run say different"),
)


@pytest.mark.parametrize(("arguments", "words"), IMPOSSIBLE)
def test_impossible_options_are_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=f"^{words}") as caught:
        CompressOptions(**arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_samples_are_read_the_same_way_for_the_analysis_and_for_the_fit() -> None:
    for options in (
        CompressOptions(run=RUN),
        CompressOptions(fit=FitOptions(run=RUN)),
        CompressOptions(run=RUN, fit=FitOptions(run=RUN, adapter="kernel")),
    ):
        assert options.run == options.fit.run == RUN


@pytest.mark.parametrize("methods", [("thinet",), ("l1", "drop-block")])
def test_methods_that_look_at_activations_need_samples(methods: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match=f"the method {methods[-1]} needs samples"):
        CompressOptions(methods=methods).check_without_samples()
    with pytest.raises(OptionError, match="max_drop needs samples"):
        CompressOptions(max_drop=0.01).check_without_samples()
    with pytest.raises(OptionError, match="rounds needs samples"):
        CompressOptions(rounds=2).check_without_samples()
    CompressOptions().check_without_samples()


def test_every_method_has_a_kind() -> None:
    assert {*KIND_OF_METHOD, MethodName.AUTO} == set(MethodName)
    assert all(CompressOptions().allows(method) for method in KIND_OF_METHOD)
    some = CompressOptions(methods=["l1", "tucker", "l1"])  # type: ignore[arg-type]
    assert some.methods == ("l1", "tucker")
    assert [method for method in KIND_OF_METHOD if some.allows(method)] == ["l1", "tucker"]


def test_nodes_to_skip_are_found_by_patterns() -> None:
    options = CompressOptions(skip=("stem", "*/head[0].*", "nowhere*"))
    skipped = [
        name for name in ("stem", "stem2", "a/head[0].b", "a/head0.b") if options.skips(name)
    ]
    assert skipped == ["stem", "a/head[0].b"]
    assert options.unused_skips(["stem", "x/head[0].y"]) == ("nowhere*",)
