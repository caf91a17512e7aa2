"""HTML reports: one file of valid structure that says what the JSON report says, names escaped."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fskd_onnx.compress_results import CompressReport
from fskd_onnx.reporting.html_format import to_html
from fskd_onnx.reporting.record import Report, record_of
from fskd_onnx.reporting.thumbnails import thumbnail
from fskd_onnx.results import Agreement, BlockReport, BlockStatus, Evidence, SampleError
from tests.reporting.records import COMPARISON, COMPRESSION, KEPT, REPORT, block
from tests.reports import report_of

HOSTILE = "</td></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "input", "br", "img"}
REPORTS = {
    "fit": REPORT,
    "compression": COMPRESSION,
    "bare student": dataclasses.replace(COMPRESSION, fit=None, notes=()),
    "plan": dataclasses.replace(COMPRESSION, fit=None, output=None),
    "comparison": COMPARISON,
}


class Page(HTMLParser):
    """The elements of a page and its text, of which the tables are kept by row."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.rows: list[list[dict[str, str]]] = []
        self.faults: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = [(name, value or "") for name, value in attrs]
        self.tags.append(tag)
        self.attributes += found
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append({**dict(found), "text": ""})
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text += data
        if "td" in self._open:
            self.rows[-1][-1]["text"] += data


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes most of the time, for tests that are about the rest."""
    monkeypatch.setattr("fskd_onnx.reporting.html_format.draw", lambda *_, **__: "<svg></svg>")


def page_of(report: Report) -> Page:
    return Page(to_html(record_of(report)))


def cell(row: list[dict[str, str]], label: str) -> dict[str, str]:
    return next(each for each in row if each["data-label"] == label)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_a_page_is_well_formed_and_asks_for_nothing(report: Report) -> None:
    text = to_html(record_of(report))
    page = Page(text)
    assert page.faults == []
    assert page.tags.count("svg") == 2
    assert page.tags.count("script") == page.tags.count("h1") == 1
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), value
        assert not name.startswith("on"), name
    links = re.findall(r"[a-z]+://[^\s\"'<>)]+", text)
    assert {link for link in links if "//www.w3.org/" not in link} == set()
    assert "@import" not in text


def test_the_same_result_gives_the_same_page() -> None:
    assert to_html(record_of(REPORT)) == to_html(record_of(REPORT))


@pytest.mark.usefixtures("no_pictures")
def test_a_page_says_what_the_json_report_says() -> None:
    called = dataclasses.replace(REPORT, command="fskd-onnx fit 'a b.onnx' --seed 0")
    record = report_of(called)
    page = Page(to_html(record))
    rows = [row for row in page.rows if row]
    assert len(rows) == len(record["blocks"])
    for row, found in zip(rows, record["blocks"], strict=True):
        assert cell(row, "block")["text"] == found["student"] + found["reason"]
        assert cell(row, "status")["text"] == found["status"]
        for label, key in (("before", "error_before"), ("after", "error_after")):
            sort = cell(row, label).get("data-sort")
            assert (None if sort is None else float(sort)) == found[key]
    assert "fskd-onnx fit 'a b.onnx' --seed 0" in page.text
    for name, version in record["versions"].items():
        assert f"{name} {version}" in page.text
    for provider in record["providers"]:
        assert provider in page.text
    assert "0.0123" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_a_page_of_a_compression_has_its_units_and_the_blocks_of_its_fit() -> None:
    page = page_of(COMPRESSION)
    rows = [row for row in page.rows if row]
    units, blocks = rows[: len(COMPRESSION.plan.units)], rows[len(COMPRESSION.plan.units) :]
    assert len(blocks) == len(REPORT.blocks)
    assert cell(units[0], "multiply-adds")["data-sort"] == "11600000"
    assert cell(units[0], "size")["text"] == "24/64kept: 0\N{EN DASH}23"
    assert [cell(row, "size")["text"] for row in units[4:]] == ["gone", "there"]
    assert COMPRESSION.notes[0] in page.text
    assert "needs 49.6% of the multiply-adds of teacher.onnx" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_a_page_of_a_comparison_has_what_it_leaves_out() -> None:
    page = page_of(COMPARISON)
    assert "student.onnx agrees with teacher.onnx on 90.0% of 40 samples." in page.text
    for part in ("95.0%", "87.5%", "boxes", "no rows", "x.npy, sample 3"):
        assert part in page.text


@pytest.mark.usefixtures("no_pictures")
def test_the_worst_samples_are_shown_with_their_pictures(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    Image.new("L", (8, 8)).save(path)
    worst = (SampleError(str(path), 0.31, 2.5), SampleError("x.npy, sample 7", 0.2, 0.5))
    page = page_of(dataclasses.replace(REPORT, worst_samples=worst))
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources == [thumbnail(str(path))]
    assert ("title", str(path)) in page.attributes
    for text in ("b.png2.5 \N{RIGHTWARDS ARROW} 0.31", "x.npy, sample 70.5"):
        assert text in page.text


def test_figures_that_are_not_known_are_dashes() -> None:
    errors = Agreement(relative_mse=0.5, top1_agreement=None)
    page = page_of(
        dataclasses.replace(REPORT, before=errors, after=errors, blocks=(block("odd", **KEPT),))
    )
    assert "The relative error of fused.onnx on held-out samples is 0.5" in page.text
    assert cell(page.rows[-1], "before")["text"] == "\N{EN DASH}"
    empty = dataclasses.replace(COMPARISON, error_quantiles=(0.0, 0.0), accuracy_teacher=None)
    assert page_of(empty).faults == []


@pytest.mark.usefixtures("no_pictures")
def test_channels_are_named_and_those_chosen_anew_told_apart() -> None:
    kept = block("a", channels=(0, 1, 2, 5, 9, 8))
    chosen = block("b", channels=(4, 5), evidence=Evidence.SELECTED)
    everything = block("c", channels=tuple(range(32)))
    page = page_of(dataclasses.replace(REPORT, blocks=(kept, chosen, everything)))
    found = [cell(row, "channels")["text"] for row in page.rows if row]
    assert found == ["6/32kept: 0\N{EN DASH}2, 5, 9, 8", "2/32chosen anew: 4\N{EN DASH}5", "32/32"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", [HOSTILE, "a\u202eb\x1b[1m\n\ud800c"])
def test_names_are_text_whatever_is_in_them(name: str) -> None:
    hostile = dataclasses.replace(
        REPORT,
        student=name,
        output=None,
        teacher=name,
        command=name,
        blocks=(block(name, reason=name), block(name, **{**KEPT, "reason": name})),
        samples_left_out=(name,),
        worst_samples=(SampleError(name, 1.0),),
        outputs_left_out=((name, name),),
        versions={name: name},
        options={name: name},
    )
    plain = dataclasses.replace(hostile, blocks=(block("a"), block("b", **KEPT)))
    compression = dataclasses.replace(COMPRESSION, notes=(name,), teacher=name, fit=hostile)
    for report in (hostile, plain, compression):
        page = page_of(report)
        assert page.faults == []
        assert page.tags.count("script") == 1
        assert "img" not in page.tags
        to_html(record_of(report)).encode("utf-8")
        if name == HOSTILE:
            assert HOSTILE in page.text
        else:
            assert "a\\u202eb\\x1b[1m\\n\\ud800c" in page.text


def test_a_page_of_500_blocks_is_less_than_2_mb() -> None:
    def some(number: int) -> BlockReport:
        name = f"/features/features.{number}/conv/conv.0/conv.0.0/Conv"
        if number % 5 == 0:
            return block(name, **{**KEPT, "reason": "no adapter is better on held-out folds"})
        channels = tuple(range(number % 2, 1024, 2))
        return block(name, channels=channels, teacher_width=1024, error_after=1e-3 * (number + 1))

    blocks = tuple(map(some, range(500)))
    report = dataclasses.replace(REPORT, blocks=blocks)
    unit = COMPRESSION.plan.units[0]
    units = (dataclasses.replace(unit, kept=tuple(range(0, 2048, 2))),) * 500
    plan = dataclasses.replace(COMPRESSION.plan, units=units)
    both: CompressReport = dataclasses.replace(COMPRESSION, plan=plan, fit=report)
    for large in (report, both):
        page = to_html(record_of(large))
        assert page.count("<tr data-kind=") == (500 if large is report else 1000)
        assert len(page.encode()) < 2_000_000
    assert {found.status for found in report.blocks} == {BlockStatus.FITTED, BlockStatus.KEPT}
