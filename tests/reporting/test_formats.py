"""Reports go to files in the format of their suffix."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.reporting.formats import (
    REPORT_FORMATS,
    check_report_modules,
    has_report_format,
    stage_report,
)
from fskd_onnx.reporting.record import Report, record_of
from fskd_onnx.serialization.atomic_files import OutputFiles
from tests.reporting.records import COMPARISON, COMPRESSION, REPORT

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("report", [REPORT, COMPRESSION, COMPARISON])
def test_a_report_is_written_in_the_format_of_its_suffix(report: Report, tmp_path: Path) -> None:
    for name in ("a.json", "b.JSON", "c.html"):
        path = tmp_path / name
        assert has_report_format(path)
        with OutputFiles() as files:
            stage_report(files, report, path)
        text = REPORT_FORMATS[path.suffix.lower()].text(record_of(report))
        assert path.read_text(encoding="utf-8") == text


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    assert not has_report_format(Path("json"))
    with OutputFiles() as files, pytest.raises(FskdError, match=r"a\.txt: does not end in \.json"):
        stage_report(files, REPORT, tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_libraries_that_are_missing_are_named_with_their_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    check_report_modules(Path("r.json"))
    with pytest.raises(FskdError) as caught:
        check_report_modules(Path("r.HTML"))
    assert str(caught.value) == (
        "r.HTML: a report in .html needs matplotlib, not installed here; run 'python -m pip "
        "install matplotlib' (the extra 'report') or name a .json file"
    )


def test_the_modules_of_formats_are_those_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {re.split(r"[^\w-]", line)[0] for line in project["optional-dependencies"]["report"]}
    assert {module for known in REPORT_FORMATS.values() for module in known.modules} == extra
