"""Which files of a source are its samples: a file, those of a folder, those that a list names.

A folder without samples of its own is searched through all its folders; what lies in it directly is
taken without those, so that a folder of pictures may have others below it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.printable import shortened
from fskd_onnx.samples.contract import SampleFormat
from fskd_onnx.samples.files import existing, reading, visible_entries

logger = logging.getLogger(__name__)

Formats = Sequence[SampleFormat]

_NAMED = 5  # files
# Suffixes of files that often lie beside samples and say something about them.
_COMPANION_SUFFIXES = frozenset({".txt", ".json", ".csv", ".md"})


@dataclass(frozen=True)
class FoundFiles:
    """The samples of a path.

    Attributes:
        format: their kind.
        items: their files or folders, in the order of the samples.
        folders: of each item, the name of the folder of the source that it lies in; "" for what
            lies in the source itself.
    """

    format: SampleFormat
    items: tuple[Path, ...]
    folders: tuple[str, ...]


def find_files(path: Path, formats: Formats) -> FoundFiles:
    """Return the samples of a file or a folder.

    Args:
        path: exists.
        formats: that there are.

    Raises:
        SamplesError: it holds none, or several kinds of samples.
    """
    found = _in_one(path, formats)
    if found is not None:
        _log_folders_left_out(path, formats)
        return FoundFiles(*found, ("",) * len(found[1]))
    nested = list(_nested(path, formats, {path.resolve()})) if path.is_dir() else []
    if not nested:
        words = one_of(format_.words for format_ in formats)
        if path.is_dir():
            others = _others(path, ())
            found_instead = f" but {_named(others)}" if others else ""
            raise SamplesError(
                f"{path}: holds no samples{found_instead}; put {words} directly into the folder, "
                "or into folders in it"
            )
        raise SamplesError(f"{path}: is not a file of samples; give {words}")
    _check_one_kind(path, [format_ for format_, _ in nested])
    items = tuple(item for _, of_folder in nested for item in of_folder)
    return FoundFiles(nested[0][0], items, tuple(i.relative_to(path).parts[0] for i in items))


def find_listed(path: Path, names: Path, formats: Formats) -> FoundFiles:
    """Return the samples of a folder that a file names, in its order.

    Args:
        path: the folder.
        names: a text file with the path of one sample per line, seen from the folder.
        formats: that there are.

    Raises:
        SamplesError: the file cannot be read, names what is not there or no sample, or one twice.
    """
    if not path.is_dir():
        raise SamplesError(f"{path}: is no folder, of which a list could name some samples")
    with reading(names, "a text file"):
        lines = names.read_text(encoding="utf-8-sig").rstrip().splitlines()
    found: dict[Path, SampleFormat] = {}
    for number, line in enumerate(lines, start=1):
        where, named = f"{names}: line {number}", PurePath(line.strip())
        if not named.parts or named.is_absolute() or ".." in named.parts:
            raise SamplesError(f"{where} has to name a file as seen from {path}, and does not")
        item = path / named
        shown = shortened(str(named))
        try:
            existing(item)
        except SamplesError as error:
            raise SamplesError(
                f"{where} names {shown}, which {path} does not hold; correct it"
            ) from error
        format_ = next((f for f in formats if item in (f.find(item) or ())), None)
        if format_ is None:
            raise SamplesError(f"{where} names {shown}, which is no file of samples; remove it")
        if item in found:
            raise SamplesError(f"{where} names {shown} for the second time; remove it")
        found[item] = format_
    if not found:
        raise SamplesError(f"{names}: names no samples; write the path of one on each line")
    _check_one_kind(path, found.values())
    first, items = next(iter(found.values())), tuple(found)
    parents = [item.relative_to(path).parts[:-1] for item in items]
    return FoundFiles(first, items, tuple(parts[0] if parts else "" for parts in parents))


def subfolders(source: Path) -> list[Path]:
    """Return the folders directly in a folder, each of which holds the samples of a group.

    Raises:
        SamplesError: there are none.
    """
    folders = [entry for entry in visible_entries(source) if entry.is_dir()]
    if not folders:
        raise SamplesError(
            f"{source}: has no subfolders to be the groups of the samples; make one per group"
        )
    _log_others(source, folders)
    return folders


def _in_one(path: Path, formats: Formats) -> tuple[SampleFormat, tuple[Path, ...]] | None:
    """Return the one format that a path itself holds samples of, and these; None without any."""
    found = [(format_, tuple(items)) for format_ in formats if (items := format_.find(path))]
    if not found:
        return None
    # Folders of samples come first: files beside them are no samples.
    folders = [(format_, items) for format_, items in found if items[0].is_dir()]
    _check_one_kind(path, [format_ for format_, _ in folders or found])
    format_, items = (folders or found)[0]
    if path.is_dir() and not folders:
        _log_others(path, items)
    return format_, items


def _nested(
    folder: Path, formats: Formats, seen: set[Path]
) -> Iterator[tuple[SampleFormat, tuple[Path, ...]]]:
    """Yield the samples of all folders in a folder, by name, those of each before its folders'.

    Args:
        folder: where to look.
        formats: that there are.
        seen: folders that were looked into, by their real path: a link may lead back.
    """
    for entry in visible_entries(folder):
        if not entry.is_dir() or entry.resolve() in seen:
            continue
        seen.add(entry.resolve())
        found = _in_one(entry, formats)
        if found is not None:
            yield found
        if found is None or not found[1][0].is_dir():
            yield from _nested(entry, formats, seen)


def _check_one_kind(path: Path, formats: Iterable[SampleFormat]) -> None:
    """Check that samples are of one kind.

    Raises:
        SamplesError: they are not.
    """
    names = {format_.name for format_ in formats}
    if len(names) > 1:
        raise SamplesError(f"{path}: mixes {' and '.join(sorted(names))}; keep one kind of samples")


def _log_folders_left_out(path: Path, formats: Formats) -> None:
    """Name the folders of a folder with samples of its own that hold some too."""
    if not path.is_dir():
        return
    folders = [entry for entry in visible_entries(path) if entry.is_dir()]
    holding = [f.name for f in folders if any(format_.find(f) for format_ in formats)]
    items = {item for format_ in formats for item in format_.find(path) or ()}
    holding = [name for name in holding if path / name not in items]
    if holding:
        logger.warning(
            "%s: has samples of its own, so those of the folders in it are not read: %s",
            path,
            ", ".join(holding),
        )


def _log_others(folder: Path, items: Sequence[Path]) -> None:
    """Name the files of a folder that are not read, but for those that go with samples."""
    others = _others(folder, items)
    if others:
        logger.warning("%s: not read as samples: %s", folder, _named(others))


def _others(folder: Path, items: Sequence[Path]) -> list[str]:
    """Return the names of the files of a folder besides samples and what goes with them."""
    read = set(items)
    return [
        entry.name
        for entry in visible_entries(folder)
        if entry not in read
        and entry.suffix.lower() not in _COMPANION_SUFFIXES
        and not entry.is_dir()
    ]


def _named(names: Sequence[str]) -> str:
    """Return names in one phrase, of many the first ones."""
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
