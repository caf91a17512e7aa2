"""The options that all commands share, and what they come to."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO, cast, get_args

import typer
from rich.console import Console

from fskd_onnx.cli.values import choice, image_size, names, numbers, parse
from fskd_onnx.errors import FskdError, PreprocessError
from fskd_onnx.options import (
    AUTO_PROVIDERS,
    PRESETS,
    ChannelOrder,
    Layout,
    Preprocess,
    RunOptions,
)
from fskd_onnx.printable import LineFormatter, MessageFormatter
from fskd_onnx.serialization.atomic_files import check_writable

logger = logging.getLogger(__name__)

_UNLIMITED = 2**20
_LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_NEVER = logging.CRITICAL + 1
_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the number of -v


class _LogFile(logging.FileHandler):
    """The file of the log, which ends where it cannot be written; the work goes on."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            FskdError: it cannot be opened.
        """
        try:
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise FskdError(
                f"{path}: cannot be written ({error.strerror}); choose another file for the log"
            ) from error
        self._path = path
        self.setFormatter(LineFormatter(_LOG_LINE))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's own name
        """Say once that the log ends here."""
        logging.getLogger().removeHandler(self)
        self.setLevel(_NEVER)
        reason = sys.exc_info()[1]
        logger.warning("%s: the log cannot be written on (%s)", self._path, reason)

    def close(self) -> None:
        """Close the file; what could not be written is lost."""
        with suppress(OSError):
            super().close()


@dataclass(frozen=True)
class LogSettings:
    """What is said on the way, and where.

    Attributes:
        verbose: how often ``-v`` was given.
        quiet: whether only errors are said.
        file: to which the full log is appended.
    """

    verbose: int
    quiet: bool
    file: Path | None

    def start(self) -> None:
        """Send the log to stderr, and all of it to the file where one is named."""
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.ERROR if self.quiet else _LOG_LEVELS[min(self.verbose, 2)])
        terminal.setFormatter(MessageFormatter())
        # Warnings of libraries are about numbers inside of them: they are for the file.
        logging.captureWarnings(True)
        terminal.addFilter(lambda record: record.name != "py.warnings")
        handlers: list[logging.Handler] = [terminal]
        if self.file is not None:
            handlers.append(_LogFile(self.file))
        logging.basicConfig(handlers=handlers, force=True)
        level = terminal.level if self.file is None else logging.DEBUG
        logging.getLogger("fskd_onnx").setLevel(level)
        warnings.showwarning = _log_warning


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning of a library: it is about code, and says nothing to a user."""
    logger.debug("%s in %s:%d: %s", category.__name__, filename, lineno, message)


@dataclass(frozen=True)
class SharedOptions:
    """What the shared options come to.

    Attributes:
        run: how samples are read and models are run.
        console: where results go: stdout, or nowhere with ``-q``.
        progress: where progress is shown: stderr, or nowhere.
        log: what is said on the way, and where.
    """

    run: RunOptions
    console: Console
    progress: Console
    log: LogSettings

    def start(
        self,
        models: Mapping[str, Path],
        read: Mapping[str, Path | None],
        written: Sequence[tuple[str, Path | None]],
    ) -> None:
        """Check the files of a command and start its log; nothing else is opened before.

        Args:
            models: models that it reads, by what to call them.
            read: other files and folders that it reads; None where an option is not given.
            written: its outputs, each with the option that names it.

        Raises:
            typer.BadParameter: an output is an input, or another output.
            FskdError: an output cannot be written.
        """
        from fskd_onnx.serialization.clashes import find_clash

        outputs = [
            (role, path)
            for role, path in (*written, ("--log-file", self.log.file))
            if path is not None
        ]
        listed = None if self.run.samples_list is None else Path(self.run.samples_list)
        read = {**read, "the list of samples": listed}
        inputs = {role: path for role, path in read.items() if path is not None}
        clash = find_clash(models, inputs, outputs)
        if clash is not None:
            raise typer.BadParameter(clash[1], param_hint=clash[0])
        for _, path in outputs:
            check_writable(path)
        self.log.start()


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
    samples_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Read only these files of the folder SAMPLES, one per line."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random comes from it.")] = 0,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            autocompletion=lambda: list(PRESETS),
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
        typer.Option(
            metavar="NCHW|NHWC",
            autocompletion=lambda: list(get_args(Layout)),
            help="Read off the model's input unless given.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Resize images: the shorter side, or both."),
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Then keep the centre of this size.")
    ] = None,
    channel_order: Annotated[
        str | None,
        typer.Option(
            metavar="RGB|BGR",
            autocompletion=lambda: list(get_args(ChannelOrder)),
            help="Order of the model's colour channels.",
        ),
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
    """Read the shared options.

    Raises:
        typer.BadParameter: a value is impossible.
    """
    try:
        pixels = Preprocess(
            preset=choice(preprocess, PRESETS, "--preprocess"),
            mean=parse(numbers, mean, "--mean"),
            std=parse(numbers, std, "--std"),
            scale=scale,
            layout=cast("Layout | None", choice(layout, get_args(Layout), "--layout")),
            resize=parse(image_size, resize, "--resize"),
            crop=parse(image_size, crop, "--crop"),
            channel_order=cast(
                "ChannelOrder | None",
                choice(channel_order, get_args(ChannelOrder), "--channel-order"),
            ),
        )
    except PreprocessError as error:
        raise typer.BadParameter(str(error)) from error
    chosen = names(providers)
    if "" in chosen:
        raise typer.BadParameter("give names, separated by commas", param_hint="--providers")
    run = RunOptions(
        providers=chosen,
        max_samples=max_samples,
        batch_size=batch_size,
        seed=seed,
        preprocess=pixels,
        samples_list=None if samples_list is None else str(samples_list),
    )
    # Lines of the log say how far the work is, and would tear a bar apart.
    progress = Console(stderr=True, quiet=quiet or verbose > 0)
    # Whoever reads a pipe counts on one row a line.
    width = None if sys.stdout.isatty() else _UNLIMITED
    console = Console(quiet=quiet, highlight=False, width=width)
    return SharedOptions(run, console, progress, LogSettings(verbose, quiet, log_file))
