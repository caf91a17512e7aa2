"""The program ``fskd-onnx``: its commands, its help and its version."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer

from fskd_onnx.cli.commands import COMMANDS
from fskd_onnx.cli.exit_status import exits_with_status
from fskd_onnx.cli.fit_settings import FitSettings, read_fit_settings
from fskd_onnx.cli.help_page import GroupedCommand
from fskd_onnx.cli.memory_limit import prepare_for_memory_limit
from fskd_onnx.cli.shared_options import SharedOptions, read_shared_options

app = typer.Typer(
    help="Make compressed neural networks accurate again, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run() -> None:
    """Run one command and exit with its status."""
    app(prog_name="fskd-onnx")


def _show_version(wanted: bool) -> None:
    if wanted:
        with exits_with_status():
            for line in _versions():
                typer.echo(line)
        raise typer.Exit


def _versions() -> list[str]:
    """Return the version of the program, and those of what its results depend on."""
    from fskd_onnx.runtime.providers import working_providers
    from fskd_onnx.versions import versions_used

    versions = versions_used()
    own = versions.pop("fskd-onnx")
    *_, runtime = (name for name in versions if name.startswith("onnxruntime"))
    providers = ", ".join(working_providers())
    return [
        f"fskd-onnx {own}",
        f"Python {platform.python_version()}",
        *(
            f"{name} {version}" + (f" with {providers}" if name == runtime else "")
            for name, version in versions.items()
        ),
    ]


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version, those of the runtime and of its providers that work.",
        ),
    ] = False,
) -> None:
    """Make compressed neural networks accurate again, without training."""


# What reads the options of each group, in the order of the help.
_READERS: Mapping[object, Callable[..., Any]] = MappingProxyType(
    {FitSettings: read_fit_settings, SharedOptions: read_shared_options}
)


def _with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of its groups in the place of these.

    Args:
        command: a function of `COMMANDS`: some parameters take a group of options, its others are
            its own arguments and options.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    grouped = {p.annotation: p.name for p in parameters if isinstance(p.annotation, type)}
    readers = {grouped[group]: read for group, read in _READERS.items() if group in grouped}
    own = [parameter for parameter in parameters if parameter.name not in readers]
    options = {
        name: inspect.signature(read, eval_str=True).parameters for name, read in readers.items()
    }

    def with_groups(**arguments: Any) -> None:
        with exits_with_status():
            groups = {
                name: read(**{option: arguments.pop(option) for option in options[name]})
                for name, read in readers.items()
            }
            prepare_for_memory_limit()
            command(**groups, **arguments)

    taken = [option for group in options.values() for option in group.values()]
    with_groups.__doc__ = command.__doc__
    with_groups.__signature__ = inspect.Signature([*own, *taken])  # type: ignore[attr-defined]
    return with_groups


for _name, _command in COMMANDS.items():
    _short = str(_command.__doc__).split(",")[0].rstrip(".")
    app.command(_name, cls=GroupedCommand, short_help=_short)(_with_groups(_command))
