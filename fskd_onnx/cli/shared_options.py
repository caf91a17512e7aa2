"""The options that all commands share, and what they come to."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from fskd_onnx.cli.values import image_size, names, numbers, parse
from fskd_onnx.errors import PreprocessError
from fskd_onnx.options import (
    AUTO_PROVIDERS,
    PRESETS,
    ChannelOrder,
    Layout,
    Preprocess,
    RunOptions,
)
from fskd_onnx.serialization.atomic_files import check_writable

_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the number of -v


@dataclass(frozen=True)
class SharedOptions:
    """What the shared options come to.

    Attributes:
        run: how samples are read and models are run.
        console: where results go: stdout, or nowhere with ``-q``.
        progress: where progress is shown: stderr, or nowhere.
    """

    run: RunOptions
    console: Console
    progress: Console


def read_shared_options(
    providers: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="ONNX Runtime execution providers, in order; auto takes CUDA where it works.",
        ),
    ] = ",".join(AUTO_PROVIDERS),
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
) -> SharedOptions:
    """Read the shared options and start the log.

    Raises:
        typer.BadParameter: a value is impossible.
        FskdError: the log cannot be written.
    """
    _start_logging(verbose, quiet, log_file)
    try:
        pixels = Preprocess(
            preset=preprocess and preprocess.lower(),
            mean=parse(numbers, mean, "--mean"),
            std=parse(numbers, std, "--std"),
            scale=scale,
            layout=cast("Layout | None", layout and layout.upper()),
            resize=parse(image_size, resize, "--resize"),
            crop=parse(image_size, crop, "--crop"),
            channel_order=cast("ChannelOrder | None", channel_order and channel_order.upper()),
        )
    except PreprocessError as error:
        raise typer.BadParameter(str(error)) from error
    run = RunOptions(
        providers=names(providers),
        max_samples=max_samples,
        batch_size=batch_size,
        seed=seed,
        preprocess=pixels,
    )
    if "" in run.providers:
        raise typer.BadParameter("give names, separated by commas", param_hint="--providers")
    # Lines of the log say how far the work is, and would tear a bar apart.
    progress = Console(stderr=True, quiet=quiet or verbose > 0)
    return SharedOptions(run, Console(quiet=quiet, highlight=False), progress)


def _start_logging(verbose: int, quiet: bool, log_file: Path | None) -> None:
    """Send the log to stderr, and all of it to a file where one is named."""
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
