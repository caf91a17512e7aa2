"""Columns of tensors, gathered where the tensors are: a few positions instead of an activation.

A column is one position of one sample. A regression on u unknowns needs a multiple of u columns,
not every position of every sample, so each block draws as many as it needs, spread evenly over all
samples, and only they leave the device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue

from fskd_onnx.passes.gather_columns import COLUMNS, GatherColumns, gather_feeds
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import download, upload
from fskd_onnx.samples.batches import Batch

# Accuracy with kernel adapters on two draws of 500 samples, which differ by 0.6 among themselves,
# at 5, 20, 100 columns per unknown and at all columns (``tests/benchmarks/columns.py``):
# VGG-16 D 92.1 92.1 92.4 92.3 and 92.5 92.7 93.0 93.0; ResNet-20 with half of its inner channels
# 93.4 93.6 93.6 93.6 and 93.8 94.1 94.2 94.4.
_COLUMNS_PER_UNKNOWN = 50
_LEAST_COLUMNS = 4096
# Fewer than these from each of very many samples would cost more to gather than they tell.
_POSITIONS_PER_SAMPLE = 8

_OPSET, _IR = 17, 8


@dataclass(frozen=True)
class ColumnSampling:
    """Which columns of a block are looked at.

    Attributes:
        wanted: how many, over all batches.
        seed: for the choice of positions; each batch draws its own, so they spread over all.
    """

    wanted: int
    seed: tuple[int, ...]

    @staticmethod
    def of_unknowns(unknowns: int, seed: tuple[int, ...]) -> ColumnSampling:
        """Draw enough for a regression on so many unknowns."""
        return ColumnSampling(max(_COLUMNS_PER_UNKNOWN * (unknowns + 1), _LEAST_COLUMNS), seed)

    def choose(self, place: BatchOffset, rows: int, positions: int) -> tuple[int, NDArray[np.intp]]:
        """Choose the columns of one batch.

        Args:
            place: of the batch.
            rows: extent of the first axis of the batch's tensor.
            positions: of one row.

        Returns:
            How many rows, the first ones, are looked at, maybe none, and the (k,) positions.
        """
        count, k = self._extent(place, rows, positions)
        rng = np.random.default_rng([*self.seed, place.index])
        return count, np.sort(rng.choice(positions, size=k, replace=False))

    def reaches(self, place: BatchOffset, rows: int, positions: int) -> bool:
        """Whether ``choose`` would choose any."""
        return self._extent(place, rows, positions)[0] > 0

    def _extent(self, place: BatchOffset, rows: int, positions: int) -> tuple[int, int]:
        """Return how many rows are looked at, and how many positions of each."""
        # Some graphs fold positions into the first axis; a sample then has several rows.
        repeat = rows // len(place.batch.samples)
        least = math.ceil(self.wanted / (place.samples * repeat))
        k = min(positions, max(_POSITIONS_PER_SAMPLE, least))
        # Samples are in random order, so the first of each fold are as good as any.
        share = math.ceil(self.wanted / (k * repeat) * place.in_fold / place.samples)
        return min(place.batch.count, max(0, share - place.before)) * repeat, k


@dataclass(frozen=True)
class BatchOffset:
    """Where a batch stands among all of them.

    Attributes:
        batch: the batch.
        index: its number.
        before: samples of its fold in the batches before it.
        in_fold: samples of its fold.
        samples: of all batches.
    """

    batch: Batch
    index: int
    before: int
    in_fold: int
    samples: int


def batch_offsets(batches: Sequence[Batch]) -> list[BatchOffset]:
    """Work out where each batch stands."""
    sizes: Counter[int] = Counter()
    before = []
    for batch in batches:
        before.append(sizes[batch.fold])
        sizes[batch.fold] += batch.count
    return [
        BatchOffset(batch, index, before[index], sizes[batch.fold], sizes.total())
        for index, batch in enumerate(batches)
    ]


class Gatherer:
    """Gathers columns where a tensor is; only they come to the host.

    On the host NumPy does it, several times faster than the runtime (``tests/benchmarks/host.py``);
    on a device, sessions that serve all tensors of a rank and an element type.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Start without any session.

        Args:
            runtime: where the tensors are.
        """
        self._runtime = runtime
        self._sessions: dict[tuple[int, int, bool, bool], InferenceSession] = {}

    def __call__(
        self,
        tensor: OrtValue,
        channels_last: bool,
        count: int,
        index: NDArray[np.intp],
        inside: NDArray[np.bool_] | None = None,
        out: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Gather columns to the host, (channels * taps, count * k).

        Args:
            tensor: (N, channels, ...), or (N, ..., channels).
            channels_last: which of the two.
            count: how many of the N.
            index: (taps, k) flat positions.
            inside: (taps, k) whether there is such a position; ``None``: all of them.
            out: where to put them, cast to its type; ``None``: a new array of ``column_type``.
        """
        if tensor.device_name() == "cpu":
            if out is None:
                taps, k = index.shape
                channels = tensor.shape()[-1 if channels_last else 1]
                out = np.empty((channels * taps, count * k), column_type(tensor.element_type()))
            _take(tensor.numpy(), channels_last, count, index, inside, out)
            return out
        return self.on_device(tensor, channels_last, count, index, inside, out)

    def on_device(
        self,
        tensor: OrtValue,
        channels_last: bool,
        count: int,
        index: NDArray[np.intp],
        inside: NDArray[np.bool_] | None = None,
        out: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Gather columns by a session; arguments and result as those of a call."""
        shape = tensor.shape()
        key = (len(shape), int(tensor.element_type()), channels_last, inside is not None)
        if key not in self._sessions:
            self._sessions[key] = self._session(*key)
        chosen = gather_feeds(shape, channels_last, count, index, inside)
        feeds = {"tensor": tensor} | upload(chosen, self._runtime.device)
        found = run(self._sessions[key], feeds, [COLUMNS], "cpu")[COLUMNS]
        if out is None:
            # A copy: columns are kept for long, and would leave holes in the runtime's arena.
            return download(found)
        out[...] = found.numpy()
        return out

    def _session(
        self, rank: int, element_type: int, channels_last: bool, masked: bool
    ) -> InferenceSession:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
        tensor = gs.Variable("tensor", dtype, [None] * rank)
        graph = gs.Graph(inputs=[tensor], opset=_OPSET, name="columns")
        GatherColumns("tensor", channels_last, masked, column_type(element_type)).run(graph)
        return self._runtime.session(gs.export_onnx(graph, ir_version=_IR))


def column_type(element_type: int) -> np.dtype[Any]:
    """Columns stay in the precision of their tensor, but never below float32."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _take(
    tensor: NDArray[Any],
    channels_last: bool,
    count: int,
    index: NDArray[np.intp],
    inside: NDArray[np.bool_] | None,
    out: NDArray[np.floating],
) -> None:
    """Do on the host what a call of the ``Gatherer`` does."""
    taps, k = index.shape
    tensor = tensor[:count]
    if channels_last:
        flat = tensor.reshape(count, -1, tensor.shape[-1])
        columns = np.take(flat, index.reshape(-1), axis=1).swapaxes(1, 2)
    else:
        columns = tensor.reshape(*tensor.shape[:2], -1)
        if taps > 1 or inside is not None or k < columns.shape[2]:  # else it is all positions
            columns = np.take(columns, index.reshape(-1), axis=2)
    if inside is not None:
        columns *= inside.reshape(-1)
    placed = columns.reshape(count, -1, taps, k).transpose(1, 2, 0, 3)
    out.reshape(placed.shape)[...] = placed
