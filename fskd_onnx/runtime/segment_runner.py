"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.segments import Segment, join, plan_segments
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.progress import observer
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import FoundAxis, SampleAxis
from fskd_onnx.runtime.session_run import named_errors, run
from fskd_onnx.runtime.tensor_axes import find_axes, run_size
from fskd_onnx.runtime.tensor_store import StoredTensor
from fskd_onnx.samples.batches import Batch


class SegmentRunner:
    """Runs one network up to one stage after another.

    ::

        with runner.next_stage("block 3 of 13") as stage:
            for batch in range(len(batches)):
                tensors = stage.tensors(batch)

    The first time that a stage is asked for the tensors of a batch, the segment runs. A batch that
    is not asked for stays where it is, and runs all segments that it has missed as one when its
    time comes. What was changed in the graph behind a batch's cut takes effect. When a stage is
    left, tensors that no later stage reads are dropped.
    """

    def __init__(
        self,
        runtime: Runtime,
        graph: gs.Graph,
        stops: Sequence[Sequence[str]],
        batches: Sequence[Batch],
        samples: DecodedSamples,
        channels_last: Collection[str] = (),
    ) -> None:
        """Plan the segments.

        Args:
            runtime: where to run.
            graph: the network; nodes behind the current cut may be rewritten between stages.
            stops: for each stage, the tensors that have to exist at it.
            batches: which samples run together.
            samples: inputs of the graph, in its order, under whatever names. Their store keeps
                what crosses the cut.
            channels_last: tensors whose channels are on the last axis, so that the rows of a sample
                are positions as others are.
        """
        self._runtime = runtime
        self._graph = graph
        self._stops = [tuple(stop) for stop in stops]
        self._plan = plan_segments(graph, stops)
        self._batches = batches
        names = [tensor.name for tensor in graph.inputs]
        self._samples = samples
        self._channels_last = frozenset(channels_last)
        # A batch may be several runs of a network that takes fewer samples at once.
        size = run_size(graph, samples)
        self._parts: list[range] = []
        self._cut: list[dict[str, StoredTensor]] = []
        for batch in batches:
            count = len(batch.samples)
            starts = range(0, count, size or count)
            self._parts.append(range(len(self._cut), len(self._cut) + len(starts)))
            for start in starts:
                part = None if len(starts) == 1 else slice(start, start + starts.step)
                self._cut.append(dict(zip(names, samples.feeds(batch, part), strict=True)))
        self._store = samples.store
        self._stages = iter(range(len(stops)))
        self._reached = [-1] * len(self._cut)  # the stage that each part has run up to
        self._sessions: dict[tuple[int, tuple[str, ...]], onnxruntime.InferenceSession] = {}

    @contextmanager
    def next_stage(self, text: str, batches: Collection[int] | None = None) -> Iterator[Stage]:
        """Go to the next stage; it is left with the ``with`` block.

        Args:
            text: what to call the stage while it runs.
            batches: which of them will be asked for; ``None``: all of them.
        """
        number = next(self._stages)
        running = self._batches if batches is None else [self._batches[i] for i in batches]
        observer().start(text, sum(batch.count for batch in running))
        yield Stage(self, number)
        for cut, reached in zip(self._cut, self._reached, strict=True):
            for name in self._plan[number].expired if reached == number else ():
                cut.pop(name, None)
        self._sessions = {}

    def _tensors(self, stage: int, batch: int) -> dict[str, OrtValue]:
        stop = self._stops[stage]
        parts = []
        for part in self._parts[batch]:
            made, cut = self._run(stage, batch, part, stop, keep=stop), self._cut[part]
            parts.append({name: made[name] if name in made else cut[name].value() for name in stop})
        return self._samples_first(parts)

    def _tensors_once(
        self, stage: int, batch: int, names: Collection[str] | None
    ) -> dict[str, OrtValue]:
        stop = [n for n in self._stops[stage] if names is None or n in names]
        parts = []
        for part in self._parts[batch]:
            cut = self._cut[part]
            ready = {name: cut[name].value() for name in stop if name in cut}
            made = self._run(stage, batch, part, stop)
            parts.append({name: made[name] if name in made else ready[name] for name in stop})
        return self._samples_first(parts)

    def _samples_first(self, parts: Sequence[Mapping[str, OrtValue]]) -> dict[str, OrtValue]:
        """Join the tensors of a batch's parts, sample after sample along their first axis.

        The rows of a sample become an axis of their own in a matrix, and in other tensors whose
        channels are on the last axis: positions, however samples are flattened. A tensor that does
        not hold samples stays as it is.
        """
        tensors = {}
        for name, value in parts[0].items():
            axis = self._axes[name]
            own_axis = name in self._channels_last or len(value.shape()) == 2
            as_it_is = isinstance(axis, SampleAxis) and axis.is_first and len(parts) == 1
            if not isinstance(axis, SampleAxis) or (as_it_is and not (own_axis and axis.rows > 1)):
                tensors[name] = value
                continue
            arrays = [part[name].numpy() for part in parts]
            arrange = axis.by_sample if own_axis else axis.first
            joined = np.concatenate([arrange(array) for array in arrays])
            tensors[name] = OrtValue.ortvalue_from_numpy(joined, self._runtime.device)
        return tensors

    @cached_property
    def _axes(self) -> dict[str, FoundAxis]:
        """Where the samples lie in the tensors of all stops."""
        names = list(dict.fromkeys(name for stop in self._stops for name in stop))
        return find_axes(self._runtime, self._graph, self._samples, self._batches, names)

    def _has_samples(self, name: str) -> bool:
        return isinstance(self._axes[name], SampleAxis)

    def _run(
        self, stage: int, batch: int, part: int, names: Collection[str], keep: Collection[str] = ()
    ) -> dict[str, OrtValue]:
        """Bring one part of a batch to a stage, if it is not there yet.

        Args:
            stage: the current one.
            batch: which batch.
            part: which part of all batches' parts.
            names: what to compute besides what later stages read.
            keep: what to keep in the cut besides that.
        """
        missed = self._plan[self._reached[part] + 1 : stage + 1]
        if not missed:
            return {}
        segment, cut = join(missed), self._cut[part]
        expired = set(segment.expired)
        outputs = tuple(n for n in segment.outputs if n in names or n not in expired)
        made: dict[str, OrtValue] = {}
        if outputs:
            with named_errors(self._graph.name):
                session = self._session(self._reached[part], replace(segment, outputs=outputs))
                feeds = {name: cut[name].value() for name in segment.inputs}
                made = run(session, feeds, outputs, self._runtime.device)
            del feeds
        dropped = expired.difference(keep)
        for name in dropped:
            cut.pop(name, None)
        for name, value in made.items():
            if name not in dropped:
                cut[name] = self._store.keep(value)
        self._reached[part] = stage
        if part == self._parts[batch][-1]:
            observer().advance(self._batches[batch].count)
        return made

    def _last_tensors(self, stage: int, graph: gs.Graph) -> Iterator[dict[str, OrtValue]]:
        for batch in range(len(self._batches)):
            self._tensors(stage, batch)
        wanted = self._stops[-1]
        made = tuple(name for name in wanted if name not in self._cut[0])
        segment = replace(join(self._plan[stage + 1 :]), outputs=made)
        with named_errors(graph.name):
            session = self._compiled(graph, stage, segment) if made else None
            for parts in self._parts:
                found = []
                for cut in (self._cut[part] for part in parts):
                    tensors = {name: cut[name].value() for name in wanted if name in cut}
                    if session is not None:
                        feeds = {name: cut[name].value() for name in segment.inputs}
                        tensors |= run(session, feeds, made, self._runtime.device)
                    found.append(tensors)
                yield self._samples_first(found)

    def _session(self, reached: int, segment: Segment) -> onnxruntime.InferenceSession:
        """Compile a segment as the graph is now, for parts that have reached the same stage."""
        key = reached, segment.outputs
        if key not in self._sessions:
            self._sessions[key] = self._compiled(self._graph, reached, segment)
        return self._sessions[key]

    def _compiled(
        self, graph: gs.Graph, reached: int, segment: Segment
    ) -> onnxruntime.InferenceSession:
        cuts = [c for c, at in zip(self._cut, self._reached, strict=True) if at == reached]
        types = {name: _type_of([cut[name] for cut in cuts]) for name in segment.inputs}
        return self._runtime.session(extract(graph, segment, types))


