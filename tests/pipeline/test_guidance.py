"""Each cause has its own advice, and no advice is given without its cause."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.guidance import advise, why_no_gain
from fskd_onnx.pipeline.sample_need import SampleNeed
from fskd_onnx.results import Agreement, BlockReport
from tests.helpers import Array
from tests.reporting.records import KEPT, block

AUTO = FitOptions()
POINTWISE = FitOptions(adapter="pointwise")
STEPS = FitOptions(refine=50)
LEFT = [block("a", **KEPT), block("b", **KEPT)]
MEASURED = [block("a"), block("b", **{**KEPT, "error_before": 0.1})]
OUTPUT = np.random.default_rng(0).standard_normal((20, 5))


def why(
    blocks: list[BlockReport] = MEASURED,
    error: float = 0.5,
    target: Array = OUTPUT,
    counts: tuple[int, int] = (500, 400),
    options: FitOptions = AUTO,
    closer: bool = False,
) -> str:
    return why_no_gain(blocks, Agreement(error, None), [target], counts, options, closer=closer)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"error": 1e-12}, "already agrees with its teacher"),
        ({"target": np.ones((20, 5)) + 1e-6 * OUTPUT}, "the same for all of them"),
        ({"blocks": LEFT}, "none of its blocks could be fitted ('a': the teacher has no"),
        ({"counts": (500, 30)}, "500 samples are 30 independent ones: give samples that differ"),
        ({"counts": (20, 20)}, "20 independent samples are few: give more"),
        ({"closer": True}, "give more independent samples"),
        ({"options": POINTWISE}, "will hardly help: try --adapter auto"),
        ({}, "will hardly help: try --refine 1000, or take a student that has lost less"),
        ({"options": STEPS}, "will hardly help: take a student that has lost less"),
    ],
)
def test_causes_are_told_apart(changes: dict[str, Any], text: str) -> None:
    found = why(**changes)
    assert text in found
    assert ("more" in found.replace("more samples of this kind", "")) == any(
        name in changes for name in ("counts", "closer")
    )


def test_a_good_fit_needs_no_advice() -> None:
    assert advise(MEASURED, Agreement(0.01, 0.99), (500, 400), AUTO) == ()
    assert advise(MEASURED, Agreement(0.01, 0.99), (20, 20), AUTO) == ()


def test_few_and_alike_samples_are_said() -> None:
    (one,) = advise(MEASURED, Agreement(0.2, None), (20, 20), AUTO)
    assert one.startswith("20 independent samples are few, and the error is still 0.2")
    assert "--augment" not in one
    (very,) = advise(MEASURED, Agreement(0.2, None), (10, 10), AUTO)
    assert very.endswith("may help as well (--augment flip,shift).")
    (moved,) = advise(MEASURED, Agreement(0.2, None), (10, 10), FitOptions(augment=("flip",)))
    assert "--augment" not in moved
    alike, *_ = advise(MEASURED, Agreement(0.01, None), (500, 100), AUTO)
    assert alike.startswith("500 samples are 100 independent ones")


def test_how_many_samples_would_help_is_said_where_the_errors_tell() -> None:
    helps = SampleNeed(0.2, (0.2, 0.25, 0.3), 0.8)
    (said,) = advise(MEASURED, Agreement(0.2, None), (20, 20), AUTO, helps)
    assert said == (
        "The error is 0.2 on samples that it has not seen and 0.05 on those that it was fitted to: "
        "80 independent samples would take off about 25% of the former, or more."
    )
    open_ = SampleNeed(0.2, (0.2, 0.6, 0.95), 0.8)
    (said,) = advise(MEASURED, Agreement(0.2, None), (20, 20), AUTO, open_)
    assert said.startswith("20 independent samples are few")
    assert advise(MEASURED, Agreement(0.01, None), (20, 20), AUTO, helps) == ()


def test_groups_that_were_given_are_not_samples_that_are_alike() -> None:
    given = FitOptions(RunOptions(groups="folders"))
    (said,) = advise(MEASURED, Agreement(0.01, None), (500, 5), given)
    assert said.startswith("--groups makes 5 independent ones of 500 samples")
    assert said.endswith("classes are no groups.")
    assert "or leave --groups out" in why(counts=(500, 5), options=given)


def test_a_fit_that_is_no_better_than_a_constant_says_so() -> None:
    (said,) = advise([block("a"), *LEFT], Agreement(1.03, None), (20, 20), AUTO)
    assert "2 of 3 blocks were left alone" in said
    assert said.endswith("is it a student of that teacher?")
    (said,) = advise(MEASURED, Agreement(1.03, None), (20, 20), AUTO)
    assert "the student has lost too much" in said


def test_blocks_that_stand_out_are_named() -> None:
    usual = [block(f"c{n}", error_after=0.02) for n in range(9)]
    worst = dataclasses.replace(usual[3], student="deep", error_after=0.9)
    (said,) = advise([*usual, worst], Agreement(0.2, None), (500, 500), AUTO)
    assert "deep (0.9)" in said
    assert "c1" not in said
    assert advise(usual, Agreement(0.2, None), (500, 500), AUTO) == ()


def test_the_next_option_is_one_that_was_not_taken() -> None:
    (said,) = advise(MEASURED, Agreement(0.2, None), (500, 500), POINTWISE)
    assert said == "The error is still 0.2: try --adapter auto."


def test_blocks_that_were_left_alone_are_said_where_they_are_most() -> None:
    (said,) = advise([block("a"), *LEFT], Agreement(0.2, None), (500, 500), AUTO)
    assert said.startswith("2 of 3 blocks were left alone")
