"""The samples of a batch as inputs of a network, read when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import onnx
from onnxruntime import OrtValue

from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore, upload
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.reader import SampleReader


class _Feed:
    """The samples of one batch, read when one of its inputs is first asked for, then kept."""

    def __init__(
        self, samples: SampleReader, batch: Batch, store: TensorStore, device: str
    ) -> None:
        self._read_all = partial(samples.take, batch.samples)
        self._store = store
        self._device = device

    @cached_property
    def inputs(self) -> dict[str, StoredTensor]:
        values = upload(self._read_all(), self._device)
        return {name: self._store.keep(value) for name, value in values.items()}


@dataclass(frozen=True)
class _Input:
    """One input of a batch that may not have been read yet."""

    feed: _Feed
    name: str
    shape: tuple[int, ...]
    element_type: int

    def value(self) -> OrtValue:
        return self.feed.inputs[self.name].value()


def read_lazily(
    samples: SampleReader, batches: Sequence[Batch], store: TensorStore, device: str
) -> list[dict[str, StoredTensor]]:
    """Return the inputs of each batch as they will be once somebody asks for them.

    Args:
        samples: where they are read from.
        batches: which samples run together.
        store: keeps what was read.
        device: where sessions read it.
    """
    feeds = [_Feed(samples, batch, store, device) for batch in batches]
    return [
        {
            spec.name: _Input(
                feed,
                spec.name,
                (len(batch.samples), *samples.shapes[spec.name]),
                onnx.helper.np_dtype_to_tensor_dtype(spec.dtype),
            )
            for spec in samples.inputs
        }
        for batch, feed in zip(batches, feeds, strict=True)
    ]