class Stage:
    """A stage that a network has reached; ``SegmentRunner.next_stage`` makes it."""

    def __init__(self, runner: SegmentRunner, number: int) -> None:
        """Refer to the network.

        Args:
            runner: the network.
            number: of the stage.
        """
        self._runner = runner
        self._number = number

    def tensors(self, batch: int) -> dict[str, OrtValue]:
        """Return the tensors of this stage's stop for one batch; they may be asked for again.

        Samples follow each other along the first axis, with all of their rows, wherever they lie in
        the network's tensors.
        """
        return self._runner._tensors(self._number, batch)

    def has_samples(self, name: str) -> bool:
        """Whether a tensor of the stop holds samples, so that they are on its first axis."""
        return self._runner._has_samples(name)

    def tensors_once(self, batch: int, names: Collection[str] | None = None) -> dict[str, OrtValue]:
        """Return the same; then only what later stages read is kept.

        Args:
            batch: whose tensors.
            names: those of the stop to return, where not all are needed. A segment that shows
                fewer of them runs faster: the runtime then fuses more of its nodes.
        """
        return self._runner._tensors_once(self._number, batch, names)

    def last_tensors(self, graph: gs.Graph) -> Iterator[dict[str, OrtValue]]:
        """Run what is behind this stage as another graph has it, and leave all where it is.

        Args:
            graph: the network, rewritten behind this stage; tensors that the nodes in front of it
                give have the names that they had.

        Yields:
            The tensors of the last stop, as `tensors` returns them, batch after batch.
        """
        return self._runner._last_tensors(self._number, graph)


def _type_of(tensors: Sequence[StoredTensor]) -> onnx.TypeProto:
    """Return the type of a tensor of several batches; an axis is fixed where all agree."""
    axes = zip(*(tensor.shape for tensor in tensors), strict=True)
    shape = [extents[0] if len(set(extents)) == 1 else None for extents in axes]
    return onnx.helper.make_tensor_type_proto(tensors[0].element_type, shape)
