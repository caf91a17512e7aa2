r"""Formats that the report of a fit or a compression is saved in, by the suffix of the file.

A format is a function from a report to the text of the file. To add one, write the function in a
module of this package and enter it in `REPORT_FORMATS`; the command line then accepts its suffix::

    def to_csv(report: Report) -> str:
        fit = report if isinstance(report, FitReport) else report.fit
        blocks = () if fit is None else fit.blocks
        return "".join(f"{block.student},{block.error_after}\n" for block in blocks)

    REPORT_FORMATS = {".json": to_json, ".csv": to_csv}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from fskd_onnx.compress_results import CompressReport
from fskd_onnx.errors import FskdError, one_of
from fskd_onnx.reporting.json_format import to_json
from fskd_onnx.results import FitReport
from fskd_onnx.serialization.atomic_files import OutputFiles

Report: TypeAlias = FitReport | CompressReport
"""What a format has to show."""

REPORT_FORMATS: Mapping[str, Callable[[Report], str]] = MappingProxyType({".json": to_json})
"""Functions that give the text of a report, by suffix in lower case."""


def has_report_format(path: Path) -> bool:
    """Return whether the suffix of a file is that of a format, in any case."""
    return path.suffix.lower() in REPORT_FORMATS


def stage_report(files: OutputFiles, report: Report, path: Path) -> None:
    """Write a report in the format of the file's suffix, as one of several output files.

    Args:
        files: those that appear together.
        report: what a fit or a compression found.
        path: the file that is to appear.

    Raises:
        FskdError: no format has this suffix, or the file cannot be written.
    """
    if not has_report_format(path):
        raise FskdError(f"{path}: does not end in {one_of(REPORT_FORMATS)}; rename the report")
    files.write_text(path, REPORT_FORMATS[path.suffix.lower()](report))
