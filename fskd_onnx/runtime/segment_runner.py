"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.segments import Segment, join, plan_segments
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.progress import observer
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
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
    ) -> None:
        """Plan the segments.

        Args:
            runtime: where to run.
            graph: the network; nodes behind the current cut may be rewritten between stages.
            stops: for each stage, the tensors that have to exist at it.
            batches: which samples run together.
            samples: inputs of the graph, in its order, under whatever names. Their store keeps
                what crosses the cut.
        """
        self._runtime = runtime
        self._graph = graph
        self._stops = [tuple(stop) for stop in stops]
        self._plan = plan_segments(graph, stops)
        self._batches = batches
        names = [tensor.name for tensor in graph.inputs]
        self._cut = [dict(zip(names, samples.feeds(batch), strict=True)) for batch in batches]
        self._store = samples.store
        self._stages = iter(range(len(stops)))
        self._reached = [-1] * len(batches)  # the stage that each batch has run up to
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
        made = self._run(stage, batch, stop, keep=stop)
        cut = self._cut[batch]
        return {name: made[name] if name in made else cut[name].value() for name in stop}

    def _tensors_once(
        self, stage: int, batch: int, names: Collection[str] | None
    ) -> dict[str, OrtValue]:
        stop = [n for n in self._stops[stage] if names is None or n in names]
        cut = self._cut[batch]
        ready = {name: cut[name].value() for name in stop if name in cut}
        return ready | self._run(stage, batch, stop)

    def _run(
        self, stage: int, batch: int, names: Collection[str], keep: Collection[str] = ()
    ) -> dict[str, OrtValue]:
        """Bring one batch to a stage, if it is not there yet.

        Args:
            stage: the current one.
            batch: which one.
            names: what to compute besides what later stages read.
            keep: what to keep in the cut besides that.
        """
        missed = self._plan[self._reached[batch] + 1 : stage + 1]
        if not missed:
            return {}
        segment, cut = join(missed), self._cut[batch]
        expired = set(segment.expired)
        outputs = tuple(n for n in segment.outputs if n in names or n not in expired)
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
        self._reached[batch] = stage
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
        """Return the tensors of this stage's stop for one batch; they may be asked for again."""
        return self._runner._tensors(self._number, batch)

    def tensors_once(self, batch: int, names: Collection[str] | None = None) -> dict[str, OrtValue]:
        """Return the same; then only what later stages read is kept.

        Args:
            batch: whose tensors.
            names: those of the stop to return, where not all are needed. A segment that shows
                fewer of them runs faster: the runtime then fuses more of its nodes.
        """
        return self._runner._tensors_once(self._number, batch, names)


def _type_of(tensors: Sequence[StoredTensor]) -> onnx.TypeProto:
    """Return the type of a tensor of several batches; an axis is fixed where all agree."""
    axes = zip(*(tensor.shape for tensor in tensors), strict=True)
    shape = [extents[0] if len(set(extents)) == 1 else None for extents in axes]
    return onnx.helper.make_tensor_type_proto(tensors[0].element_type, shape)
