"""The command ``compress``: a smaller student from a teacher alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fskd_onnx.cli.arguments import Teacher, command_line
from fskd_onnx.cli.fit_settings import FitSettings
from fskd_onnx.cli.shared_options import SharedOptions
from fskd_onnx.cli.values import names, parse, ratio
from fskd_onnx.compress_options import CompressOptions, MethodName, read_percent
from fskd_onnx.compress_results import CompressReport
from fskd_onnx.errors import NoImprovementError, OptionError, TargetError, one_of
from fskd_onnx.progress import shown_on
from fskd_onnx.reporting.formats import stage_report
from fskd_onnx.serialization.atomic_files import OutputFiles
from fskd_onnx.serialization.file_names import small_path


def compress(
    shared: SharedOptions,
    settings: FitSettings,
    teacher: Teacher,
    samples: Annotated[
        Path | None,
        typer.Argument(
            metavar="SAMPLES",
            help="Images, .npy, .npz or model-zoo test data: a file or a folder; without them "
            "the student is not fitted.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The student; TEACHER.small.onnx if not given."
        ),
    ] = None,
    reduce: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT=PERCENT",
            help="What to take off: macs, params or latency; macs=50% unless told.",
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="PERCENT",
            help="Instead: as small as possible while agreement with TEACHER falls by no more.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME,...", help=f"{one_of(MethodName)}; some by commas.")
    ] = MethodName.AUTO,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", help="Leave this node whole; * is any text; may be repeated."),
    ] = None,
    round_to: Annotated[
        int, typer.Option(min=1, help="Widths are multiples of this, finer in narrow layers.")
    ] = CompressOptions.round_to,
    max_ratio: Annotated[
        str, typer.Option(metavar="RATIO", help="The most that any one layer may lose.")
    ] = str(CompressOptions.max_ratio),
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Carry out this plan, maybe edited; choose nothing."),
    ] = None,
    save_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the plan to this file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, make nothing.")
    ] = False,
    no_fit: Annotated[bool, typer.Option("--no-fit", help="Leave the student unfitted.")] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Get there in so many steps, each from a fitted student.")
    ] = CompressOptions.rounds,
) -> None:
    """Make a smaller student from TEACHER alone, and fit it on unlabelled samples."""
    output = output or small_path(teacher)
    if rounds > 1 and save_plan is not None:
        raise typer.BadParameter(
            "--save-plan and --rounds exclude each other, since later rounds plan for the student "
            "of the one before; give one of them"
        )
    try:
        options = CompressOptions(
            reduce=reduce,
            max_drop=parse(read_percent, max_drop, "--max-drop"),
            methods=names(method),
            skip=tuple(skip or ()),
            round_to=round_to,
            max_ratio=parse(ratio, max_ratio, "--max-ratio") or 0.0,
            dry_run=dry_run,
            plan=None if plan is None else str(plan),
            no_fit=no_fit,
            rounds=rounds,
            fit=settings.options(shared.run),
        )
        if samples is None:
            options.check_without_samples()
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error
    shared.start(
        {"TEACHER": teacher},
        {"SAMPLES": samples, "the plan": plan, "the groups": settings.groups_file},
        [("-o", output), ("--save-plan", save_plan), *settings.written],
    )

    from fskd_onnx.compression.plan import plan_to_json
    from fskd_onnx.pipeline.compress import compress as make_student
    from fskd_onnx.reporting.compress_terminal import print_compression, print_plan
    from fskd_onnx.reporting.terminal import print_report
    from fskd_onnx.serialization.external_data import weight_files
    from fskd_onnx.serialization.model_files import stage_model

    try:
        with shown_on(shared.progress):
            result = make_student(teacher, samples, options)
    except NoImprovementError as error:
        print_report(error.report, shared.console)
        raise
    except TargetError as error:
        if error.plan is not None:
            print_plan(error.plan, shared.console)
        raise
    report = replace(result.report, command=command_line())
    report = report if result.model is None else _written(report, output)
    with OutputFiles(weight_files(teacher)) as files:
        if result.model is not None:
            stage_model(files, result.model, output, like=teacher)
        if save_plan is not None:
            files.write_text(save_plan, plan_to_json(result.plan))
        for path in settings.reports:
            stage_report(files, report, path)
    print_compression(report, shared.console)


def _written(report: CompressReport, output: Path) -> CompressReport:
    """Return a report that says where the student is."""
    fit = None if report.fit is None else replace(report.fit, output=str(output))
    return replace(report, output=str(output), fit=fit)
