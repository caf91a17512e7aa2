"""HTML reports as a browser shows them: they fit phones and screens, sort and filter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fskd_onnx.reporting.html_format import to_html
from fskd_onnx.reporting.record import Report, record_of
from fskd_onnx.results import Agreement
from tests.reporting.browser import CHROMIUM, MISSING, Answers, ask
from tests.reporting.records import COMPARISON, COMPRESSION, KEPT, LONG, REPORT, block
from tests.reporting.test_html_format import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

PHONE, SCREEN = 360, 1200

# Of a page with all that it folds away; then of its first table, sorted by errors, filtered by
# kind, and filtered by text.
QUESTION = """(window, document) => {
  const root = document.documentElement;
  const text = (all) => [...all].map((each) => each.textContent.trim());
  for (const each of document.querySelectorAll("details")) each.open = true;
  const wide = [...document.querySelectorAll("body *")].filter(
    (each) => !each.closest("svg") && each.getBoundingClientRect().right > root.clientWidth + 0.5);
  const crowded = [...document.querySelectorAll(".tiles .figure > *")].filter((each) =>
    each.getBoundingClientRect().right > each.closest("div").getBoundingClientRect().right + 0.5);
  const found = {
    crowded: text(crowded),
    width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth, wide: text(wide),
    pictures: [...document.querySelectorAll("figure svg")].filter((e) => e.clientWidth).length,
  };
  const section = document.querySelector(".listing");
  if (!section) return found;
  const column = (label) => text([...section.querySelectorAll("tbody tr:not([hidden])")]
    .filter((row) => row.getClientRects().length)
    .map((row) => row.querySelector(`[data-label="${label}"]`)));
  const header = (label) => [...section.querySelectorAll("th button")]
    .find((button) => button.textContent === label);
  const type = (words) => {
    const input = section.querySelector("input");
    input.value = words;
    input.dispatchEvent(new window.Event("input"));
  };
  const last = header("after") ? "after" : "error";
  found.order = column("#");
  header(last).click();
  found.rising = column(last);
  header(last).click();
  found.falling = column(last);
  found.sorted = header(last).closest("th").ariaSort;
  header("#").click();
  found.back = column("#");
  const kinds = ["kept", "whole", "left alone"].map((kind) => `.kinds [data-kind="${kind}"]`);
  section.querySelector(kinds.join()).click();
  found.kind = column("#");
  section.querySelector('.kinds [data-kind=""]').click();
  type("CONV1");
  found.named = column("#");
  found.count = section.querySelector("output").textContent;
  type("nowhere");
  found.none = column("#").length;
  found.empty = section.querySelector(".empty").getClientRects().length;
  return found;
}"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    errors = {"a": 0.5, "b": 2e-5, "c": 30.0}
    blocks = [block(name, error_after=error) for name, error in errors.items()]
    unbroken = block("n" * 300, channels=tuple(range(0, 600, 2)), teacher_width=600)
    hostile = block(HOSTILE, **{**KEPT, "reason": HOSTILE})
    fit = dataclasses.replace(
        REPORT,
        blocks=(*blocks, hostile, unbroken, block(LONG), block("conv1")),
        before=Agreement(0.06071, 1.0),
        after=Agreement(0.0006883, 1.0),
        command=f"fskd-onnx fit {'x' * 200} '{HOSTILE}'",
    )
    reports: dict[str, Report] = {
        "fit": fit,
        "compression": dataclasses.replace(COMPRESSION, fit=fit),
        "bare": dataclasses.replace(COMPRESSION, fit=None),
        "comparison": COMPARISON,
    }
    pages = {name: to_html(record_of(report)) for name, report in reports.items()}
    return ask(pages, (PHONE, SCREEN), QUESTION, tmp_path_factory.mktemp("browser"))


def test_nothing_is_said_on_the_console_and_nothing_asked_for(answers: Answers) -> None:
    assert answers.console == []
    assert [found["requests"] for found in answers.found.values()] == [[]] * 8
    assert set(answers.requested) == {"/", "/fit", "/compression", "/bare", "/comparison"}


def test_pages_fit_their_width(answers: Answers) -> None:
    for (_, width), found in answers.found.items():
        assert width - 20 <= found["width"] <= width
        assert (found["overflow"], found["wide"]) == (0, [])
        assert found["pictures"] == 1
        assert found["crowded"] == []


@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_tables_are_sorted_and_filtered(answers: Answers, width: int) -> None:
    found: dict[str, Any] = answers.found["fit", width]
    dash = "\N{EN DASH}"
    assert found["order"] == found["back"] == list("1234567")
    rising = ["2e-05", "0.0123", "0.0123", "0.0123", "0.5", "30"]
    assert found["rising"] == [*rising, dash]
    assert found["falling"] == [*reversed(rising), dash]
    assert found["sorted"] == "descending"
    assert (found["kind"], found["named"], found["count"]) == (["4"], ["7"], "1 of 7")
    assert (found["none"], found["empty"]) == (0, 1)
    units = answers.found["compression", width]
    assert units["kind"] == ["2", "4", "6"]
    assert units["named"] == ["1", "3"]
    departed = answers.found["comparison", width]
    assert (departed["rising"], departed["kind"]) == (["0.01", "0.4", dash], ["3"])


def test_what_is_looked_for_is_found_where_it_is(tmp_path: Path) -> None:
    page = """<!doctype html><body><div style="width:2000px">wide</div><img src="missing.png">
    <script>console.log("said")</script></body>"""
    answers = ask({"bad": page}, (SCREEN,), QUESTION, tmp_path)
    found = answers.found["bad", SCREEN]
    assert found["overflow"] > 0
    assert found["wide"] == ["wide"]
    assert [Path(url).name for url in found["requests"]] == ["missing.png"]
    assert "/missing.png" in answers.requested
    assert any("said" in line for line in answers.console)
