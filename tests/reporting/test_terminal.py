"""Tables are readable for people, on 80 columns and in pipes."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fskd_onnx.reporting.terminal import print_comparison, print_matching, print_report
from fskd_onnx.results import Agreement
from tests.reporting.records import LONG, MATCHING, REPORT


def printed(print_it: Any, thing: Any, width: int = 80) -> str:
    """What a pipe receives."""
    stream = io.StringIO()
    print_it(thing, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_all_information(width: int) -> None:
    text = printed(print_report, REPORT, width)
    assert "\x1b" not in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    first = next(line for line in text.splitlines() if line.startswith("conv1"))
    words = ["conv1", "Conv", "pointwise", "0.001", "16/32", "0.932", "0.0123", "fitted"]
    assert first.split() == words
    assert LONG in "".join(line.split(" ")[0] for line in text.splitlines())
    assert "odd[1], gemm: the teacher has no counterpart" in text
    text = re.sub(r" ?\n {17}", " ", text)  # facts that were folded
    facts = {line[:15].strip(): line[15:].strip() for line in text.splitlines()[-8:]}
    assert facts == {
        "samples": "500, of which 100 held out, in 400 independent groups",
        "relative mse": "nan -> 0.0123",
        "top-1 agreement": "10.0% -> -",
        "verdict": "error of a sample x 0.0213 (0.0198 to 0.0231, 90% interval) by 100 "
        "independent ones",
        "parameters": "3,700,000 -> 3,700,128",
        "time": "12.3 s (capture 6.0, solve 3.0, fuse 0.5, verify 2.0)",
        "providers": "CPUExecutionProvider",
        "output": "fused.onnx",
    }


def test_matchings_for_people() -> None:
    text = printed(print_matching, MATCHING)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    first = next(line for line in text.splitlines() if line.startswith("conv1"))
    assert first.split() == ["conv1", "Conv", "t1", "2/8", "structure,", "0.99"]
    assert "?/8" in text
    assert "odd[1]: no counterpart" in text
    assert LONG in "".join(line.split(" ")[0] for line in text.splitlines())


def test_comparisons() -> None:
    comparison = SimpleNamespace(
        agreement=Agreement(0.25, 0.9), count=40, accuracy_teacher=None, accuracy_student=None
    )
    text = printed(print_comparison, comparison)
    assert [line.split("  ", 1)[1].strip() for line in text.splitlines()] == ["40", "0.25", "90.0%"]
    comparison.accuracy_teacher, comparison.accuracy_student = 0.934, 0.9
    text = printed(print_comparison, comparison)
    assert "teacher accuracy  93.4%" in text
    assert "student accuracy  90.0%" in text
