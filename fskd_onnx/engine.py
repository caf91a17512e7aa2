"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.segment import Segment, extract, plan_segments
from fskd_onnx.providers import Runtime
from fskd_onnx.samples import Samples

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

    ``enter`` a stage, ask for ``tensors`` of every batch (the first time runs the segment),
    ``leave`` it: then what nobody reads any more is gone. What was changed in the graph behind the
    current cut takes effect.
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
            stops: for each stage, the tensors that have to exist at it.
            feeds: for each batch, the inputs of the graph.
        """
        self._runtime = runtime
        self._graph = graph
        self._stops = [tuple(stop) for stop in stops]
        self._plan = plan_segments(graph, stops)
        self._cut = [dict(feed) for feed in feeds]
        self._stage = -1
        self._session: onnxruntime.InferenceSession | None = None
        self._pending: set[int] = set()

    @property
    def _segment(self) -> Segment:
        return self._plan[self._stage]

    def enter(self) -> None:
        """Go to the next stage and compile its segment as the graph is now."""
        self._stage += 1
        if self._segment.outputs:
            types = {name: self._type_of(name) for name in self._segment.inputs}
            self._session = self._runtime.session(extract(self._graph, self._segment, types))
            self._pending = set(range(len(self._cut)))

    def tensors(self, batch: int) -> dict[str, OrtValue]:
        """Return the tensors of this stage's stop for one batch."""
        cut = self._cut[batch]
        if self._session is not None and batch in self._pending:
            feeds = {name: cut[name] for name in self._segment.inputs}
            cut |= run(self._session, feeds, self._segment.outputs, self._runtime.device)
            self._pending.remove(batch)
        return {name: cut[name] for name in self._stops[self._stage]}

    def leave(self) -> None:
        """Drop the tensors that no later stage reads."""
        for cut in self._cut:
            for name in self._segment.expired:
                cut.pop(name, None)
        self._session = None

    def _type_of(self, name: str) -> onnx.TypeProto:
        """Return the type of a tensor of the cut; an axis is fixed where all batches agree."""
        shapes = [cut[name].shape() for cut in self._cut]
        axes = zip(*shapes, strict=True)
        shape = [extents[0] if len(set(extents)) == 1 else None for extents in axes]
        return onnx.helper.make_tensor_type_proto(self._cut[0][name].element_type(), shape)


class Lockstep:
    """Student and teacher side by side, stage by stage, over the same batches."""

    def __init__(
        self,
        runtime: Runtime,
        student: gs.Graph,
        teacher: gs.Graph,
        stops: Sequence[tuple[Sequence[str], Sequence[str]]],
        samples: Samples,
        batches: Sequence[Batch],
    ) -> None:
        """Plan both networks and load the samples.

        Args:
            runtime: where to run.
            student: the compressed network, corrected as the stages go on.
            teacher: the original network; takes the same inputs in the same order.
            stops: for each stage, tensors of the student and tensors of the teacher.
            samples: the samples, named as the teacher's inputs are.
            batches: which samples run together.
        """
        self.batches = tuple(batches)
        feeds = [upload(samples.take(batch.samples), runtime.device) for batch in batches]
        names = [tensor.name for tensor in student.inputs]
        renamed = [dict(zip(names, feed.values(), strict=True)) for feed in feeds]
        self._student = Network(runtime, student, [mine for mine, _ in stops], renamed)
        self._teacher = Network(runtime, teacher, [theirs for _, theirs in stops], feeds)

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Enter the next stage; leave it with the block."""
        networks = (self._student, self._teacher)
        for network in networks:
            network.enter()
        yield
        for network in networks:
            network.leave()

    def tensors(self, index: int) -> tuple[dict[str, OrtValue], dict[str, OrtValue]]:
        """Return the student's and the teacher's tensors of this stage, for one batch."""
        return self._student.tensors(index), self._teacher.tensors(index)


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
