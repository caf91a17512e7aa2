"""The formats of samples in memory: arrays, and data readers that give batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import UNNAMED, ArrayPart, by_input
from fskd_onnx.serialization.interface import InputSpec


class DataReader(Protocol):
    """Anything that gives batches one by one, as ONNX Runtime's ``CalibrationDataReader`` does."""

    def get_next(self) -> Mapping[str, Any] | None:
        """Return the next batch by input name; None or an empty one at the end."""


class _Batches:
    """What the formats in memory share: their items are batches of arrays by input name."""

    def open(
        self,
        items: Sequence[Mapping[str, Any]],
        inputs: tuple[InputSpec, ...],
        preprocess: Preprocess,
    ) -> list[ArrayPart]:
        """Open the batches, see `SampleFormat.open`."""
        parts = []
        for number, batch in enumerate(items):
            name = "the samples" if len(items) == 1 else f"batch {number} of the samples"
            arrays: dict[str, NDArray[Any]] = by_input(batch, inputs, name)
            parts.append(ArrayPart.of(name, arrays.copy, inputs, preprocess))
        return parts


class ArraysInMemory(_Batches):
    """One array, or arrays by input name, see `SampleFormat`."""

    name = "arrays"
    words = "an array, arrays by input name"

    def find(self, source: object) -> list[Mapping[str, Any]] | None:
        """Return the arrays as one batch; None for anything else."""
        if isinstance(source, np.ndarray):
            return [{UNNAMED: source}]
        return [source] if isinstance(source, Mapping) else None


class DataReaders(_Batches):
    """Objects with ``get_next()``, see `DataReader`; all their batches are read at once."""

    name = "data readers"
    words = "an object with get_next()"

    def find(self, source: object) -> list[Mapping[str, Any]] | None:
        """Return the batches that the object gives; None for an object that gives none.

        Raises:
            SamplesError: a batch holds no arrays by input name.
        """
        get_next = getattr(source, "get_next", None)
        if not callable(get_next):
            return None
        batches: list[Mapping[str, Any]] = []
        while (batch := get_next()) is not None:
            if not isinstance(batch, Mapping):
                raise SamplesError(
                    f"batch {len(batches)} of the samples: is a {type(batch).__name__} and no "
                    "arrays by input name; give a dict of arrays"
                )
            if not batch:
                break
            batches.append(batch)
        return batches
