"""Plans and compressions are readable for people, on 80 columns and in pipes."""

from __future__ import annotations

import dataclasses
import re

import pytest

from fskd_onnx.compress_results import UNKNOWN, CompressTotals
from fskd_onnx.reporting.compress_terminal import print_compression, print_plan
from tests.reporting.records import COMPRESSION, LONG, PLAN
from tests.reporting.test_terminal import PIPE, firsts, printed


@pytest.mark.parametrize("width", [80, 120, PIPE])
def test_a_plan_has_a_row_for_each_unit_and_reasons(width: int) -> None:
    text = printed(print_plan, PLAN, width)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    header, first, second, third, fourth, fifth = text.splitlines()[:6]
    assert header.split() == [
        *("unit", "method", "before", "after", "macs", "left", "params", "error")
    ]
    assert first.split() == ["conv1", "thinet", "64", "24", "31M", "11.6M", "5.21k", "0.00123"]
    assert second.split()[1:] == ["-", "10", "10", "640", "640", "650", "-"]
    assert third.split()[:4] == ["conv1", "tucker", "3,24", "3,8"]
    assert fourth.split()[:4] == ["add1", "drop-block", "there", "gone"]
    assert fifth.split()[:4] == ["add2", "-", "there", "there"]
    assert (LONG in firsts(text)) == (width == PIPE)
    flat = "".join(text.split())  # long names are folded
    assert f"channelsthatallstay:{LONG}:anoutputofthenetworkcarriesthem" in flat
    assert "nodesthatarenotfactorized:odd[1]:itskernelseesoneposition" in flat
    assert "thatarereduced:conv1:thelastmultipleof8thatfits" in flat
    assert "blocksthatstay" not in flat


def test_what_a_compression_comes_to() -> None:
    text = printed(print_compression, COMPRESSION)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    flat = re.sub(r"\s+", " ", text)
    for fact in (
        "multiply-adds 31M -> 15.4M (49.6% left)",
        "parameters 271k -> 100k (36.8% left)",
        "size 1.1MB -> 410kB (37.3% left)",
        "latency 62.5% of the teacher's",
        "relative mse nan -> 0.0123",
        "time 20.5 s (analysis 5.0, plan 1.2, latency 2.0, fit 12.2)",
        "output teacher.small.onnx",
        "conv9: has half of the multiply-adds and is no faster",
    ):
        assert fact in flat


def test_a_dry_run_says_that_nothing_was_written() -> None:
    totals = CompressTotals(COMPRESSION.totals.macs, COMPRESSION.totals.parameters, UNKNOWN)
    dry = dataclasses.replace(COMPRESSION, output=None, fit=None, totals=totals, notes=())
    flat = " ".join(printed(print_compression, dry).split())
    assert "output none was written" in flat
    assert "fit none" in flat
    assert "size" not in flat
    assert "latency 2.0" in flat
    assert "of the teacher's" not in flat
