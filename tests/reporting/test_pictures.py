"""Pictures take the colours of the page, keep their letters, and have no name in common."""

from __future__ import annotations

import re

import pytest

from fskd_onnx.reporting.pictures import Bars, Curve, Pairs, Panel, draw

PAIRS = Pairs([1.0, None, 0.5], [0.1, 0.2, 1e-9], "block", "error")
BARS = Bars({"multiply-adds": 0.5, "time": 1.25}, {"time": 0.8})


@pytest.mark.parametrize("panel", [PAIRS, BARS, Curve((0.0, 0.1, 2.0))])
def test_colours_are_those_of_the_page(panel: Panel) -> None:
    text = draw([panel], narrow=True)
    assert text.startswith("<svg")
    assert set(re.findall(r"#[0-9a-f]{6}\b", text)) <= {"#000000"}  # of clipping paths
    assert "var(--after)" in text
    assert "<text" in text


def test_what_is_drawn_for_two_widths_has_other_names() -> None:
    texts = [draw([BARS, PAIRS], narrow=narrow) for narrow in (False, True)]
    names = [set(re.findall(r'(?<= id=")[^"]+', text)) for text in texts]
    assert names[0].isdisjoint(names[1])
    for text, own in zip(texts, names, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= own


def test_errors_that_are_rounding_do_not_take_the_axis() -> None:
    assert PAIRS.floor == pytest.approx(1e-5)
    assert Pairs([1.0], [0.1], "block", "error").floor is None
    for nothing in (
        Pairs([], [], "", ""),
        Pairs([None], [None], "", ""),
        Pairs([0.0], [0.0], "", ""),
    ):
        assert nothing.floor is None
        assert draw([nothing], narrow=False).startswith("<svg")


def test_a_share_beyond_the_whole_is_written_beside_its_bar() -> None:
    text = draw([BARS], narrow=False)
    assert "125.0%" in text
    assert "50.0%" in text
    assert "before the fit" in text
