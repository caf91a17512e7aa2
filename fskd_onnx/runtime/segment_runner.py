"""Run networks segment by segment: every node once per batch, only the cut kept in between."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.segments import Segment, join, plan_segments
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.progress import observer
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore
from fskd_onnx.samples.batches import Batch


class SegmentRunner:
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
        feeds: Sequence[Mapping[str, StoredTensor]],
        store: TensorStore,
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


def _type_of(tensors: Sequence[StoredTensor]) -> onnx.TypeProto:
    """Return the type of a tensor of several batches; an axis is fixed where all agree."""
    axes = zip(*(tensor.shape for tensor in tensors), strict=True)
    shape = [extents[0] if len(set(extents)) == 1 else None for extents in axes]
    return onnx.helper.make_tensor_type_proto(tensors[0].element_type, shape)
