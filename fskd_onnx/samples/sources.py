"""Samples from wherever they are: a file, a folder, arrays in memory or a data reader.

`FILE_FORMATS` and `MEMORY_FORMATS` are all that samples are read from;
``fskd_onnx.samples.contract`` says how to add one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.options import FOLDERS, Preprocess
from fskd_onnx.samples.array_files import NPY_FILES, NPZ_FILES
from fskd_onnx.samples.contract import SampleFormat, SourcePart
from fskd_onnx.samples.files import existing, visible_entries
from fskd_onnx.samples.groups import load_groups
from fskd_onnx.samples.image_files import ImageFiles
from fskd_onnx.samples.memory import ArraysInMemory, DataReader, DataReaders
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.zoo_data_sets import ZooDataSets
from fskd_onnx.serialization.interface import InputSpec

logger = logging.getLogger(__name__)

FILE_FORMATS: tuple[SampleFormat, ...] = (ImageFiles(), NPY_FILES, NPZ_FILES, ZooDataSets())
"""Formats of files and folders, in the order in which error messages list them."""

MEMORY_FORMATS: tuple[SampleFormat, ...] = (ArraysInMemory(), DataReaders())
"""Formats of objects; the first that an object is a source of reads it."""

SampleSource: TypeAlias = (
    str | os.PathLike[str] | NDArray[Any] | Mapping[str, NDArray[Any]] | DataReader
)
"""What `load_samples` reads."""

# Suffixes of files that often lie beside samples and say something about them.
_COMPANION_SUFFIXES = frozenset({".txt", ".json", ".csv", ".md"})


def load_samples(
    source: SampleSource,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    groups: str | Sequence[str | int] | None = None,
) -> Samples:
    """Open samples for a model.

    Arrays have the samples along their first axis. uint8 arrays for a floating-point image input
    are pixels (N x H x W, or with 1 or 3 channels before or after H x W) and are treated as images
    are; other arrays are ready tensors.

    Args:
        source: an image; an ``.npy`` or ``.npz`` file; a folder of one of these kinds, read in the
            order of names; ONNX model-zoo test data (a ``test_data_set_*`` folder or one that
            holds them); an array; arrays by input name; or an object with ``get_next()``.
        inputs: the model's inputs.
        preprocess: how images become tensors.
        max_samples: draw at most this many, without replacement, keeping their order; None for all.
        seed: decides the draw.
        groups: which samples belong together, as `load_groups` takes them; or `FOLDERS`: ``source``
            is a folder whose subfolders hold the samples, and each subfolder is a group.

    Returns:
        The samples.

    Raises:
        SamplesError: the source is missing, empty, broken or not what the model takes.
        PreprocessError: there are images, and they cannot become tensors as asked for.
    """
    preprocess = preprocess or Preprocess()
    if isinstance(groups, str) and groups == FOLDERS:
        folders = [_open(folder, tuple(inputs), preprocess) for folder in _subfolders(source)]
        parts: Sequence[SourcePart] = [part for parts in folders for part in parts]
        sizes = [sum(part.count for part in parts) for parts in folders]
        numbers: NDArray[np.intp] | None = np.repeat(np.arange(len(folders)), sizes)
    else:
        parts = _open(source, tuple(inputs), preprocess)
        count = sum(part.count for part in parts)
        numbers = None if groups is None else load_groups(groups, count)
    if not any(part.count for part in parts):
        raise SamplesError(f"{samples_name(source)}: holds no samples; give at least one")
    return Samples(parts, inputs, max_samples, seed, numbers, samples_name(source))


def samples_name(source: SampleSource) -> str:
    """Return what to call a source of samples in messages."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the source of samples"


def _open(
    source: SampleSource, inputs: tuple[InputSpec, ...], preprocess: Preprocess
) -> Sequence[SourcePart]:
    """Return the parts of any source."""
    if isinstance(source, (str, os.PathLike)):
        format_, items = _find_in_files(existing(source))
        return format_.open(items, inputs, preprocess)
    for format_ in MEMORY_FORMATS:
        found = format_.find(source)
        if found is not None:
            return format_.open(found, inputs, preprocess)
    words = one_of(["a path", *(format_.words for format_ in MEMORY_FORMATS)])
    raise SamplesError(f"samples cannot be read from a {type(source).__name__}; give {words}")


def _subfolders(source: SampleSource) -> list[Path]:
    """Return the folders directly in a folder, each of which holds the samples of a group."""
    if not isinstance(source, (str, os.PathLike)) or not existing(source).is_dir():
        raise SamplesError(
            "groups are to be the subfolders of the samples, and these are no folder; give a "
            "folder that holds a folder per group, or a file of groups"
        )
    entries = visible_entries(Path(source))
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        raise SamplesError(
            f"{source}: has no subfolders to be the groups of the samples; make one per group"
        )
    _log_others(Path(source), folders)
    return folders


def _find_in_files(path: Path) -> tuple[SampleFormat, Sequence[Path]]:
    """Return the one format that a path holds samples of, and its files or folders."""
    found = [(format_, items) for format_ in FILE_FORMATS if (items := format_.find(path))]
    if not found:
        words = one_of(format_.words for format_ in FILE_FORMATS)
        if path.is_dir():
            raise SamplesError(f"{path}: holds no samples; put {words} directly into the folder")
        raise SamplesError(f"{path}: is not a file of samples; give {words}")
    # Folders of samples come first: files beside them are no samples.
    folders = [(format_, items) for format_, items in found if items[0].is_dir()]
    if len(folders or found) > 1:
        names = " and ".join(sorted(format_.name for format_, _ in folders or found))
        raise SamplesError(f"{path}: mixes {names}; keep one kind of samples")
    format_, items = (folders or found)[0]
    if path.is_dir() and not folders:
        _log_others(path, items)
    return format_, items


def _log_others(folder: Path, items: Sequence[Path]) -> None:
    """Name the files of a folder that are not read, but for those that go with samples."""
    read = set(items)
    others = [
        entry.name
        for entry in visible_entries(folder)
        if entry not in read
        and entry.suffix.lower() not in _COMPANION_SUFFIXES
        and not entry.is_dir()
    ]
    if others:
        logger.warning("%s: not read as samples: %s", folder, ", ".join(others))
