"""The commands, one function each: check the arguments, call the library, write the results.

Results go to stdout, everything else to stderr. The modules that do the work are imported inside
the commands, because ONNX Runtime takes longer to load than ``--help`` should.

To add a command, write a function whose first parameter takes `SharedOptions` and whose other
parameters are its own arguments and options, and enter it in `COMMANDS`. Its docstring is its help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from fskd_onnx.cli.shared_options import SharedOptions
from fskd_onnx.cli.values import byte_count, names, parse
from fskd_onnx.errors import NoImprovementError, one_of
from fskd_onnx.options import (
    FOLDERS,
    MOVE_NAMES,
    AdapterName,
    FitOptions,
    RunOptions,
    SolverName,
    TargetsName,
)
from fskd_onnx.progress import shown_on
from fskd_onnx.reporting.formats import REPORT_FORMATS, has_report_format, stage_report
from fskd_onnx.serialization.atomic_files import OutputFiles, write_text_atomically
from fskd_onnx.serialization.file_names import fitted_path

_REPORT_SUFFIXES = one_of(REPORT_FORMATS)

_Teacher = Annotated[
    Path, typer.Argument(metavar="TEACHER", help="The original network, an ONNX file.")
]
_Student = Annotated[
    Path, typer.Argument(metavar="STUDENT", help="The compressed network, an ONNX file.")
]
_Samples = Annotated[
    Path,
    typer.Argument(
        metavar="SAMPLES", help="Images, .npy, .npz or model-zoo test data: a file or a folder."
    ),
]
_MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for activations between blocks, such as 200MB or 2GB; more goes to files.",
    ),
]
_Groups = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|folders",
        help="The group of each sample (.npy, .npz, .txt, .csv): samples of a group are fitted on "
        "or held out together; folders takes subfolders of SAMPLES as groups.",
    ),
]
_Map = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="Pairs saved by match --json, maybe edited or only some: they override matching.",
    ),
]


def _fit(
    shared: SharedOptions,
    teacher: _Teacher,
    student: _Student,
    samples: _Samples,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The fitted network; STUDENT.fskd.onnx if not given.",
        ),
    ] = None,
    adapter: Annotated[
        AdapterName, typer.Option(help="Family of adapters; auto decides per block.")
    ] = AdapterName.AUTO,
    targets: Annotated[
        TargetsName,
        typer.Option(help="Teacher channels that a narrower block aims at; auto decides."),
    ] = TargetsName.AUTO,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="Add moved copies of images: flip, shift, crop, rotate."
        ),
    ] = None,
    augment_copies: Annotated[
        int, typer.Option(min=1, help="Moved copies of each image.")
    ] = FitOptions.augment_copies,
    solver: Annotated[
        SolverName, typer.Option(help="What solves the small systems; torch uses the GPU.")
    ] = SolverName.NUMPY,
    block_map: _Map = None,
    groups: _Groups = None,
    memory_limit: _MemoryLimit = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help=f"Save a report, {_REPORT_SUFFIXES} by suffix; may be repeated."
        ),
    ] = None,
) -> None:
    """Fit STUDENT to TEACHER on unlabelled samples, at no cost at inference."""
    output = output or fitted_path(student)
    reports = report or []
    for path in reports:
        if not has_report_format(path):
            raise typer.BadParameter(
                f"{path} does not end in {_REPORT_SUFFIXES}", param_hint="--report"
            )
    shared.start(
        {"TEACHER": teacher, "STUDENT": student},
        {"SAMPLES": samples, "the map": block_map, "the groups": _file_of(groups)},
        [("-o", output), *(("--report", path) for path in reports)],
    )
    moves = names(augment) if augment else ()
    for move in moves:
        if move not in MOVE_NAMES:
            raise typer.BadParameter(
                f"{move!r} is not one of {', '.join(MOVE_NAMES)}", param_hint="--augment"
            )
    options = FitOptions(
        run=_with_own(shared.run, memory_limit, groups),
        adapter=adapter,
        targets=targets,
        augment=moves,
        augment_copies=augment_copies,
        solver=solver,
        map=None if block_map is None else str(block_map),
    )

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
    outcome = replace(result.report, output=str(output))
    with OutputFiles([*weight_files(teacher), *weight_files(student)]) as files:
        stage_model(files, result.model, output, like=student)
        for path in reports:
            stage_report(files, outcome, path)
    print_report(outcome, shared.console)


def _match(
    shared: SharedOptions,
    teacher: _Teacher,
    student: _Student,
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
    block_map: _Map = None,
    groups: _Groups = None,
    memory_limit: _MemoryLimit = None,
) -> None:
    """Show which blocks and channels of STUDENT belong to which of TEACHER."""
    shared.start(
        {"TEACHER": teacher, "STUDENT": student},
        {"SAMPLES": samples, "the map": block_map, "the groups": _file_of(groups)},
        [("--json", json)],
    )
    options = _with_own(shared.run, memory_limit, groups)

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
    teacher: _Teacher,
    student: _Student,
    samples: _Samples,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="One class per sample (.npy, .npz, .txt, .csv), for accuracies."
        ),
    ] = None,
) -> None:
    """Show how far two networks agree on samples."""
    shared.start(
        {"TEACHER": teacher, "STUDENT": student}, {"SAMPLES": samples, "the labels": labels}, []
    )

    from fskd_onnx.reporting.compare import compare
    from fskd_onnx.reporting.terminal import print_comparison

    comparison = compare(teacher, student, samples, shared.run, labels)
    print_comparison(comparison, shared.console)


COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"fit": _fit, "match": _match, "compare": _compare}
)
"""The commands by name, in the order of the help."""


def _file_of(groups: str | None) -> Path | None:
    """Return the file that groups are read from, if there is one."""
    return None if groups in (None, FOLDERS) else Path(str(groups))


def _with_own(run: RunOptions, memory: str | None, groups: str | None) -> RunOptions:
    """Return the options with a limit of memory and groups, which only some commands have."""
    limit = parse(byte_count, memory, "--memory-limit")
    return replace(run, memory_limit=limit, groups=groups)
