"""The benchmark of matching counts what is found, right and wrong."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from tests.benchmarks import matching
from tests.benchmarks.matching import Case
from tests.helpers import DEMO, build


@pytest.fixture
def case() -> Case:
    teacher, student = (onnx.load(DEMO / f"{name}.onnx") for name in ("teacher", "student"))
    return matching._of_names("resnet20", "inner50", teacher, student, 64)


def cells(case: Case) -> list[str]:
    return [cell.strip() for cell in case.row().strip("|").split("|")]


def test_what_is_found_without_names(case: Case) -> None:
    *found, ratio = cells(case)
    assert found == ["resnet20", "inner50", "22", "22", "100%", "100%", "22 of 22"]
    assert float(ratio) > 0


def test_what_is_wrong_and_what_is_missed_counts(case: Case) -> None:
    names = list(case.partners)
    swapped = {**case.partners, names[0]: "another", "more": "stem"}
    assert cells(replace(case, partners=swapped))[2:6] == ["23", "22", "95%", "91%"]


def test_students_that_cannot_be_pruned_are_left_out() -> None:
    # Nothing is narrow enough to lose a channel.
    model = build(
        "g (float[N,3,4,4] x) => (float[N,2,4,4] z) <float[2,3,1,1] w> { z = Conv (x, w) }"
    )
    assert matching._pruned(model) is None
