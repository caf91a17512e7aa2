"""Gram matrices of what the teacher's blocks read, summed while the teacher runs anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.moments import GramMoments, finite_columns
from fskd_onnx.passes.analysis.constants import all_finite
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.runtime.collector import ColumnRequest, Columns
from fskd_onnx.runtime.column_sampling import OfFirstBatches, RandomSampling, batch_offsets
from fskd_onnx.samples.batches import Batch, first_batches

# Second moments of a few hundred channels are known well enough from this many samples and columns.
_SAMPLES = 256
_COLUMNS_PER_CHANNEL = 20
_LEAST_COLUMNS = 4096


class InputGrams:
    """Sums over columns of tensors that blocks of the teacher read.

    Attributes:
        requests: the columns to collect, by the name of the tensor.
        read_by: the output of the first block that reads each of these tensors.
    """

    def __init__(self, readers: Iterable[Linear], batches: Sequence[Batch]) -> None:
        """Sum nothing yet.

        Args:
            readers: the blocks.
            batches: that the teacher runs on; the first samples of them are looked at.
        """
        self.requests: dict[str, ColumnRequest] = {}
        self.read_by: dict[str, str] = {}
        self._sums: dict[str, GramMoments] = {}
        offsets = tuple(batch_offsets(first_batches(batches, _SAMPLES)))
        for reader in readers:
            channels = reader.groups * reader.shape[2] // math.prod(reader.kernel_shape)
            columns = max(_COLUMNS_PER_CHANNEL * channels, _LEAST_COLUMNS)
            sampling = OfFirstBatches(RandomSampling(columns, (0,)), offsets)
            name = reader.input.name
            self.requests[name] = ColumnRequest((name,), reader.columns_last, sampling)
            self.read_by.setdefault(name, reader.output.name)

    def add(self, found: tuple[str, Columns | None]) -> None:
        """Add the columns of one tensor in one batch, the finite ones."""
        name, columns = found
        if columns is None:
            return
        values = columns.values[0]
        finite = finite_columns(values)
        if finite is not None:
            values = values[:, finite]
        if values.shape[1]:
            with np.errstate(invalid="ignore", over="ignore"):
                new = GramMoments.of(values[np.newaxis])
            self._sums[name] = self._sums[name] + new if name in self._sums else new

    def centered(self) -> dict[str, Array]:
        """Return the centred Gram matrix, (channels, channels), of each tensor.

        What is finite at no position, or so large that its squares overflow, has none.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            grams = {name: moments.centered_gram[0] for name, moments in self._sums.items()}
        return {name: gram for name, gram in grams.items() if all_finite(gram)}
