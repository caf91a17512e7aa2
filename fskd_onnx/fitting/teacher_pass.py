"""The teacher's forward pass, and the columns of its block outputs that students are fitted to.

The teacher depends on nothing that is fitted. So it runs over many blocks in one session, as a
plain forward pass would, and its columns are kept until a student reaches the block: by default
those of all blocks, else those of one window of blocks after another::

    teacher   ═══ blocks 1-9 ═══▶ ║ ═══ blocks 10-13 ═══▶            columns of each block
    student   ─▶ 1 ─▶ 2 ─▶ 3 ─▶ ... ─▶ 9 ─▶ 10 ─▶ ...                fitted to them, one by one

Both networks read the same samples, once. What else has to be known of the teacher's tensors is
summed in the first such pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.fitting.block_plan import BlockPlan
from fskd_onnx.fitting.input_grams import InputGrams
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes.analysis.shapes import infer_shapes
from fskd_onnx.runtime.collector import ColumnRequest, Columns, collect
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore
from fskd_onnx.samples.batches import Batch

# Size of the columns of a window. Larger windows save cuts, of which few are left at this size.
_WINDOW_BYTES = 2**29
# Size of the tensors of a batch that a run shows at once: none of them makes room for another.
_SHOWN_BYTES = 2**26


@dataclass(frozen=True)
class TargetColumns:
    """The teacher's columns of one block in one batch.

    Attributes:
        count: rows of the batch's tensors that they come from, the first ones.
        positions: (k,) positions in each.
        shape: of the teacher's block output.
        targets: (channels, columns) of the block output.
        sums: (channels, columns) of the sum; None where it broadcasts, or there is none.
    """

    count: int
    positions: NDArray[np.intp]
    shape: tuple[int, ...]
    targets: StoredTensor
    sums: StoredTensor | None

    @staticmethod
    def keep(found: Columns, store: TensorStore) -> TargetColumns:
        """Move collected columns to a store."""
        targets, *sums = (store.keep(OrtValue.ortvalue_from_numpy(v)) for v in found.values)
        of_sum = sums[0] if sums else None
        return TargetColumns(found.count, found.positions, found.shape, targets, of_sum)

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.count * len(self.positions)


class TeacherPass:
    """The teacher's columns of every block; it runs when those of a block are first asked for.

    Attributes:
        plans: of each block, in the order in which they are fitted.
        batches: which samples run together.
        gather: gathers columns.
    """

    def __init__(
        self,
        runtime: Runtime,
        teacher: gs.Graph,
        plans: Sequence[BlockPlan],
        samples: DecodedSamples,
        batches: Sequence[Batch],
        grams: InputGrams | None = None,
    ) -> None:
        """Plan; nothing is read or run yet.

        Args:
            runtime: where to run.
            teacher: the original network.
            plans: of each block, in the order in which they are fitted.
            samples: inputs of both networks; their store keeps the columns too.
            batches: which samples run together.
            grams: what to sum of tensors that blocks read.
        """
        self.plans = tuple(plans)
        self.batches = tuple(batches)
        self.gather = Gatherer(runtime)
        self._runtime = runtime
        self._teacher = teacher
        self._samples = samples
        self._elements = _elements(teacher, samples, self.batches)
        self._windows = _windows(plans, self._elements)
        self._grams = grams
        self._summed = -1  # the last window that these were summed in
        self._at = -1
        self._runner: SegmentRunner | None = None
        self._columns: dict[int, list[dict[int, TargetColumns]]] = {}

    def runner_of(self, student: gs.Graph) -> SegmentRunner:
        """Return what runs a student on the same samples, to stop where the blocks need it to."""
        stops = [plan.student_tensors for plan in self.plans]
        last = _channels_last(
            (use.columns_last, use.student_tensors) for plan in self.plans for use in plan.uses
        )
        return SegmentRunner(self._runtime, student, stops, self.batches, self._samples, last)

    def names(self, samples: Iterable[int]) -> list[str]:
        """Return what to call samples in reports, each once; copies have the name of theirs."""
        return list(dict.fromkeys(map(self._samples.describe, sorted(samples))))

    def columns(self, block: int, use: int = 0) -> Mapping[int, TargetColumns]:
        """Return the columns of a use of a block, by batch; not all batches have some.

        The teacher runs up to the window of the block, where it is not there. Columns of other
        windows are dropped; for an earlier window it starts from the front.

        Args:
            block: number of the block.
            use: number of the use.
        """
        self._advance(next(i for i, blocks in enumerate(self._windows) if block in blocks))
        return self._columns[block][use]

    def sum_grams(self) -> None:
        """Run up to the end, if that was not done yet."""
        if self._summed < len(self._windows) - 1:
            self._advance(len(self._windows) - 1)

    def batches_of(self, block: int) -> list[int]:
        """Return the batches that some use of a block has columns in."""
        uses = range(len(self.plans[block].uses))
        return sorted({batch for use in uses for batch in self.columns(block, use)})

    def _advance(self, window: int) -> None:
        """Run up to a window, from the front where the teacher is behind it."""
        if self._runner is None or window < self._at:
            every = [
                [*self._requests(part), *self._summed_in(part).values()]
                for w in self._windows
                for part in self._parts(w)
            ]
            stops = [
                list(dict.fromkeys(t for request in of_part for t in request.tensors))
                for of_part in every
            ]
            last = _channels_last(
                (request.channels_last, request.tensors) for of_part in every for request in of_part
            )
            self._runner = SegmentRunner(
                self._runtime, self._teacher, stops, self.batches, self._samples, last
            )
            self._at = -1
        while self._at < window:
            self._at += 1
            self._run(self._runner, self._windows[self._at])

    def _requests(self, window: range) -> list[ColumnRequest]:
        return [use.teacher_columns for block in window for use in self.plans[block].uses]

    def _summed_in(self, window: range) -> dict[str, ColumnRequest]:
        """Return the tensors to sum while a window runs: those that its blocks read.

        Those of blocks that are not fitted are summed last.
        """
        if self._grams is None:
            return {}
        outputs = {use.partner.output.name: p.index for p in self.plans for use in p.uses}
        requests, last = self._grams.requests, len(self.plans) - 1
        read_at = {name: outputs.get(by, last) for name, by in self._grams.read_by.items()}
        return {name: requests[name] for name, at in read_at.items() if at in window}

    def _parts(self, window: range) -> list[range]:
        """Divide the blocks of a window into runs that show tensors of some size."""
        parts: list[range] = []
        size = 0
        for block in window:
            alone = range(block, block + 1)
            requests = [*self._requests(alone), *self._summed_in(alone).values()]
            shown = {name for request in requests for name in request.tensors}
            own = 4 * sum(self._elements.get(name, 0) for name in shown) // len(self.batches)
            size += own
            if not parts or size > _SHOWN_BYTES:
                parts.append(range(block, block))
                size = own
            parts[-1] = range(parts[-1].start, block + 1)
        return parts

    def _run(self, runner: SegmentRunner, window: range) -> None:
        self._columns = {block: [{} for _ in self.plans[block].uses] for block in window}
        for part in self._parts(window):
            self._run_part(runner, part)
        self._summed = max(self._summed, self._at)

    def _run_part(self, runner: SegmentRunner, part: range) -> None:
        requests = self._requests(part)
        summed = self._summed_in(part) if self._at > self._summed else {}
        places = [use for block in part for use in self._columns[block]]
        text = f"teacher, blocks {part.start + 1} to {part.stop} of {len(self.plans)}"
        wanted = [*requests, *summed.values()]
        with runner.next_stage(text) as stage:
            for batch, found in collect(stage, self.batches, wanted, self.gather, parallel_map):
                for of_use, columns in zip(places, found[: len(places)], strict=True):
                    if columns is not None:
                        of_use[batch] = TargetColumns.keep(columns, self._samples.store)
                if self._grams is not None:
                    read = list(zip(summed, found[len(places) :], strict=True))
                    list(parallel_map(self._grams.add, read))


def _channels_last(tensors: Iterable[tuple[bool, Sequence[str]]]) -> set[str]:
    """Return the tensors that are read with their channels on the last axis, and never else.

    Args:
        tensors: names, and whether they are read so.
    """
    read: dict[bool, set[str]] = {True: set(), False: set()}
    for last, names in tensors:
        read[last].update(names)
    return read[True] - read[False]


def _elements(graph: gs.Graph, samples: DecodedSamples, batches: Sequence[Batch]) -> dict[str, int]:
    """Return how many elements tensors have in all batches together, where shapes tell."""
    # Shapes of one batch: of all samples at once, vectors would be long (``tensor_axes``).
    sizes = [len(batch.samples) for batch in batches]
    known = infer_shapes(graph, samples.shapes_of(graph, sizes[0])).items()
    return {
        name: math.prod(filter(None, shape)) * sum(sizes) // sizes[0]
        for name, shape in known
        if None not in shape
    }


def _windows(plans: Sequence[BlockPlan], elements: Mapping[str, int]) -> list[range]:
    """Divide the blocks into runs whose columns may lie in memory together.

    Args:
        plans: of the blocks.
        elements: see ``BlockUse.bytes``.
    """
    windows: list[range] = []
    size = 0
    for plan in plans:
        size += plan.bytes(elements)
        if not windows or size > _WINDOW_BYTES:
            windows.append(range(plan.index, plan.index))
            size = plan.bytes(elements)
        windows[-1] = range(windows[-1].start, plan.index + 1)
    return windows
