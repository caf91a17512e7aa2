"""The program ``fskd-onnx``: its commands, its help and its version."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fskd_onnx.cli.commands import COMMANDS
from fskd_onnx.cli.exit_status import exits_with_status
from fskd_onnx.cli.memory_limit import prepare_for_memory_limit
from fskd_onnx.cli.shared_options import read_shared_options

app = typer.Typer(
    help="Make compressed neural networks accurate again, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Run one command and exit with its status."""
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


def _with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that also takes the options that all commands share.

    Args:
        command: a function of `COMMANDS`: its first parameter takes `SharedOptions`, its other
            parameters are its own arguments and options.
    """
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = inspect.signature(read_shared_options, eval_str=True).parameters

    def with_shared(**arguments: Any) -> None:
        with exits_with_status():
            options = read_shared_options(**{name: arguments.pop(name) for name in shared})
            prepare_for_memory_limit()
            command(options, **arguments)

    with_shared.__doc__ = command.__doc__
    with_shared.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    return with_shared


for _name, _command in COMMANDS.items():
    app.command(_name)(_with_shared_options(_command))
