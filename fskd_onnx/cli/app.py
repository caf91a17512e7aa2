"""Arguments in, exit status out; no logic.

Results go to stdout, everything else to stderr. The modules that do the work are imported by the
commands, because ONNX Runtime takes longer to load than ``--help`` should.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.console import Console

from fskd_onnx.errors import FskdError, NoImprovementError, PreprocessError
from fskd_onnx.options import (
    PRESETS,
    AdapterName,
    ChannelOrder,
    FitOptions,
    Layout,
    Preprocess,
    RunOptions,
    SolverName,
    TargetsName,
)
from fskd_onnx.progress import shown_on
from fskd_onnx.serialization.atomic_files import check_writable, write_text_atomically

_INTERRUPTED = 130  # what shells give a process that SIGINT ended
_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

T = TypeVar("T")

app = typer.Typer(
    help="Make compressed neural networks accurate again, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class _Session:
    """What the options that all commands share come to."""

    run: RunOptions
    console: Console
    progress: Console

    def limited(self, memory: str | None) -> RunOptions:
        """The options with a limit of memory, which only some commands have."""
        return replace(self.run, memory_limit=_parse(_bytes, memory, "--memory-limit"))


def main() -> None:
    """The ``fskd-onnx`` script: runs one command and exits with its status."""
    app(prog_name="fskd-onnx")


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("fskd-onnx")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"fskd-onnx {version}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Make compressed neural networks accurate again, without training."""


def _session(
    providers: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="ONNX Runtime execution providers, in order; auto takes CUDA where it works.",
        ),
    ] = "auto",
    max_samples: Annotated[
        int | None, typer.Option(min=1, help="Draw at most this many of the samples.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random comes from it.")] = 0,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            help="How images are normalised: (pixel * scale - mean) / std.",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="V[,V,V]", help="One value or one per channel; overrides the preset's."
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="V[,V,V]", help="Likewise.")] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Factor on pixels of 0..255; 1/255 unless the preset says otherwise."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(metavar="NCHW|NHWC", help="Read off the model's input unless given."),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Resize images: the shorter side, or both."),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Then keep the centre of this size.")
    ] = None,
    channel_order: Annotated[
        str | None, typer.Option(metavar="RGB|BGR", help="Order of the model's colour channels.")
    ] = None,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Say more; twice for debugging.")
    ] = 0,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Say nothing but errors; no tables.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the full log to this file.")
    ] = None,
) -> _Session:
    """Reads the options that all commands share."""
    _start_logging(verbose, quiet, log_file)
    try:
        pixels = Preprocess(
            preset=preprocess and preprocess.lower(),
            mean=_parse(_numbers, mean, "--mean"),
            std=_parse(_numbers, std, "--std"),
            scale=scale,
            layout=cast("Layout | None", layout and layout.upper()),
            resize=_parse(_size, resize, "--resize"),
            crop=_parse(_size, crop, "--crop"),
            channel_order=cast("ChannelOrder | None", channel_order and channel_order.upper()),
        )
    except PreprocessError as error:
        raise typer.BadParameter(str(error)) from error
    names = tuple(name.strip().lower() for name in providers.split(","))
    if "" in names:
        raise typer.BadParameter("give names, separated by commas", param_hint="--providers")
    run = RunOptions(
        providers=names,
        max_samples=max_samples,
        batch_size=batch_size,
        seed=seed,
        preprocess=pixels,
    )
    # Lines of the log say how far the work is, and would tear a bar apart.
    progress = Console(stderr=True, quiet=quiet or verbose > 0)
    return _Session(run, Console(quiet=quiet, highlight=False), progress)


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command: adds the shared options and turns errors into exit statuses.

    The function's first parameter receives the `_Session`; its other parameters are its own.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        shared = inspect.signature(_session, eval_str=True).parameters

        def run(**arguments: Any) -> None:
            try:
                session = _session(**{key: arguments.pop(key) for key in shared})
                function(session, **arguments)
            except FskdError as error:
                # One line, whatever a library's message inside of it looks like.
                typer.echo(f"error: {' '.join(str(error).split())}", err=True)
                raise typer.Exit(error.exit_status) from error
            except (KeyboardInterrupt, ImportError) as error:
                # A compiled module that is just being loaded turns the one into the other.
                if KeyboardInterrupt not in (type(error), type(error.__cause__)):
                    raise
                typer.echo("error: interrupted", err=True)
                raise typer.Exit(_INTERRUPTED) from error

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return register


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
_Map = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="Pairs saved by match --json, maybe edited or only some: they override matching.",
    ),
]


