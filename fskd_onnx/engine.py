"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.segment import Segment, extract, join, plan_segments
from fskd_onnx.progress import observer
from fskd_onnx.providers import Runtime
from fskd_onnx.samples import SampleReader
from fskd_onnx.store import Held, Store, Tensors, is_plain, upload

# Larger batches than fit the caches are slower, in whole networks and more so in segments; this
# many input values per batch is 32 samples of 28 x 28 and 6 of 224 x 224 x 3.
_VALUES_PER_BATCH = 2**20
_BATCH_LIMITS = (4, 32)


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


class _Feed:
    """The samples of one batch, read when one of its inputs is first asked for, then kept."""

    def __init__(self, samples: SampleReader, batch: Batch, store: Store, device: str) -> None:
        self._read_all = partial(samples.take, batch.samples)
        self._store = store
        self._device = device

    @cached_property
    def inputs(self) -> dict[str, Held]:
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


class Network:
    """One network on its way through its segments.

    ``enter`` a stage, ask for ``tensors`` of some batches (the first time runs the segment), and
    ``leave`` it: then what nobody reads any more is gone. A batch that is not asked for stays where
    it is, and runs all segments that it has missed as one when its time comes. What was changed in
    the graph behind a batch's cut takes effect.
    """

    def __init__(
        self,
        runtime: Runtime,
        graph: gs.Graph,
        stops: Sequence[Sequence[str]],
        batches: Sequence[Batch],
        feeds: Sequence[Mapping[str, Held]],
        store: Store,
    ) -> None:
        """Plan the segments.

        Args:
            runtime: where to run.
            graph: the network; nodes behind the current cut may be rewritten between stages.
            stops: for each stage, the tensors that have to exist at it.
            batches: which samples run together.
            feeds: for each batch, the inputs of the graph.
            store: keeps what crosses the cut.
        """
        self._runtime = runtime
        self._graph = graph
        self._stops = [tuple(stop) for stop in stops]
        self._plan = plan_segments(graph, stops)
        self._batches = batches
        self._cut = [dict(feed) for feed in feeds]
        self._store = store
        self._stage = -1
        self._reached = [-1] * len(batches)  # the stage that each batch has run up to
        self._sessions: dict[tuple[int, tuple[str, ...]], onnxruntime.InferenceSession] = {}

    def enter(self, text: str, asked: Collection[int] | None = None) -> None:
        """Go to the next stage.

        Args:
            text: what to call the stage while it runs.
            asked: which batches will be asked for; ``None``: all of them.
        """
        self._stage += 1
        batches = self._batches if asked is None else [self._batches[index] for index in asked]
        observer().start(text, sum(batch.count for batch in batches))

    def tensors(self, batch: int) -> dict[str, OrtValue]:
        """Return the tensors of this stage's stop for one batch; they may be asked for again."""
        stop = self._stops[self._stage]
        made = self._run(batch, stop, keep=stop)
        cut = self._cut[batch]
        return {name: made[name] if name in made else cut[name].value() for name in stop}

    def tensors_once(
        self, batch: int, wanted: Collection[str] | None = None
    ) -> dict[str, OrtValue]:
        """Return the same; then only what later stages read is kept.

        Args:
            batch: whose tensors.
            wanted: those of the stop that are asked for, where not all are. A segment that shows
                fewer of them runs faster: the runtime then merges more of its nodes.
        """
        stop = [n for n in self._stops[self._stage] if wanted is None or n in wanted]
        cut = self._cut[batch]
        ready = {name: cut[name].value() for name in stop if name in cut}
        return ready | self._run(batch, stop)

    def leave(self) -> None:
        """Drop the tensors that no later stage reads."""
        for cut, reached in zip(self._cut, self._reached, strict=True):
            for name in self._plan[self._stage].expired if reached == self._stage else ():
                cut.pop(name, None)
        self._sessions = {}

    def _run(
        self, batch: int, wanted: Collection[str], keep: Collection[str] = ()
    ) -> dict[str, OrtValue]:
        """Bring one batch to the current stage, if it is not there yet.

        Args:
            batch: which one.
            wanted: what to compute besides what later stages read.
            keep: what to keep in the cut besides that.
        """
        missed = self._plan[self._reached[batch] + 1 : self._stage + 1]
        if not missed:
            return {}
        segment, cut = join(missed), self._cut[batch]
        expired = set(segment.expired)
        outputs = tuple(n for n in segment.outputs if n in wanted or n not in expired)
        made: dict[str, OrtValue] = {}
        if outputs:
            session = self._session(self._reached[batch], replace(segment, outputs=outputs))
            feeds = {name: cut[name].value() for name in segment.inputs}
            made = run(session, feeds, outputs, self._runtime.device)
            del feeds
        dropped = expired.difference(keep)
        for name in dropped:
            cut.pop(name, None)
        for name, value in made.items():
            if name not in dropped:
                cut[name] = self._store.keep(value)
        self._reached[batch] = self._stage
        observer().advance(self._batches[batch].count)
        return made

    def _session(self, reached: int, segment: Segment) -> onnxruntime.InferenceSession:
        """Compile a segment as the graph is now, for batches that have reached the same stage."""
        key = reached, segment.outputs
        if key not in self._sessions:
            cuts = [c for c, at in zip(self._cut, self._reached, strict=True) if at == reached]
            types = {name: _type_of([cut[name] for cut in cuts]) for name in segment.inputs}
            self._sessions[key] = self._runtime.session(extract(self._graph, segment, types))
        return self._sessions[key]


def _type_of(tensors: Sequence[Held]) -> onnx.TypeProto:
    """Return the type of a tensor of several batches; an axis is fixed where all agree."""
    axes = zip(*(tensor.shape for tensor in tensors), strict=True)
    shape = [extents[0] if len(set(extents)) == 1 else None for extents in axes]
    return onnx.helper.make_tensor_type_proto(tensors[0].element_type, shape)


def read_lazily(
    samples: SampleReader, batches: Sequence[Batch], store: Store, device: str
) -> list[dict[str, Held]]:
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
    return dict(zip(outputs, map(_detached, binding.get_outputs()), strict=True))


def _detached(value: OrtValue) -> OrtValue:
    """Return a tensor without its binding, which would keep all others of the run in memory.

    Also those that it was fed, and the bindings that they come from: one tensor of the last segment
    would hold on to every activation before it.
    """
    return OrtValue.from_dlpack(value) if is_plain(value) else value
