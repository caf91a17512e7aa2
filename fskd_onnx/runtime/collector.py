"""Run a network and collect columns of some of its tensors, batch after batch.

Matching, the choice of channels and the teacher of a fit all look at activations at sampled
positions: they say of which tensors and by which ``Sampling``, and get matrices::

    tensor (N, channels, positions...)  ──▶  (channels, samples x positions)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.runtime.column_sampling import BatchOffset, Sampling, batch_offsets
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.samples.batches import Batch


@dataclass(frozen=True)
class ColumnRequest:
    """Which columns to collect of tensors that share their positions.

    Attributes:
        tensors: their names. The positions are those of the first; another one is left out where
            it has others, as a summand that broadcasts has.
        channels_last: whether their channels are on the last axis, not on axis 1.
        sampling: which columns.
    """

    tensors: tuple[str, ...]
    channels_last: bool
    sampling: Sampling

    def positions(self, shape: Sequence[int]) -> int:
        """Return the number of positions of one row of a tensor."""
        return math.prod(shape[1:-1] if self.channels_last else shape[2:])

    def as_rows(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return rows, positions of each, and channels."""
        return shape[0], self.positions(shape), shape[-1 if self.channels_last else 1]

    def alike(self, one: Sequence[int], other: Sequence[int]) -> bool:
        """Whether two tensors have the same columns, be it that one has several axes of positions.

        Those of (N, T, C) are those of (N, H, W, C), where T is H x W.
        """
        if len(one) == len(other):
            return tuple(one) == tuple(other)
        return self.channels_last and self.as_rows(one) == self.as_rows(other)


@dataclass(frozen=True)
class Columns:
    """What was collected for a request in one batch.

    Attributes:
        count: rows of the tensors that the columns come from, the first ones.
        positions: (k,) positions in each row.
        shape: of the first tensor.
        values: (channels, count * k) of each tensor that was not left out.
    """

    count: int
    positions: NDArray[np.intp]
    shape: tuple[int, ...]
    values: tuple[NDArray[np.floating], ...]


Apply: TypeAlias = Callable[[Callable[[int], Columns | None], list[int]], Iterable[Columns | None]]


def collect(
    stage: Stage,
    batches: Sequence[Batch],
    requests: Sequence[ColumnRequest],
    gather: Gatherer,
    apply: Apply = map,
) -> Iterator[tuple[int, list[Columns | None]]]:
    """Run a stage and collect columns.

    Args:
        stage: whose stop holds the tensors of all requests.
        batches: all that the network runs on.
        requests: what to collect.
        gather: gathers columns.
        apply: applies the gathering to the requests of a batch: ``map``, or that in threads.

    Yields:
        The number of a batch, and the columns of each request; None where its sampling takes none
        of this batch, or where its first tensor does not hold samples.
    """
    offsets = batch_offsets(batches)
    needed: list[list[int]] = [
        [n for n, request in enumerate(requests) if stage.has_samples(request.tensors[0])]
    ]
    for offset in offsets:
        columns: list[Columns | None] = [None] * len(requests)
        running = needed[offset.index]
        if running:
            names = {name for number in running for name in requests[number].tensors}
            # The work alone holds the tensors: they go before the next batch needs as much memory.
            work = partial(
                _collect_one, gather, requests, offset, stage.tensors_once(offset.index, names)
            )
            for number, found in zip(running, apply(work, running), strict=True):
                columns[number] = found
            del work
        if offset.index == 0:
            shapes = [found.shape if found is not None else () for found in columns]
            needed = _needed(requests, shapes, offsets)
        yield offset.index, columns


def _needed(
    requests: Sequence[ColumnRequest], shapes: Sequence[tuple[int, ...]], offsets: list[BatchOffset]
) -> list[list[int]]:
    """Return the requests to serve of each batch, once shapes are known from the first one.

    Most batches may do without most requests: where there are many samples, a tensor with many
    positions is looked at in a few of them. Each combination of tensors is a session of its own, so
    there are two: the one that most batches do with, and all tensors for the others.
    """
    first = len(offsets[0].batch.samples)

    def reaches(number: int, offset: BatchOffset) -> bool:
        request, shape = requests[number], shapes[number]
        if not shape:
            return False
        rows = shape[0] // first * len(offset.batch.samples)
        return request.sampling.reaches(offset, rows, request.positions(shape))

    everything = list(range(len(requests)))
    reached = [frozenset(n for n in everything if reaches(n, offset)) for offset in offsets]
    usual, times = Counter(reached).most_common(1)[0]
    few = sorted(usual)
    if 2 * times <= len(reached):
        few = everything
    return [few if numbers <= usual else everything for numbers in reached]


def _collect_one(
    gather: Gatherer,
    requests: Sequence[ColumnRequest],
    offset: BatchOffset,
    tensors: Mapping[str, OrtValue],
    number: int,
) -> Columns | None:
    request = requests[number]
    shape = tuple(tensors[request.tensors[0]].shape())
    count, chosen = request.sampling.choose(offset, shape[0], request.positions(shape))
    if count == 0:
        return None
    values = tuple(
        gather(tensors[name], request.channels_last, count, chosen[np.newaxis])
        for name in request.tensors
        if request.alike(tensors[name].shape(), shape)
    )
    return Columns(count, chosen, shape, values)
