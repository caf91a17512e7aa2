"""The commands, one function each: check the arguments, call the library, write the results.

Results go to stdout, everything else to stderr. The modules that do the work are imported inside
the commands, because ONNX Runtime takes longer to load than ``--help`` should.

To add a command, write a function of which a parameter takes `SharedOptions`, and another one
`FitSettings` where it fits a student; its other parameters are its own arguments and options. Enter
it in `COMMANDS`. Its docstring is its help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from fskd_onnx.cli.arguments import (
    BlockMap,
    Groups,
    MemoryLimit,
    Reports,
    Samples,
    Student,
    Teacher,
    checked_reports,
    command_line,
    file_of,
    with_own,
)
from fskd_onnx.cli.compress_command import compress
from fskd_onnx.cli.fit_settings import FitSettings
from fskd_onnx.cli.shared_options import SharedOptions
from fskd_onnx.errors import NoImprovementError
from fskd_onnx.progress import shown_on
from fskd_onnx.reporting.formats import stage_report
from fskd_onnx.serialization.atomic_files import OutputFiles, write_text_atomically
from fskd_onnx.serialization.file_names import fitted_path


def _fit(
    shared: SharedOptions,
    settings: FitSettings,
    teacher: Teacher,
    student: Student,
    samples: Samples,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The fitted network; STUDENT.fskd.onnx if not given.",
        ),
    ] = None,
    block_map: BlockMap = None,
) -> None:
    """Fit STUDENT to TEACHER on unlabelled samples, at no cost at inference."""
    output = output or fitted_path(student)
    shared.start(
        {"TEACHER": teacher, "STUDENT": student},
        {"SAMPLES": samples, "the map": block_map, "the groups": settings.groups_file},
        [("-o", output), *settings.written],
    )
    options = settings.options(shared.run, block_map)

    from fskd_onnx.pipeline.fit import fit
    from fskd_onnx.reporting.terminal import print_report
    from fskd_onnx.serialization.external_data import weight_files
    from fskd_onnx.serialization.model_files import stage_model

    try:
        with shown_on(shared.progress):
            result = fit(teacher, student, samples, options)
    except NoImprovementError as error:
        print_report(error.report, shared.console)
        raise
    outcome = replace(result.report, output=str(output), command=command_line())
    with OutputFiles([*weight_files(teacher), *weight_files(student)]) as files:
        stage_model(files, result.model, output, like=student)
        for path in settings.reports:
            stage_report(files, outcome, path)
    print_report(outcome, shared.console)


def _match(
    shared: SharedOptions,
    teacher: Teacher,
    student: Student,
    samples: Annotated[
        Path | None,
        typer.Argument(
            metavar="SAMPLES",
            help="Find blocks and channels from activations where the weights do not tell.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the pairs to this file.")
    ] = None,
    block_map: BlockMap = None,
    groups: Groups = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Show which blocks and channels of STUDENT are which of TEACHER."""
    shared.start(
        {"TEACHER": teacher, "STUDENT": student},
        {"SAMPLES": samples, "the map": block_map, "the groups": file_of(groups)},
        [("--json", json)],
    )
    options = with_own(shared.run, memory_limit, groups)

    from fskd_onnx.pipeline.match import match
    from fskd_onnx.reporting.json_format import matching_to_json
    from fskd_onnx.reporting.terminal import print_matching

    with shown_on(shared.progress):
        matching = match(
            teacher, student, samples, options, None if block_map is None else str(block_map)
        )
    if json is not None:
        write_text_atomically(json, matching_to_json(matching))
    print_matching(matching, shared.console)


def _compare(
    shared: SharedOptions,
    teacher: Teacher,
    student: Student,
    samples: Samples,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|folders",
            help="One class per sample (.npy, .npz, .txt, .csv), for accuracies; folders takes the "
            "names of subfolders of SAMPLES as classes.",
        ),
    ] = None,
    blocks: Annotated[
        bool,
        typer.Option("--blocks", help="Compare block outputs too: where does the student depart?"),
    ] = False,
    block_map: BlockMap = None,
    time: Annotated[
        bool, typer.Option("--time", help="Measure how long both take, in turns.")
    ] = False,
    report: Reports = None,
) -> None:
    """Show how far two networks agree on samples."""
    reports = checked_reports(report)
    if block_map is not None and not blocks:
        raise typer.BadParameter("is for --blocks; give that too", param_hint="--map")
    shared.start(
        {"TEACHER": teacher, "STUDENT": student},
        {"SAMPLES": samples, "the labels": file_of(labels), "the map": block_map},
        [("--report", path) for path in reports],
    )

    from fskd_onnx.pipeline.compare import compare
    from fskd_onnx.reporting.compare_terminal import print_comparison

    with shown_on(shared.progress):
        found = compare(
            teacher,
            student,
            samples,
            shared.run,
            labels,
            blocks=blocks,
            block_map=None if block_map is None else str(block_map),
            time=time,
        )
    comparison = replace(found, command=command_line())
    with OutputFiles() as files:
        for path in reports:
            stage_report(files, comparison, path)
    print_comparison(comparison, shared.console)


COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"fit": _fit, "compress": compress, "match": _match, "compare": _compare}
)
"""The commands by name, in the order of the help."""
