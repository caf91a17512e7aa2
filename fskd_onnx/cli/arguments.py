"""Arguments and options that several commands have, each described once."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fskd_onnx.cli.values import byte_count, parse
from fskd_onnx.errors import one_of
from fskd_onnx.options import FOLDERS, RunOptions
from fskd_onnx.reporting.formats import (
    REPORT_FORMATS,
    check_report_modules,
    has_report_format,
)

_SUFFIXES = one_of(REPORT_FORMATS)

Teacher = Annotated[
    Path, typer.Argument(metavar="TEACHER", help="The original network, an ONNX file.")
]
Student = Annotated[
    Path, typer.Argument(metavar="STUDENT", help="The compressed network, an ONNX file.")
]
Samples = Annotated[
    Path,
    typer.Argument(
        metavar="SAMPLES", help="Images, .npy, .npz or model-zoo test data: a file or a folder."
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for activations between blocks, such as 200MB or 2GB; more goes to files.",
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|folders",
        help="The group of each sample (.npy, .npz, .txt, .csv): samples of a group are fitted on "
        "or held out together; folders takes subfolders of SAMPLES as groups.",
    ),
]
BlockMap = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="Pairs saved by match --json, maybe edited or only some, or the JSON report of a fit: "
        "they override matching.",
    ),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help=f"Save a report, {_SUFFIXES} by suffix; may be repeated."),
]


def file_of(option: str | None) -> Path | None:
    """Return the file that groups or labels are read from, if there is one."""
    return None if option in (None, FOLDERS) else Path(str(option))


def with_own(run: RunOptions, memory: str | None, groups: str | None) -> RunOptions:
    """Return the options with a limit of memory and groups, which only some commands have."""
    limit = parse(byte_count, memory, "--memory-limit")
    return replace(run, memory_limit=limit, groups=groups)


def checked_reports(reports: Sequence[Path] | None) -> tuple[Path, ...]:
    """Return the files of reports.

    Raises:
        typer.BadParameter: one has no suffix of a format.
        FskdError: what its format needs is not installed.
    """
    for path in reports or ():
        if not has_report_format(path):
            raise typer.BadParameter(f"{path} does not end in {_SUFFIXES}", param_hint="--report")
    for path in reports or ():
        check_report_modules(path)
    return tuple(reports or ())


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell."""
    return shlex.join(("fskd-onnx", *sys.argv[1:]))
