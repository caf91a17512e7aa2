"""What the value of an option has to be; each check says in one sentence what it is instead."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from fskd_onnx.errors import OptionError, one_of
from fskd_onnx.printable import shortened

T = TypeVar("T")


def check_integer(value: object, name: str, least: int) -> None:
    """Check that a value is an integer of at least some size; True is none.

    Raises:
        OptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise OptionError(f"{name} must be an integer, not {_shown(value)}")
    if value < least:
        raise OptionError(f"{name} must be at least {least}, not {_shown(value)}")


def check_name(value: object, name: str, known: Iterable[str]) -> None:
    """Check that a value is one of some names.

    Raises:
        OptionError: it is not.
    """
    known = tuple(map(str, known))
    if not isinstance(value, str) or value not in known:
        raise OptionError(f"{name} must be {one_of(known)}, not {_shown(value)}")


def check_names(value: object, name: str, example: str, known: Sequence[str] | None = None) -> None:
    """Check that a value is a tuple or a list of names.

    Args:
        value: the value.
        name: of the option.
        example: a name, for the sentence.
        known: names that there are; None where any may be one.

    Raises:
        OptionError: it is not.
    """
    if not isinstance(value, tuple | list) or not all(isinstance(n, str) and n for n in value):
        raise OptionError(
            f"{name} must be a tuple of names such as ('{example}',), not {_shown(value)}"
        )
    for single in value if known is not None else ():
        check_name(single, name, known or ())


def check_type(value: object, name: str, wanted: type[object]) -> None:
    """Check that a value is of a type.

    Raises:
        OptionError: it is not.
    """
    if not isinstance(value, wanted):
        raise OptionError(f"{name} must be {wanted.__name__}(...), not {_shown(value)}")


def check_path(value: object, name: str) -> None:
    """Check that a value is a path as text.

    Raises:
        OptionError: it is not.
    """
    path = value.__fspath__() if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} must be the path of a file, not {_shown(value)}")


def check_groups(value: object, name: str) -> tuple[str | int, ...]:
    """Return groups that are listed, one name or integer per sample.

    Raises:
        OptionError: they are not.
    """
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, tuple | list) or not all(
        isinstance(group, str | int | np.integer) and not isinstance(group, bool)
        for group in listed
    ):
        raise OptionError(
            f"{name} must be a file, 'folders', or a name or an integer for each sample, not "
            f"{_shown(value)}"
        )
    return tuple(group if isinstance(group, str) else int(group) for group in listed)


def is_number(value: object) -> bool:
    """Return whether a value is a finite real number; True is none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    try:
        return not isinstance(value, complex | np.complexfloating) and math.isfinite(value)
    except OverflowError:  # an integer past all floating-point numbers
        return False


def given(value: T | None, name: str, wanted: type[T]) -> T:
    """Return the options of a call, or those that hold where none are given.

    Raises:
        OptionError: they are of another type.
    """
    if value is None:
        return wanted()
    check_type(value, name, wanted)
    return value


def _shown(value: object) -> str:
    """Return a value as a message quotes it, an array by its type alone."""
    if value is None or isinstance(value, str | bytes | int | float | tuple | list):
        return shortened(repr(value))
    article = "an" if type(value).__name__[0].lower() in "aeiou" else "a"
    return f"{article} {type(value).__name__}"
