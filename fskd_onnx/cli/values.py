"""Text of an option -> its value.

Each reader takes the text and raises ``ValueError`` where it is not understood; `parse` turns that
into wrong usage that names the option.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection
from typing import TypeVar

import typer

from fskd_onnx.compress_options import read_percent

T = TypeVar("T")


def parse(read: Callable[[str], T], text: str | None, option: str) -> T | None:
    """Return what an option says, None where it is not given.

    Args:
        read: a reader of this module.
        text: what the user wrote; None where the option is not given.
        option: its name.

    Raises:
        typer.BadParameter: the reader does not understand the text.
    """
    if text is None:
        return None
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not understood", param_hint=option) from error


def choice(text: str | None, choices: Collection[str], option: str) -> str | None:
    """Return which of some choices a text names, in any case; None where it is not given.

    Args:
        text: what the user wrote.
        choices: what may be written.
        option: its name.

    Raises:
        typer.BadParameter: it names none of them.
    """
    if text is None:
        return None
    found = {name.lower(): name for name in choices}
    if text.lower() in found:
        return found[text.lower()]
    near = difflib.get_close_matches(text.lower(), found, n=1)
    hint = f"; did you mean {found[near[0]]}?" if near else ""
    raise typer.BadParameter(f"{text!r} is none of {', '.join(choices)}{hint}", param_hint=option)


def names(text: str) -> tuple[str, ...]:
    """Return names separated by commas, in lower case; an empty name stays one."""
    return tuple(name.strip().lower() for name in text.split(","))


def numbers(text: str) -> tuple[float, ...]:
    """Return numbers separated by commas.

    Raises:
        ValueError: one of them is not a number.
    """
    return tuple(map(float, text.split(",")))


def ratio(text: str) -> float:
    """Return a fraction, as in ``0.8``, or as in ``80%``.

    Raises:
        ValueError: it is neither.
    """
    return read_percent(text) if "%" in text else float(text)


def image_size(text: str) -> int | tuple[int, int]:
    """Return a side, as in ``256``, or (height, width), as in ``224x192``.

    Raises:
        ValueError: it is neither.
    """
    if "x" not in text.lower():
        return int(text)
    height, width = text.lower().split("x")
    return int(height), int(width)


def byte_count(text: str) -> int:
    """Return a size of memory in bytes; MB is a million, MiB is 1024 * 1024.

    Raises:
        ValueError: it is not a number with a unit or without.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(?:([kmgt]?)(i?)b)?", text.strip().lower())
    if not found:
        raise ValueError(text)
    number, prefix, binary = found.groups()
    power = "kmgt".index(prefix) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)
