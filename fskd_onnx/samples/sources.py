"""Samples from wherever they are -> named batches for a model, one at a time.

Every source becomes a list of chunks (an image, an array file, a batch of a data reader), each with
a name for error messages. Nothing is decoded before it is asked for, so memory does not grow
with a folder of images or with a memory-mapped ``.npy`` file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.images import fit_image, to_tensor
from fskd_onnx.serialization.interface import InputSpec

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
LABEL_NAMES = frozenset({"labels", "label", "y"})
"""Names of arrays, in an ``.npz`` or as files, that are never samples."""

_SOURCES_IN_WORDS = "images (png, jpg, jpeg, bmp, webp), .npy, .npz or test_data_set_* folders"
_SAVE = "save numbers with np.save or np.savez (pickled arrays are refused)"
_UNNAMED = "one array without a name"
_COMPANION_SUFFIXES = frozenset({".txt", ".json", ".csv", ".md"})

_log = logging.getLogger(__name__)


class DataReader(Protocol):
    """Anything that gives batches one by one, as ONNX Runtime's ``CalibrationDataReader`` does."""

    def get_next(self) -> Mapping[str, Any] | None:
        """The next batch by input name, or ``None`` (or nothing in it) at the end."""


SampleSource: TypeAlias = (
    str | os.PathLike[str] | NDArray[Any] | Mapping[str, NDArray[Any]] | DataReader
)
"""What `load_samples` reads."""


class SampleReader(Protocol):
    """Anything that samples can be taken from, by index.

    Attributes:
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
    """

    inputs: tuple[InputSpec, ...]
    shapes: dict[str, tuple[int, ...]]

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Read some samples: per input, stacked along a new first axis."""


class SizedReader(SampleReader, Protocol):
    """A reader whose samples are numbered from 0 on, without a gap."""

    def __len__(self) -> int:
        """Return the number of samples."""


class Samples:
    """Samples of a model, each with all of its inputs, read when asked for.

    Attributes:
        source_count: how many samples the source holds.
        source_indices: positions in the source of the samples that were drawn, ascending.
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
    """

    def __init__(
        self,
        chunks: Sequence[_SampleGroup],
        inputs: Sequence[InputSpec],
        max_samples: int | None,
        seed: int,
    ) -> None:
        """Draws the samples and reads the first one, so that bad input shows at once.

        Args:
            chunks: the source, in order.
            inputs: the model's inputs.
            max_samples: how many to draw; ``None`` for all.
            seed: decides the draw.

        Raises:
            SamplesError: there are no samples, or the first is not what the model takes.
        """
        self._chunks = chunks
        self.inputs = tuple(inputs)
        self._ends = np.cumsum([chunk.count for chunk in chunks], dtype=np.intp)
        self.source_count = int(self._ends[-1])
        self.source_indices = draw(self.source_count, max_samples, seed)
        first_chunk, first_index = self._locate(self.source_indices[0])
        self._first_name = first_chunk.describe(first_index)
        self.shapes = {spec.name: first_chunk.read(spec, first_index).shape for spec in self.inputs}

    def __len__(self) -> int:
        """How many samples were drawn."""
        return len(self.source_indices)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Reads some of the samples.

        Args:
            indices: positions among the drawn samples, 0 <= index < ``len(self)``, in any order.

        Returns:
            Per input, the samples stacked along a new first axis, in the order asked for.

        Raises:
            SamplesError: a sample cannot be decoded, is not finite, or differs in shape from the
                first one.
            PreprocessError: an image does not fit the model's input.
        """
        located = [self._locate(index) for index in self.source_indices[indices]]
        return {
            spec.name: np.stack([self._read(spec, chunk, index) for chunk, index in located])
            for spec in self.inputs
        }

    def labels(self, path: str | Path) -> NDArray[np.int64]:
        """The labels of the drawn samples, from a file with one label per sample of the source.

        Args:
            path: see `load_labels`.

        Returns:
            One label per drawn sample.

        Raises:
            SamplesError: the file is unreadable or its length is not that of the source.
        """
        return load_labels(path, self.source_count)[self.source_indices]

    def _locate(self, source_index: int) -> tuple[_SampleGroup, int]:
        position = int(np.searchsorted(self._ends, source_index, side="right"))
        chunk = self._chunks[position]
        return chunk, int(source_index - self._ends[position]) + chunk.count

    def _read(self, spec: InputSpec, chunk: _SampleGroup, index: int) -> NDArray[Any]:
        sample = chunk.read(spec, index)
        expected = self.shapes[spec.name]
        if sample.shape != expected:
            raise SamplesError(
                f"{chunk.describe(index)}: has shape {sample.shape} and {self._first_name} has "
                f"{expected} for input {spec.name!r}; bring all samples to one size"
                " (images: --resize, --crop)"
            )
        return sample


