"""Samples from wherever they are: a file, a folder, arrays in memory or a data reader.

`FILE_FORMATS` and `MEMORY_FORMATS` are all that samples are read from;
``fskd_onnx.samples.contract`` says how to add one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.options import FOLDERS, Preprocess
from fskd_onnx.samples.array_files import NPY_FILES, NPZ_FILES
from fskd_onnx.samples.arrays import ArrayPart
from fskd_onnx.samples.contract import SampleFormat, SourcePart
from fskd_onnx.samples.files import existing
from fskd_onnx.samples.finding import find_files, find_listed, subfolders
from fskd_onnx.samples.float_images import tell_of_values
from fskd_onnx.samples.groups import load_groups
from fskd_onnx.samples.image_files import ImageFiles
from fskd_onnx.samples.memory import ArraysInMemory, DataReader, DataReaders
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.zoo_data_sets import ZooDataSets
from fskd_onnx.serialization.interface import InputSpec

FILE_FORMATS: tuple[SampleFormat, ...] = (ImageFiles(), NPY_FILES, NPZ_FILES, ZooDataSets())
"""Formats of files and folders, in the order in which error messages list them."""

MEMORY_FORMATS: tuple[SampleFormat, ...] = (ArraysInMemory(), DataReaders())
"""Formats of objects; the first that an object is a source of reads it."""

SampleSource: TypeAlias = (
    str | os.PathLike[str] | NDArray[Any] | Mapping[str, NDArray[Any]] | DataReader
)
"""What `load_samples` reads."""


def load_samples(
    source: SampleSource,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    groups: str | Sequence[str | int] | None = None,
    listed: str | None = None,
) -> Samples:
    """Open samples for a model.

    Arrays have the samples along their first axis. uint8 arrays for a floating-point image input
    are pixels (N x H x W, or with 1 or 3 channels before or after H x W) and are treated as images
    are; other arrays are ready tensors.

    Args:
        source: an image; an ``.npy`` or ``.npz`` file; a folder of one of these kinds, or of such
            folders, read in the order of names; ONNX model-zoo test data (a ``test_data_set_*``
            folder or one that holds them); an array; arrays by input name; or an object with
            ``get_next()``.
        inputs: the model's inputs.
        preprocess: how images become tensors.
        max_samples: draw at most this many, without replacement, keeping their order; None for all.
        seed: decides the draw.
        groups: which samples belong together, as `load_groups` takes them; or `FOLDERS`: ``source``
            is a folder whose subfolders hold the samples, and each subfolder is a group.
        listed: a text file that names the samples of the folder to read, see ``finding``.

    Returns:
        The samples.

    Raises:
        SamplesError: the source is missing, empty, broken or not what the model takes.
        PreprocessError: there are images, and they cannot become tensors as asked for.
    """
    inputs, preprocess = tuple(inputs), preprocess or Preprocess()
    by_folder = isinstance(groups, str) and groups == FOLDERS
    opened: list[_Opened] = []
    if by_folder:
        if not isinstance(source, (str, os.PathLike)) or not existing(source).is_dir():
            raise SamplesError(
                "groups are to be the subfolders of the samples, and these are no folder; give a "
                "folder that holds a folder per group, or a file of groups"
            )
        if listed is None:
            for folder in subfolders(Path(source)):
                parts = _open(folder, inputs, preprocess)
                opened += [replace(part, folder=folder.name) for part in parts]
    opened = opened or _open(source, inputs, preprocess, listed)
    if not any(one.part.count for one in opened):
        raise SamplesError(f"{samples_name(source)}: holds no samples; give at least one")
    if isinstance(first := opened[0].part, ArrayPart):
        tell_of_values(first, inputs, preprocess)
    sizes = [one.part.count for one in opened]
    folders = np.repeat(np.array([one.folder for one in opened], dtype=np.str_), sizes)
    numbers: NDArray[np.intp] | None = None
    if by_folder:
        numbers = np.unique(folders, return_inverse=True)[1].astype(np.intp)
    elif groups is not None:
        numbers = load_groups(groups, sum(sizes))
    name = samples_name(source)
    return Samples([one.part for one in opened], inputs, max_samples, seed, numbers, name, folders)


@dataclass(frozen=True)
class _Opened:
    """Samples that are opened together, and the name of the folder of the source they lie in."""

    part: SourcePart
    folder: str = ""


def samples_name(source: SampleSource) -> str:
    """Return what to call a source of samples in messages."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the source of samples"


def _open(
    source: SampleSource,
    inputs: tuple[InputSpec, ...],
    preprocess: Preprocess,
    listed: str | None = None,
) -> list[_Opened]:
    """Return the parts of any source."""
    if isinstance(source, (str, os.PathLike)):
        path = existing(source)
        if listed is None:
            found = find_files(path, FILE_FORMATS)
        else:
            found = find_listed(path, existing(listed), FILE_FORMATS)
        parts = found.format.open(found.items, inputs, preprocess)
        return [_Opened(*one) for one in zip(parts, found.folders, strict=True)]
    if listed is not None:
        raise SamplesError(f"{listed}: names files of a folder, and the samples are no folder")
    for format_ in MEMORY_FORMATS:
        items = format_.find(source)
        if items is not None:
            return [_Opened(part) for part in format_.open(items, inputs, preprocess)]
    words = one_of(["a path", *(format_.words for format_ in MEMORY_FORMATS)])
    raise SamplesError(f"samples cannot be read from a {type(source).__name__}; give {words}")
