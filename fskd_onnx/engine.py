"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.segment import Segment, extract, plan_segments
from fskd_onnx.providers import Runtime

Tensors = Mapping[str, NDArray[np.generic]]

# Where activations of a batch fit the caches, larger batches gain nothing; this many input values
# per batch is 64 samples of 28 x 28 and 14 of 224 x 224 x 3.
_VALUES_PER_BATCH = 2**21
_BATCH_LIMITS = (8, 64)


@dataclass(frozen=True)
class Batch:
    """Samples that run together.

    Attributes:
        samples: (size,) indices; where the model has a fixed batch size, the last is repeated.
        count: how many of them count; the rest is padding.
        fold: the fold of cross-validation that all of them belong to.
    """

    samples: NDArray[np.intp]
    count: int
    fold: int


def plan_batches(
    folds: Sequence[NDArray[np.intp]], size: int, fixed_size: int | None
) -> list[Batch]:
    """Divide samples into batches that never straddle folds.

    Args:
        folds: sample indices of each fold.
        size: samples per batch, at most; folds are divided evenly.
        fixed_size: the batch size that a model insists on; batches are padded to it.
    """
    batches = []
    for fold, members in enumerate(folds):
        parts = math.ceil(len(members) / (fixed_size or size))
        if fixed_size is None:
            for part in np.array_split(members, parts):
                batches.append(Batch(part, len(part), fold))
            continue
        for start in range(0, len(members), fixed_size):
            part = members[start : start + fixed_size]
            batches.append(Batch(np.resize(part, fixed_size), len(part), fold))
    return batches


def default_batch_size(sample: Tensors) -> int:
    """Choose a batch size from the tensors of one sample."""
    values = sum(array.size for array in sample.values())
    low, high = _BATCH_LIMITS
    return int(np.clip(_VALUES_PER_BATCH // max(values, 1), low, high))


class Network:
    """One network on its way through its segments, all batches in step.

    ``enter`` a stage, ``step`` every batch through it, ``leave`` it: then the tensors that nobody
    reads any more are gone. What was changed in the graph behind the current cut takes effect.
    """

    def __init__(
        self,
        runtime: Runtime,
        graph: gs.Graph,
        stops: Sequence[Sequence[str]],
        feeds: Sequence[Mapping[str, OrtValue]],
    ) -> None:
        """Plan the segments.

        Args:
            runtime: where to run.
            graph: the network; nodes behind the current cut may be rewritten between stages.
            stops: for each stage, the tensors that ``step`` returns.
            feeds: for each batch, the inputs of the graph.
        """
        self._runtime = runtime
        self._graph = graph
        self._stops = [tuple(stop) for stop in stops]
        self._plan = plan_segments(graph, stops)
        self._cut = [dict(feed) for feed in feeds]
        self._stage = -1
        self._session: onnxruntime.InferenceSession | None = None

    @property
    def _segment(self) -> Segment:
        return self._plan[self._stage]

    def enter(self) -> None:
        """Go to the next stage and compile its segment as the graph is now."""
        self._stage += 1
        self._session = None
        if self._segment.outputs:
            types = {name: self._type_of(name) for name in self._segment.inputs}
            self._session = self._runtime.session(extract(self._graph, self._segment, types))

    def step(self, batch: int) -> dict[str, OrtValue]:
        """Run the segment for one batch; return the tensors of this stage's stop."""
        cut = self._cut[batch]
        if self._session is not None:
            feeds = {name: cut[name] for name in self._segment.inputs}
            cut |= run(self._session, feeds, self._segment.outputs, self._runtime.device)
        return {name: cut[name] for name in self._stops[self._stage]}

    def leave(self) -> None:
        """Drop the tensors that no later stage reads."""
        for cut in self._cut:
            for name in self._segment.expired:
                cut.pop(name, None)
        self._session = None

    def _type_of(self, name: str) -> onnx.TypeProto:
        """Return the type of a tensor of the cut; an axis is fixed where all batches agree on it."""
        shapes = [cut[name].shape() for cut in self._cut]
        shape = [extents[0] if len(set(extents)) == 1 else None for extents in zip(*shapes)]
        return onnx.helper.make_tensor_type_proto(self._cut[0][name].element_type(), shape)


def run(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, OrtValue],
    outputs: Sequence[str],
    device: str,
) -> dict[str, OrtValue]:
    """Run a session without moving tensors off the device."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    return dict(zip(outputs, binding.get_outputs(), strict=True))


def upload(tensors: Tensors, device: str) -> dict[str, OrtValue]:
    """Put arrays where sessions read them; on the CPU that copies nothing."""
    return {
        name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device)
        for name, array in tensors.items()
    }
