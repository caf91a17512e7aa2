"""Whether a call would write to a file that it reads, or twice to the same one.

Files are compared by what they are, not by their names: links, hard links, and names that differ in
case where the file system does not tell them apart, are the same file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fskd_onnx.serialization.external_data import weight_files

Identity = tuple[int | str, ...]
"""Equal for two paths if they lead to the same file, or would if there was one."""


def find_clash(
    models: Mapping[str, Path], read: Mapping[str, Path], written: Sequence[tuple[str, Path]]
) -> tuple[str, str] | None:
    """Return the first output of a call that is one of its inputs, or another output.

    Args:
        models: models that it reads, with the files of their weights; by what to call them.
        read: other files and folders that it reads.
        written: what to call each output, and its path.

    Returns:
        What the output is called, and a sentence about it; None where there is no clash.
    """
    taken: dict[Identity, str] = {}
    for role, path in written:
        own = _identity(path)
        if own in taken:
            return role, f"{path} is the file that {taken[own]} names as well"
        taken[own] = role
    outputs = {_identity(path): (role, path) for role, path in written}
    named = {**models, **read}
    # Only files that are there can be among those that are not named.
    further = (
        _further_files(models, read) if any(map(_is_there, (path for _, path in written))) else ()
    )
    for what, path in (*named.items(), *further):
        if found := outputs.get(_identity(path)):
            role, output = found
            return role, f"{output} is an input ({what}) and is kept as it is; choose another name"
    return None


def _further_files(
    models: Mapping[str, Path], read: Mapping[str, Path]
) -> Iterator[tuple[str, Path]]:
    """Yield the files that inputs consist of besides those that are named."""
    for role, path in models.items():
        yield from ((f"a file of weights of {role}", file) for file in weight_files(path))
    for role, path in read.items():
        for folder, _, names in os.walk(path):
            yield from ((f"one of {role}", Path(folder, name)) for name in names)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def _identity(path: Path) -> Identity:
    try:
        found = path.stat()
    except (OSError, ValueError):
        folder = path.absolute().parent
        name = path.name.casefold() if _ignores_case(folder) else path.name
        return (*_identity(folder), name) if folder != path else (os.fspath(path),)
    return found.st_dev, found.st_ino


def _ignores_case(folder: Path) -> bool:
    """Whether names that differ in case are one file, seen at the name of the folder itself."""
    other = folder.with_name(folder.name.swapcase()) if folder.name else folder
    try:
        return other.name != folder.name and other.samefile(folder)
    except OSError:
        return False