@_command("fit")
def _fit(
    session: _Session,
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
    memory_limit: _MemoryLimit = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Save a report, .json by suffix; may be repeated."),
    ] = None,
) -> None:
    """Fit STUDENT to TEACHER on unlabelled samples, at no cost at inference."""
    output = output or _default_output(student)
    reports = report or []
    if output.resolve() in (teacher.resolve(), student.resolve()):
        raise typer.BadParameter(f"{output} is an input and is kept as it is", param_hint="-o")
    for path in reports:
        if path.suffix.lower() != ".json":
            raise typer.BadParameter(f"{path} does not end in .json", param_hint="--report")
    for path in (output, *reports):
        check_writable(path)
    options = FitOptions(
        session.limited(memory_limit),
        adapter,
        targets,
        tuple(name.strip().lower() for name in augment.split(",")) if augment else (),
        augment_copies,
        solver,
        None if block_map is None else str(block_map),
    )

    from fskd_onnx.pipeline.fit import fit
    from fskd_onnx.reporting.json_format import to_json
    from fskd_onnx.reporting.terminal import render
    from fskd_onnx.serialization.model_files import save_model

    try:
        with shown_on(session.progress):
            result = fit(teacher, student, samples, options)
    except NoImprovementError as error:
        render(error.report, session.console)
        raise
    outcome = replace(result.report, output=str(output))
    save_model(result.model, output, like=student)
    for path in reports:
        write_text_atomically(path, to_json(outcome))
    render(outcome, session.console)


@_command("match")
def _match(
    session: _Session,
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
    memory_limit: _MemoryLimit = None,
) -> None:
    """Show which blocks and channels of STUDENT belong to which of TEACHER."""
    if json is not None:
        check_writable(json)
    options = session.limited(memory_limit)

    from fskd_onnx.pipeline.match import match
    from fskd_onnx.reporting.json_format import matching_to_json
    from fskd_onnx.reporting.terminal import render_matching

    with shown_on(session.progress):
        matching = match(
            teacher, student, samples, options, None if block_map is None else str(block_map)
        )
    if json is not None:
        write_text_atomically(json, matching_to_json(matching))
    render_matching(matching, session.console)


@_command("compare")
def _compare(
    session: _Session,
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
    from fskd_onnx.reporting.compare import compare
    from fskd_onnx.reporting.terminal import render_comparison

    comparison = compare(teacher, student, samples, session.run, labels)
    render_comparison(comparison, session.console)


def _default_output(student: Path) -> Path:
    stem = student.stem if student.suffix.lower() == ".onnx" else student.name
    return student.with_name(f"{stem}.fskd.onnx")


def _parse(parser: Callable[[str], T], text: str | None, option: str) -> T | None:
    if text is None:
        return None
    try:
        return parser(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not understood", param_hint=option) from error


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _bytes(text: str) -> int:
    """Read a size; MB is a million, MiB is 1024 * 1024."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([kmgt]?)(i?)b)?", text.strip().lower())
    if not found:
        raise ValueError(text)
    number, prefix, binary = found.groups()
    power = "kmgt".index(prefix) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def _size(text: str) -> int | tuple[int, int]:
    if "x" not in text.lower():
        return int(text)
    height, width = text.lower().split("x")
    return int(height), int(width)


def _start_logging(verbose: int, quiet: bool, log_file: Path | None) -> None:
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.ERROR if quiet else _LOG_LEVELS[min(verbose, 2)])
    terminal.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [terminal]
    if log_file is not None:
        check_writable(log_file)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    logging.basicConfig(
        handlers=handlers, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("fskd_onnx").setLevel(terminal.level if log_file is None else logging.DEBUG)


if __name__ == "__main__":
    main()
