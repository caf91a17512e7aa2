"""Reports go to files in the format of their suffix."""

from __future__ import annotations

from pathlib import Path

import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.reporting.formats import has_report_format, stage_report
from fskd_onnx.reporting.json_format import to_json
from fskd_onnx.serialization.atomic_files import OutputFiles
from tests.reporting.records import REPORT


def test_a_report_is_written_in_the_format_of_its_suffix(tmp_path: Path) -> None:
    for name in ("a.json", "b.JSON"):
        assert has_report_format(tmp_path / name)
        with OutputFiles() as files:
            stage_report(files, REPORT, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == to_json(REPORT)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    assert not has_report_format(Path("json"))
    with OutputFiles() as files, pytest.raises(FskdError, match=r"a\.txt: does not end in \.json"):
        stage_report(files, REPORT, tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
