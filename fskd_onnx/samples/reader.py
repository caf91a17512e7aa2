"""Samples by index: drawn from a source with a seed, decoded when they are taken.

Nothing is decoded before it is asked for, so memory does not grow with a folder of images or with a
memory-mapped ``.npy`` file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import FOLDERS
from fskd_onnx.samples.contract import SourcePart
from fskd_onnx.samples.labels import folder_labels, load_labels
from fskd_onnx.serialization.interface import InputSpec


class SampleReader(Protocol):
    """Anything that samples can be taken from, by index.

    Attributes:
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
    """

    inputs: tuple[InputSpec, ...]
    shapes: dict[str, tuple[int, ...]]

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return some samples: per input, stacked along a new first axis."""

    def describe(self, index: int) -> str:
        """Return what to call a sample in messages and reports."""


class SizedReader(SampleReader, Protocol):
    """A reader whose samples are numbered from 0 on, without a gap."""

    def __len__(self) -> int:
        """Return the number of samples."""


class Samples:
    """Samples of a model, each with all of its inputs.

    Attributes:
        name: what to call the source in messages.
        source_count: number of samples that the source holds.
        source_indices: positions in the source of the samples that were drawn, ascending.
        inputs: the model's inputs; those that turn out to be the same for all samples say so.
        shapes: shape of one sample of each input.
        groups: number of the group of each drawn sample; None where none are given.
    """

    def __init__(
        self,
        parts: Sequence[SourcePart],
        inputs: Sequence[InputSpec],
        max_samples: int | None,
        seed: int,
        groups: NDArray[np.intp] | None = None,
        name: str = "the source of samples",
        folders: NDArray[np.str_] | None = None,
    ) -> None:
        """Draw the samples and read the first one, so that bad input shows at once.

        Args:
            parts: all of the source, in order, with at least one sample.
            inputs: the model's inputs.
            max_samples: how many to draw at most; None for all.
            seed: decides the draw.
            groups: number of the group of each sample of the source; None where none are given.
            name: what to call the source in messages.
            folders: name of the folder of the source that each of its samples lies in.

        Raises:
            SamplesError: the first sample is not what the model takes.
        """
        self.name = name
        self._parts = parts
        self._ends = np.cumsum([part.count for part in parts], dtype=np.intp)
        self.source_count = int(self._ends[-1])
        self.source_indices = draw(self.source_count, max_samples, seed)
        self.groups = None if groups is None else groups[self.source_indices]
        self._folders = folders
        first_part, first_index = self._locate(self.source_indices[0])
        self._first_name = first_part.describe(first_index)
        self._first = {spec.name: first_part.read(spec, first_index) for spec in inputs}
        # What comes with all of an input's axes is the input as a whole, the same for all samples.
        self.inputs = tuple(
            replace(spec, axis=None) if self._first[spec.name].ndim == len(spec.shape) else spec
            for spec in inputs
        )
        self.shapes = {name: sample.shape for name, sample in self._first.items()}

    def __len__(self) -> int:
        """Return how many samples were drawn."""
        return len(self.source_indices)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Read some of the samples.

        Args:
            indices: positions among the drawn samples, 0 <= index < ``len(self)``, in any order.

        Returns:
            Per input, the samples stacked along a new first axis, in the order asked for.

        Raises:
            SamplesError: a sample cannot be decoded, is not finite, or differs in shape from the
                first one.
            PreprocessError: an image does not fit the model's input.
        """
        return {
            spec.name: np.stack([self._read(spec, index) for index in indices.tolist()])
            for spec in self.inputs
        }

    def describe(self, index: int) -> str:
        """Return what to call one of the drawn samples in messages and reports."""
        part, index_in_part = self._locate(self.source_indices[index])
        return part.describe(index_in_part)

    def labels(self, path: str | Path) -> NDArray[np.int64]:
        """Return the labels of the drawn samples.

        Args:
            path: a file with one label per sample of the source, see `load_labels`; or `FOLDERS`,
                where the names of folders are classes, see `folder_labels`.

        Returns:
            One label per drawn sample.

        Raises:
            SamplesError: the file is unreadable or its length is not that of the source.
        """
        if path == FOLDERS:
            return folder_labels(self._folders, self.name)[self.source_indices]
        return load_labels(path, self.source_count)[self.source_indices]

    def _locate(self, source_index: int) -> tuple[SourcePart, int]:
        """Return the part that holds a sample of the source, and its index there."""
        position = int(np.searchsorted(self._ends, source_index, side="right"))
        part = self._parts[position]
        return part, int(source_index - self._ends[position]) + part.count

    def _read(self, spec: InputSpec, sample_index: int) -> NDArray[Any]:
        if sample_index == 0:  # it is decoded already, for its shape
            return self._first[spec.name]
        part, index = self._locate(self.source_indices[sample_index])
        sample = part.read(spec, index)
        expected = self.shapes[spec.name]
        if sample.shape != expected:
            raise SamplesError(
                f"{part.describe(index)}: has shape {sample.shape} and {self._first_name} has "
                f"{expected} for input {spec.name!r}; bring all samples to one size"
                " (images: --resize, --crop)"
            )
        if spec.axis is None and not np.array_equal(sample, self._first[spec.name]):
            raise SamplesError(
                f"{part.describe(index)}: has another value than {self._first_name} for input "
                f"{spec.name!r}, which is the same for all samples; give one value"
            )
        return sample


def draw(count: int, max_samples: int | None, seed: int) -> NDArray[np.intp]:
    """Draw samples without replacement.

    Args:
        count: how many there are.
        max_samples: how many to draw at most; None for all.
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
