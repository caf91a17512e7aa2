"""All samples, decoded one by one ahead of what depends on all of them: their division into groups.

The samples are kept until batches take them, or for good where moved copies are made of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore
from fskd_onnx.samples.reader import SizedReader
from fskd_onnx.samples.related import Fingerprint


class FirstReading:
    """Samples that were read once, and what they are compared by; a ``SizedReader``.

    Attributes:
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
        fingerprints: of each sample.
    """

    def __init__(self, samples: SizedReader, store: TensorStore, taken_once: bool) -> None:
        """Read all samples.

        Args:
            samples: where they are read from.
            store: keeps what was read.
            taken_once: whether each sample is dropped when it is taken.
        """
        self.inputs, self.shapes = samples.inputs, samples.shapes
        self.fingerprints: list[Fingerprint] = []
        self._samples, self._taken_once = samples, taken_once
        self._kept: list[dict[str, StoredTensor] | None] = []
        for index in range(len(samples)):
            arrays = samples.take(np.array([index], np.intp))
            sample = {name: array[0] for name, array in arrays.items()}
            self.fingerprints.append(Fingerprint.of(sample))
            self._kept.append(
                {
                    name: store.keep(OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
                    for name, array in arrays.items()
                }
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._kept)

    def describe(self, index: int) -> str:
        """Return what to call a sample in messages and reports."""
        return self._samples.describe(index)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return some samples: per input, stacked along a new first axis.

        Raises:
            IndexError: a sample was taken before, and is taken once.
        """
        taken = {}
        for spec in self.inputs:
            values = [self._sample(index)[spec.name].value() for index in indices.tolist()]
            taken[spec.name] = np.concatenate([value.numpy() for value in values])
        if self._taken_once:
            for index in indices.tolist():
                self._kept[index] = None
        return taken

    def _sample(self, index: int) -> dict[str, StoredTensor]:
        kept = self._kept[index]
        if kept is None:
            raise IndexError(f"sample {index} was taken before")
        return kept
