r"""Formats that reports are saved in, by the suffix of the file.

A format is a function from the record of a result (``record.py``) to the text of the file, and the
libraries that it needs besides those that are always there. To add one, write the function in a
module of this package and enter it in `REPORT_FORMATS`; the command line then accepts its suffix::

    def to_csv(record: Record) -> str:
        return "".join(f"{b['student']},{b['error_after']}\n" for b in record.get("blocks", ()))

    REPORT_FORMATS = {".json": ReportFormat(to_json), ".csv": ReportFormat(to_csv)}
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fskd_onnx.errors import FskdError, one_of
from fskd_onnx.reporting.html_format import to_html
from fskd_onnx.reporting.json_format import to_json
from fskd_onnx.reporting.record import Record, Report, record_of
from fskd_onnx.serialization.atomic_files import OutputFiles


@dataclass(frozen=True)
class ReportFormat:
    """A format of reports.

    Attributes:
        text: gives the text of a file for a record.
        modules: what it imports that may be missing, each of the extra ``report``.
    """

    text: Callable[[Record], str]
    modules: tuple[str, ...] = ()


REPORT_FORMATS: Mapping[str, ReportFormat] = MappingProxyType(
    {
        ".json": ReportFormat(to_json),
        ".html": ReportFormat(to_html, modules=("jinja2", "matplotlib")),
    }
)
"""The formats, by suffix in lower case."""


def has_report_format(path: Path) -> bool:
    """Return whether the suffix of a file is that of a format, in any case."""
    return path.suffix.lower() in REPORT_FORMATS


def check_report_modules(path: Path) -> None:
    """Check that the libraries are there that a report needs, before minutes of work are spent.

    Args:
        path: the file that is to appear; its suffix is that of a format.

    Raises:
        FskdError: one is not installed.
    """
    wanted = REPORT_FORMATS[path.suffix.lower()].modules
    missing = [module for module in wanted if importlib.util.find_spec(module) is None]
    if missing:
        raise FskdError(
            f"{path}: a report in {path.suffix.lower()} needs {' and '.join(missing)}, not "
            f"installed here; run 'python -m pip install {' '.join(missing)}' (the extra 'report') "
            "or name a .json file"
        )


def stage_report(files: OutputFiles, report: Report, path: Path) -> None:
    """Write a report in the format of the file's suffix, as one of several output files.

    Args:
        files: those that appear together.
        report: what a fit, a compression or a comparison found.
        path: the file that is to appear.

    Raises:
        FskdError: no format has this suffix, or the file cannot be written.
    """
    if not has_report_format(path):
        raise FskdError(f"{path}: does not end in {one_of(REPORT_FORMATS)}; rename the report")
    files.write_text(path, REPORT_FORMATS[path.suffix.lower()].text(record_of(report)))