def load_samples(
    source: SampleSource,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> Samples:
    """Opens samples for a model.

    Arrays have the samples along their first axis. uint8 arrays for a floating-point image input
    are pixels (N x H x W, or with 1 or 3 channels before or after H x W) and are treated as images
    are; other arrays are ready tensors.

    Args:
        source: an image; an ``.npy`` or ``.npz`` file; a folder of one of these kinds, read in the
            order of names; ONNX model-zoo test data (a ``test_data_set_*`` folder or one that
            holds them); an array; arrays by input name; or an object with ``get_next()``.
        inputs: the model's inputs.
        preprocess: how images become tensors.
        max_samples: draw at most this many, without replacement, keeping their order; ``None`` for
            all.
        seed: decides the draw.

    Returns:
        The samples.

    Raises:
        SamplesError: the source is missing, empty, broken or not what the model takes.
        PreprocessError: there are images and they cannot become tensors as asked for.
    """
    preprocess = preprocess or Preprocess()
    chunks = _open(source, tuple(inputs), preprocess)
    if not any(chunk.count for chunk in chunks):
        name = source if isinstance(source, (str, os.PathLike)) else "the source of samples"
        raise SamplesError(f"{name}: holds no samples; give at least one")
    return Samples(chunks, inputs, max_samples, seed)


def load_labels(path: str | Path, count: int) -> NDArray[np.int64]:
    """Reads one class label per sample of a source.

    The labels are those of the whole source: `Samples.labels` slices them as the samples were
    drawn.

    Args:
        path: a one-dimensional ``.npy``; an ``.npz`` with an array ``labels`` (or one
            one-dimensional array of integers); a ``.txt`` or ``.csv`` with one integer per line.
        count: how many samples the source holds.

    Returns:
        ``count`` labels.

    Raises:
        SamplesError: the file is unreadable, holds something else or another number of labels.
    """
    path = _existing(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        labels = _read_array(path)
    elif suffix == ".npz":
        labels = _read_archive_labels(path)
    elif suffix in (".txt", ".csv"):
        labels = _read_text_labels(path)
    else:
        raise SamplesError(f"{path}: labels are read from .npy, .npz, .txt or .csv files")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise SamplesError(
            f"{path}: holds {labels.dtype} of shape {labels.shape}; labels are integers in one "
            "dimension, one per sample"
        )
    if len(labels) != count:
        raise SamplesError(
            f"{path}: holds {len(labels)} labels for {count} samples; give one label per sample of "
            "the source"
        )
    return labels.astype(np.int64)


def draw(count: int, max_samples: int | None, seed: int) -> NDArray[np.intp]:
    """Draws samples without replacement.

    Args:
        count: how many there are.
        max_samples: how many to draw at most; ``None`` for all.
        seed: decides the draw.

    Returns:
        Ascending positions.

    Raises:
        SamplesError: ``max_samples`` is less than one.
    """
    if max_samples is not None and max_samples < 1:
        raise SamplesError(f"at least one sample must be drawn, not {max_samples}")
    if max_samples is None or max_samples >= count:
        return np.arange(count, dtype=np.intp)
    drawn = np.random.default_rng(seed).choice(count, size=max_samples, replace=False)
    return np.sort(drawn).astype(np.intp)


class _SampleGroup(Protocol):
    """A few samples that come together."""

    @property
    def count(self) -> int: ...

    def describe(self, index: int) -> str:
        """What to call one sample in an error."""

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """One input of one sample: a finite tensor of the input's type, without batch axis."""


@dataclass(frozen=True)
class _ImageFile:
    """One image file."""

    path: Path
    preprocess: Preprocess
    count: int = 1

    def describe(self, index: int) -> str:
        return str(self.path)

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        name = self.describe(index)
        with _reading(self.path, "an image"), Image.open(self.path) as image:
            image.load()
        pixels = fit_image(self.preprocess, image, spec, name)
        return _finite(to_tensor(self.preprocess, pixels[np.newaxis], spec)[0], name, spec)


@dataclass(frozen=True)
class _ArrayGroup:
    """Arrays that come together, by input name, with the samples along the first axis."""

    name: str
    load: Callable[[], Mapping[str, NDArray[Any]]]
    count: int
    preprocess: Preprocess

    @classmethod
    def of(
        cls,
        name: str,
        load: Callable[[], Mapping[str, NDArray[Any]]],
        inputs: Sequence[InputSpec],
        preprocess: Preprocess,
    ) -> _ArrayGroup:
        """Checks all that can be told without looking at values."""
        arrays = load()
        for spec in inputs:
            _check_array(arrays[spec.name], spec, name)
        counts = {spec.name: len(arrays[spec.name]) for spec in inputs}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{key} has {count}" for key, count in counts.items())
            raise SamplesError(f"{name}: inputs differ in their number of samples: {listed}")
        return cls(name, load, next(iter(counts.values())), preprocess)

    def describe(self, index: int) -> str:
        return f"{self.name}, sample {index}"

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        name = self.describe(index)
        sample = np.asarray(self.load()[spec.name][index])
        if _holds_pixels(sample.dtype, spec):
            pixels = fit_image(self.preprocess, sample, spec, name)
            tensor = to_tensor(self.preprocess, pixels[np.newaxis], spec)[0]
        else:
            # Overflow on the way to float16 is reported below as what it becomes: not finite.
            with np.errstate(over="ignore"):
                tensor = sample.astype(spec.dtype)
        return _finite(tensor, name, spec)


def _open(
    source: SampleSource, inputs: tuple[InputSpec, ...], preprocess: Preprocess
) -> Sequence[_SampleGroup]:
    """The chunks of any source."""
    if isinstance(source, (str, os.PathLike)):
        return _open_path(_existing(source), inputs, preprocess)
    if isinstance(source, np.ndarray):
        batches: list[Mapping[str, Any]] = [{_UNNAMED: source}]
    elif isinstance(source, Mapping):
        batches = [source]
    elif callable(getattr(source, "get_next", None)):
        batches = list(_batches(source))
    else:
        raise SamplesError(
            f"samples cannot be read from a {type(source).__name__}; give a path, an array, arrays "
            "by input name or an object with get_next()"
        )
    chunks = []
    for number, batch in enumerate(batches):
        name = "the samples" if len(batches) == 1 else f"batch {number} of the samples"
        arrays = _by_input(batch, inputs, name)
        chunks.append(_ArrayGroup.of(name, arrays.copy, inputs, preprocess))
    return chunks


def _batches(reader: DataReader) -> Iterator[Mapping[str, Any]]:
    while batch := reader.get_next():
        yield batch


def _open_path(
    path: Path, inputs: tuple[InputSpec, ...], preprocess: Preprocess
) -> Sequence[_SampleGroup]:
    items = _test_data_sets(path) or _sample_files(path) if path.is_dir() else [path]
    if not items:
        raise SamplesError(
            f"{path}: holds no samples; put {_SOURCES_IN_WORDS} directly into the folder"
        )
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1:
        raise SamplesError(f"{path}: mixes {' and '.join(sorted(kinds))}; keep one kind of samples")
    if kinds == {"images"}:
        if len(inputs) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise SamplesError(
                f"{path}: images are samples of one input and the model has {len(inputs)} "
                f"({names}); give .npz files with one array per input"
            )
        return [_ImageFile(item, preprocess) for item in items]
    # Few files stay open at a time: a folder may hold more than a process may have open, or than
    # fits into memory. The cache lives and dies with this call's samples, so it is never stale.
    read = lru_cache(maxsize=4)(_read_arrays)
    return [
        _ArrayGroup.of(str(item), partial(read, item, inputs), inputs, preprocess) for item in items
    ]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir():
        return "test data sets"
    if suffix in IMAGE_SUFFIXES:
        return "images"
    if suffix in ARRAY_SUFFIXES:
        return f"{suffix} files"
    raise SamplesError(f"{path}: is not a file of samples; give {_SOURCES_IN_WORDS}")


def _sample_files(folder: Path) -> list[Path]:
    """Images and arrays of a folder by name; what else lies there is left alone."""
    with _reading(folder, "a folder"):
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files: list[Path] = []
    others: list[Path] = []
    for entry in entries:
        suffix = entry.suffix.lower()
        is_array = suffix in ARRAY_SUFFIXES and entry.stem.lower() not in LABEL_NAMES
        if entry.is_dir() or suffix in _COMPANION_SUFFIXES:
            continue
        (files if suffix in IMAGE_SUFFIXES or is_array else others).append(entry)
    if files and others:
        _log.warning("%s: not read as samples: %s", folder, ", ".join(e.name for e in others))
    return files


def _test_data_sets(folder: Path) -> list[Path]:
    """Folders with ``input_*.pb`` in the order of their numbers: this one, or those in it."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    return sorted(
        (entry for entry in folder.glob("test_data_set_*") if entry.is_dir()),
        key=lambda entry: (len(entry.name), entry.name),
    )


def _read_arrays(path: Path, inputs: tuple[InputSpec, ...]) -> dict[str, NDArray[Any]]:
    """The arrays of one file or test data set, by input name."""
    if path.is_dir():
        files = [path / f"input_{number}.pb" for number in range(len(inputs))]
        found = len(list(path.glob("input_*.pb")))
        if found != len(files):
            raise SamplesError(
                f"{path}: holds {found} input_*.pb files and the model has {len(files)} inputs"
            )
        return {spec.name: _read_tensor(file) for spec, file in zip(inputs, files, strict=True)}
    if path.suffix.lower() == ".npy":
        return _by_input({_UNNAMED: _read_array(path)}, inputs, str(path))
    with (
        _reading(path, "an archive of arrays", _SAVE),
        np.load(path, allow_pickle=False) as archive,
    ):
        return _by_input(archive, inputs, str(path))


def _read_array(path: Path) -> NDArray[Any]:
    with _reading(path, "an array", _SAVE):
        return np.lib.format.open_memmap(path, mode="r")


def _read_tensor(path: Path) -> NDArray[Any]:
    with _reading(path, "a tensor"):
        return numpy_helper.to_array(onnx.load_tensor(path))


@contextmanager
def _reading(path: Path, what: str, remedy: str = "repair or replace it") -> Iterator[None]:
    """Turns what readers raise over a missing, broken or pickled file into one sentence."""
    try:
        yield
    except SamplesError:
        raise
    # Readers of broken files raise whatever they stumble over: OSError, ValueError, SyntaxError,
    # EOFError, DecodeError, BadZipFile, struct.error, zlib.error, DecompressionBombError, ...
    except Exception as error:
        raise SamplesError(
            f"{path}: cannot be read as {what} ({str(error) or type(error).__name__}); {remedy}"
        ) from error


def _by_input(
    arrays: Mapping[str, Any], inputs: Sequence[InputSpec], name: str
) -> dict[str, NDArray[Any]]:
    """Arrays of the model's inputs; the only array there is may have any name."""
    candidates = [key for key in arrays if key not in LABEL_NAMES]
    if len(inputs) == len(candidates) == 1 and inputs[0].name not in arrays:
        return {inputs[0].name: np.asarray(arrays[candidates[0]])}
    for spec in inputs:
        if spec.name not in arrays:
            raise SamplesError(
                f"{name}: has no array for the model's input {spec.name!r} (it has "
                f"{', '.join(candidates) or 'none'}); name the arrays after the inputs"
            )
    return {spec.name: np.asarray(arrays[spec.name]) for spec in inputs}


def _holds_pixels(dtype: np.dtype[Any], spec: InputSpec) -> bool:
    image_input = len(spec.shape) == 4 and np.issubdtype(spec.dtype, np.floating)
    return dtype == np.uint8 and image_input


def _check_array(array: NDArray[Any], spec: InputSpec, name: str) -> None:
    """Refuses arrays whose type or shape cannot become the model's input."""
    shape = ", ".join("?" if size is None else str(size) for size in ("N", *spec.shape[1:]))
    takes = f"the model's input {spec.name!r} takes {spec.dtype} of shape ({shape})"
    if array.ndim == 0:
        raise SamplesError(f"{name}: is a single value; {takes}, the samples along the first axis")
    if _holds_pixels(array.dtype, spec):
        return
    both_float = all(np.issubdtype(dtype, np.floating) for dtype in (array.dtype, spec.dtype))
    if not both_float and array.dtype.newbyteorder("=") != spec.dtype:
        raise SamplesError(f"{name}: holds {array.dtype}; {takes}; convert the samples")
    fits = array.ndim == len(spec.shape) and all(
        wanted in (None, size) for wanted, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise SamplesError(
            f"{name}: has shape {array.shape}; {takes}, N being the number of samples"
        )


def _finite(tensor: NDArray[Any], name: str, spec: InputSpec) -> NDArray[Any]:
    if np.issubdtype(tensor.dtype, np.inexact) and not np.isfinite(tensor).all():
        raise SamplesError(
            f"{name}: holds NaN or infinite values as {spec.dtype} for input {spec.name!r}; "
            "remove or repair this sample"
        )
    return tensor


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.exists():
        raise SamplesError(f"{path}: does not exist; check the path")
    return path


def _read_archive_labels(path: Path) -> NDArray[Any]:
    """The array that is called labels, or else the only one that could be."""
    with (
        _reading(path, "an archive of arrays", _SAVE),
        np.load(path, allow_pickle=False) as archive,
    ):
        named = [key for key in archive if key in LABEL_NAMES]
        if named:
            return np.asarray(archive[named[0]])
        arrays = (np.asarray(archive[key]) for key in archive)
        found = [a for a in arrays if a.ndim == 1 and np.issubdtype(a.dtype, np.integer)]
    if len(found) != 1:
        raise SamplesError(f"{path}: holds no array called labels; save them as labels=...")
    return found[0]


def _read_text_labels(path: Path) -> NDArray[Any]:
    with _reading(path, "a text file"):
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    labels = []
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", line):
            raise SamplesError(f"{path}: line {number} is {line!r} and not one integer; correct it")
        labels.append(int(line))
    return np.array(labels, dtype=np.int64)
