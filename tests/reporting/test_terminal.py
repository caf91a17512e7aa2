"""Tables are readable for people, on 80 columns and in pipes."""

from __future__ import annotations

import dataclasses
import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from fskd_onnx.compare_results import Comparison
from fskd_onnx.reporting.compare_terminal import print_comparison
from fskd_onnx.reporting.terminal import print_matching, print_report
from fskd_onnx.results import Agreement, Matching, OutputErrors
from tests.reporting.records import COMPARISON, LONG, MATCHING, REPORT


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


def test_nodes_of_one_weight_are_one_line() -> None:
    cell = dataclasses.replace(REPORT.blocks[0], student="cell0", first_use="cell0")
    cells = [dataclasses.replace(cell, student=f"cell{number}") for number in range(80)]
    kept = dataclasses.replace(REPORT.blocks[2], first_use="cell0", student="odd")
    report = dataclasses.replace(REPORT, blocks=(*cells, kept, REPORT.blocks[1]))
    lines = printed(print_report, report).splitlines()
    assert lines[1].split()[:3] == ["cell0", "(+79)", "Conv"]
    assert [line.split()[0] for line in lines[2:3]] == ["odd"]
    assert not any("cell1" in line for line in lines)
    pair = dataclasses.replace(MATCHING.pairs[2], student="a", first_use="a")
    other = dataclasses.replace(pair, student="b", reason="also those of 'a'")
    text = printed(print_matching, Matching((pair, other, MATCHING.pairs[0])))
    assert "a (+1): no counterpart" in text
    assert "b" not in firsts(text)


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
    assert first.split() == ["conv1", "Conv", "t1", "2/8", "structure,", "weights", "0.99"]
    assert "?/8" in text
    assert "odd[1]: no counterpart" in text
    assert LONG not in firsts(text)
    assert LONG in firsts(printed(print_matching, MATCHING, PIPE))
    *_, blocks, channels = text.splitlines()
    assert blocks.split() == ["blocks", "3,", "of", "which", "2", "have", "a", "counterpart"]
    assert " ".join(channels.split()).startswith("channels known of 1 of these; a fit finds")


def test_comparisons() -> None:
    comparison = Comparison(Agreement(0.25, 0.9), 40, None, None)
    text = printed(print_comparison, comparison)
    assert [line.split("  ", 1)[1].strip() for line in text.splitlines()] == ["40", "0.25", "90.0%"]
    comparison = replace(comparison, accuracy_teacher=0.934, accuracy_student=0.9)
    text = printed(print_comparison, comparison)
    assert "teacher accuracy  93.4%" in text
    assert "student accuracy  90.0%" in text


def test_each_of_several_outputs_has_its_line() -> None:
    outputs = (OutputErrors("boxes", 0.5, 0.125), OutputErrors("scores", 0.25, 0.03))
    text = printed(print_report, replace(REPORT, outputs=(*outputs, OutputErrors(LONG, 1.0, 0.5))))
    assert max(map(len, text.splitlines())) <= 80
    lines = [line.split() for line in text.splitlines()]
    assert ["of", "boxes", "0.5", "->", "0.125"] in lines
    assert ["of", "scores", "0.25", "->", "0.03"] in lines


def test_comparisons_tell_of_outputs_blocks_and_time() -> None:
    text = printed(print_comparison, COMPARISON)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["conv1"] == ["Conv", "conv1_output", "2/4", "0.01"]
    assert rows["logits"] == ["0.25", "0.98000", "90.0%", "-", "0.125"]
    assert rows["boxes[1]"] == ["0.5", "-", "-", "-", "-"]
    joined = " ".join(text.split())
    assert "odd[1]: no counterpart" in joined
    assert "departs at" in joined
    assert "standard errors 3.0%, 5.0%; of the difference 4.0%" in joined
    assert "2 ms -> 1.5 ms, 1 sample at once" in joined
    assert "75.0% of the teacher's (quartiles 70.0%, 80.0% of 40 turns)" in joined


def test_samples_that_the_verdict_leaves_out_are_named() -> None:
    names = tuple(f"x.npy, sample {number}" for number in (3, 17, 20, 31))
    comparison = Comparison(Agreement(0.25, 0.9), 40, None, None, names)
    text = " ".join(printed(print_comparison, comparison).split())
    assert "40; 4 left out, whose outputs are not finite (x.npy, sample 3, x.npy, sample 17" in text
    report = replace(REPORT, samples_left_out=names[:1])
    text = " ".join(printed(print_report, report).split())
    assert "1 left out, whose outputs are not finite (x.npy, sample 3)" in text


def test_notes_on_fitted_blocks_are_printed_once() -> None:
    blocks = (replace(REPORT.blocks[0], note="odd"), replace(REPORT.blocks[1], note="odd"))
    text = " ".join(printed(print_report, replace(REPORT, blocks=blocks)).split())
    assert text.count("odd") == 1
    assert "to be known of those that were fitted: conv1, " in text


def test_outputs_that_are_left_out_are_named() -> None:
    left_out = (("boxes", "no rows"),)
    comparison = Comparison(Agreement(0.25, 0.9), 40, None, None, outputs_left_out=left_out)
    report = replace(REPORT, outputs_left_out=left_out)
    for text in printed(print_comparison, comparison), printed(print_report, report):
        title, line = text[text.index("outputs left out") :].splitlines()[:2]
        assert title.endswith(":")
        assert line.strip() == "boxes: no rows"
