"""Tables are readable for people, on 80 columns and in pipes."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fskd_onnx.reporting.terminal import print_comparison, print_matching, print_report
from fskd_onnx.results import Agreement
from tests.reporting.records import LONG, MATCHING, REPORT


def firsts(text: str) -> list[str]:
    """The first word of each line."""
    return [line.split(" ")[0] for line in text.splitlines()]


def test_long_names_keep_both_ends_on_a_terminal() -> None:
    name = "backbone/" + "block/" * 2000 + "conv1"
    report = dataclasses.replace(
        REPORT, blocks=(dataclasses.replace(REPORT.blocks[0], student=name), REPORT.blocks[1])
    )
    first = printed(print_report, report).splitlines()[1]
    assert len(first) <= 80
    front, back = first.split(" ")[0].split("...")
    assert front
    assert name.startswith(front)
    assert name.endswith(back)
    assert firsts(printed(print_report, report, PIPE))[1] == name


def test_names_neither_speak_to_a_terminal_nor_fake_rows() -> None:
    name = "a\x1b]0;title\x07\nconv9  Conv"
    report = dataclasses.replace(
        REPORT, blocks=(dataclasses.replace(REPORT.blocks[0], student=name, reason=name),)
    )
    text = printed(print_report, report, PIPE)
    assert "\x1b" not in text
    assert not any(line.startswith("conv9") for line in text.splitlines())


def printed(print_it: Any, thing: Any, width: int = 80) -> str:
    """What a pipe receives."""
    stream = io.StringIO()
    print_it(thing, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


PIPE = 2**20  # a width that nothing reaches


@pytest.mark.parametrize("width", [80, 120, PIPE])
def test_the_table_keeps_all_information(width: int) -> None:
    text = printed(print_report, REPORT, width)
    assert "\x1b" not in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    first = next(line for line in text.splitlines() if line.startswith("conv1"))
    words = ["conv1", "Conv", "pointwise", "0.001", "16/32", "0.932", "0.0123", "fitted"]
    assert first.split() == words
    assert (LONG in firsts(text)) == (width == PIPE)
    assert "odd[1], gemm: the teacher has no counterpart" in text
    facts = {line[:15].strip(): line[15:].strip() for line in text.splitlines()[-7:]}
    assert facts == {
        "samples": "500, of which 100 held out",
        "relative mse": "nan -> 0.0123",
        "top-1 agreement": "10.0% -> -",
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
    assert first.split() == ["conv1", "Conv", "t1", "2/8", "structure,", "weights", "0.99"]
    assert "?/8" in text
    assert "odd[1]: no counterpart" in text
    assert LONG not in firsts(text)
    assert LONG in firsts(printed(print_matching, MATCHING, PIPE))


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
