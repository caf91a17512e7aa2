"""The search for a student that meets a target that only students tell: by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fskd_onnx.compress_results import Plan
from fskd_onnx.progress import share

_STEPS = 6

Student = TypeVar("Student")


def search_student(
    choose: Callable[[float], Plan | None],
    make: Callable[[Plan], Student],
    meets: Callable[[Student], bool],
    *,
    smallest: bool,
) -> Student | None:
    """Search over what is left of a cost.

    Args:
        choose: gives the plan that leaves a part of it; None where there is none.
        make: makes the student of a plan.
        meets: whether a student meets the target.
        smallest: whether the smallest of those is wanted, else the largest.

    Returns:
        The best one that was tried; None where none meets the target.
    """
    low, high = 0.0, 1.0
    found = None
    for step in range(_STEPS):
        part = (low + high) / 2
        plan = choose(part)
        if plan is None:
            low = part
            continue
        with share(step / _STEPS, (step + 1) / _STEPS):
            student = make(plan)
        good = meets(student)
        found = student if good else found
        # The smallest good one lies below a good one, the largest one above.
        if good == smallest:
            high = part
        else:
            low = part
    return found
