"""The samples of a run as inputs of networks: each is read once, then kept.

Networks run on batches, and the same batches serve matching, selection and all fits. So samples are
kept as the batches that they first run in; a batch is read when somebody asks for one of its
samples. Who needs other samples together gets copies of rows of these batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore, upload
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.reader import SampleReader


@dataclass(frozen=True)
class _DecodedBatch:
    """The samples of one batch, read when one of its inputs is first asked for."""

    batch: Batch
    samples: SampleReader
    store: TensorStore
    device: str

    @cached_property
    def inputs(self) -> dict[str, StoredTensor]:
        size, count = len(self.batch.samples), self.batch.count
        arrays = self.samples.take(self.batch.samples[:count])
        if size > count:  # the padding repeats samples of the batch
            rows = np.resize(np.arange(count), size)
            arrays = {name: array[rows] for name, array in arrays.items()}
        arrays = {spec.name: spec.joined(arrays[spec.name]) for spec in self.samples.inputs}
        values = upload(arrays, self.device)
        return {name: self.store.keep(value) for name, value in values.items()}


@dataclass(frozen=True)
class _Input:
    """One input of a batch that may not have been read yet."""

    decoded: _DecodedBatch
    name: str
    shape: tuple[int, ...]
    element_type: int

    def value(self) -> OrtValue:
        return self.decoded.inputs[self.name].value()


@dataclass(frozen=True)
class _Part:
    """Some of the samples of an input."""

    whole: StoredTensor
    axis: int
    samples: slice

    @property
    def shape(self) -> tuple[int, ...]:
        shape, axis = self.whole.shape, self.axis
        count = len(range(*self.samples.indices(shape[axis])))
        return *shape[:axis], count, *shape[axis + 1 :]

    @property
    def element_type(self) -> int:
        return self.whole.element_type

    def value(self) -> OrtValue:
        value = self.whole.value()  # what it gives is on loan, and has to live until it is copied
        array = value.numpy()[(slice(None),) * self.axis + (self.samples,)].copy()
        return OrtValue.ortvalue_from_numpy(array, value.device_name())


class DecodedSamples:
    """Samples of given batches, each read once and kept; a ``SampleReader``.

    Attributes:
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
        store: keeps what was read.
    """

    def __init__(
        self, samples: SampleReader, batches: Iterable[Batch], store: TensorStore, device: str
    ) -> None:
        """Plan; nothing is read yet.

        Args:
            samples: where they are read from.
            batches: which samples run together; no two share a sample.
            store: keeps what was read.
            device: where sessions read it.
        """
        self.inputs, self.shapes = samples.inputs, samples.shapes
        self.store = store
        self._samples = samples
        self._batches: dict[bytes, _DecodedBatch] = {}
        self._located: dict[int, tuple[_DecodedBatch, int]] = {}
        for batch in batches:
            decoded = _DecodedBatch(batch, samples, store, device)
            self._batches[batch.samples.tobytes()] = decoded
            for row, sample in enumerate(batch.samples[: batch.count].tolist()):
                self._located[sample] = decoded, row

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._located)

    def feeds(self, batch: Batch, part: slice | None = None) -> list[StoredTensor]:
        """Return the inputs of one of the batches, in order; they are read when asked for a value.

        Args:
            batch: one of those of the constructor, whatever its fold.
            part: which of its samples; None for all.
        """
        decoded = self._batches[batch.samples.tobytes()]
        whole = [
            _Input(
                decoded,
                spec.name,
                spec.with_samples(self.shapes[spec.name], len(batch.samples)),
                onnx.helper.np_dtype_to_tensor_dtype(spec.dtype),
            )
            for spec in self.inputs
        ]
        if part is None:
            return list(whole)
        return [
            stored if spec.axis is None else _Part(stored, spec.axis, part)
            for spec, stored in zip(self.inputs, whole, strict=True)
        ]

    def shapes_of(self, graph: gs.Graph, count: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of so many samples as inputs of a graph, by the names that it has.

        Args:
            graph: a network that takes these inputs, in their order.
            count: how many samples.
        """
        return {
            tensor.name: spec.with_samples(self.shapes[spec.name], count)
            for tensor, spec in zip(graph.inputs, self.inputs, strict=True)
        }

    def describe(self, index: int) -> str:
        """Return what to call a sample in messages and reports."""
        return self._samples.describe(index)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return copies of some samples: per input, stacked along a new first axis."""
        located = [self._located[sample] for sample in indices.tolist()]
        taken = {}
        for spec in self.inputs:
            # The values live as long as the arrays that refer to their memory.
            values = {id(b): b.inputs[spec.name].value() for b, _ in located}
            arrays = {key: value.numpy() for key, value in values.items()}
            if spec.axis is None:
                taken[spec.name] = np.stack([arrays[id(b)] for b, _ in located])
                continue
            arrays = {key: np.moveaxis(array, spec.axis, 0) for key, array in arrays.items()}
            taken[spec.name] = np.stack([arrays[id(b)][row] for b, row in located])
        return taken
