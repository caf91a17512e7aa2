"""The teacher, running ahead of the students that follow it.

It depends on nothing that is fitted. So it runs over many blocks in one session, as a plain forward
pass would, and leaves its columns for when a student gets there: by default all of them, else
window after window of blocks::

    teacher   ═══ blocks 1-9 ═══▶ ║ ═══ blocks 10-13 ═══▶            columns of each block
    student   ─▶ 1 ─▶ 2 ─▶ 3 ─▶ ... ─▶ 9 ─▶ 10 ─▶ ...                fitted with them, one by one

Both networks read the same samples, once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.linalg.backend import each
from fskd_onnx.passes.analysis.epilogue import Epilogue, find_epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.results import BlockPair, Matching
from fskd_onnx.runtime.column_sampling import BatchOffset, ColumnSampling, Gatherer, batch_offsets
from fskd_onnx.runtime.feeds import read_lazily
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.reader import SampleReader

# What the teacher may leave for later blocks. More saves cuts, of which few are left at this size.
_AHEAD_BYTES = 2**29


@dataclass(frozen=True)
class BlockPlan:
    """What is known of a block before anything runs.

    Attributes:
        index: its number among the blocks that are fitted.
        name: of the student's node.
        patches: the student's tensor that the block reads.
        partner: the teacher's block.
        readout: where the student's error is seen.
        totals: the teacher's sum behind its block output; None where the error is not seen there.
        unknowns: of its regression.
        draw: which columns are looked at.
    """

    index: int
    name: str
    patches: str
    partner: Linear
    readout: Epilogue
    totals: str | None
    unknowns: int
    draw: ColumnSampling

    @property
    def of_student(self) -> list[str]:
        """The student's tensors that have to exist for the block."""
        return [self.patches, *([self.readout.shortcut] if self.readout.shortcut else [])]

    @property
    def of_teacher(self) -> list[str]:
        """The teacher's tensors that have to exist for the block."""
        return [self.partner.output.name, *([self.totals] if self.totals else [])]

    @property
    def channels_last(self) -> bool:
        """Whether the teacher's channels are on the last axis."""
        return self.partner.op == "MatMul"

    def positions(self, shape: Sequence[int]) -> int:
        """Number of positions of one row of the teacher's block output."""
        return math.prod(shape[1:-1] if self.channels_last else shape[2:])

    @property
    def bytes(self) -> int:
        """Size of the teacher's columns, roughly and at most."""
        return 4 * self.partner.width * self.draw.wanted * len(self.of_teacher)


def plan_blocks(
    matching: Matching, student: gs.Graph, teacher: gs.Graph, outputs: bool, seed: int
) -> list[BlockPlan]:
    """Look up where each block's columns come from and where its error is seen.

    The plans are in the order of the teacher's nodes, as far as data flow in the student allows: in
    which order a file lists the student's nodes changes nothing.

    Args:
        matching: pairs of blocks.
        student: the compressed network.
        teacher: the original network.
        outputs: whether outputs are regressors, of which as many count as there are dimensions.
        seed: for the choice of columns.
    """
    partners = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
    tensors = {t.name: t for node in student.nodes for t in node.outputs}
    views = {v.name: v for v in find_linear(student) if isinstance(v, Linear)}
    batch_offsets = {name: place for place, name in enumerate(partners)}
    pairs = _in_order(matching.usable, views, batch_offsets)
    linears = [views[pair.student] for pair in pairs]
    inner = [nodes_in_bodies(graph) for graph in (student, teacher)]
    plans = []
    for index, (pair, linear) in enumerate(zip(pairs, linears, strict=True)):
        partner = partners[str(pair.teacher)]
        readout = find_epilogue(student, linear, inner[0])
        theirs = find_epilogue(teacher, partner, inner[1])
        if readout.sum_output is not None:
            later = {id(v.bias_node or v.node) for v in linears[index:]}
            shortcut = [tensors[name] for name in (readout.shortcut,) if name in tensors]
            # A shortcut that is corrected later would be repaired twice.
            if theirs.sum_output is None or any(id(node) in later for node in ancestors(shortcut)):
                readout = readout.without_sum()
        _, n, p = linear.shape
        unknowns = min(n, p) if outputs else p
        plans.append(
            BlockPlan(
                index=index,
                name=pair.student,
                patches=linear.input.name,
                partner=partner,
                readout=readout,
                totals=None if readout.sum_output is None else theirs.sum_output,
                unknowns=unknowns,
                draw=ColumnSampling.of_unknowns(unknowns, (seed, index)),
            )
        )
    return plans


def _in_order(
    pairs: Sequence[BlockPair], views: Mapping[str, Linear], batch_offsets: Mapping[str, int]
) -> list[BlockPair]:
    """Put pairs in the order of their partners, and each behind those that it depends on."""
    waiting = sorted(pairs, key=lambda pair: batch_offsets[str(pair.teacher)])
    ends = {id(views[p.student].output.inputs[0]): p.student for p in pairs}
    needed = {
        pair.student: {
            ends[id(node)] for node in ancestors([views[pair.student].input]) if id(node) in ends
        }
        for pair in pairs
    }
    ordered: list[BlockPair] = []
    while waiting:
        left = {pair.student for pair in waiting}
        ready = next(pair for pair in waiting if not needed[pair.student] & left)
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


@dataclass(frozen=True)
class TargetColumns:
    """The teacher's columns of one block in one batch.

    Attributes:
        count: rows of the batch's tensors that they come from.
        chosen: (k,) positions in each.
        shape: of the teacher's block output.
        targets: (channels, columns) of the block output.
        totals: (channels, columns) of the sum; None where it broadcasts, or there is none.
    """

    count: int
    chosen: NDArray[np.intp]
    shape: tuple[int, ...]
    targets: StoredTensor
    totals: StoredTensor | None

    @property
    def columns(self) -> int:
        """How many there are."""
        return self.count * len(self.chosen)


class TeacherPass:
    """The teacher on its way, and what it leaves behind.

    Attributes:
        plans: of each block, in the order in which they are fitted.
        batches: which samples run together.
        store: keeps the columns, the samples, and what crosses a cut.
        gather: gathers columns.
    """

    def __init__(
        self,
        runtime: Runtime,
        teacher: gs.Graph,
        plans: Sequence[BlockPlan],
        samples: SampleReader,
        batches: Sequence[Batch],
        store: TensorStore,
    ) -> None:
        """Plan; nothing is read or run yet.

        Args:
            runtime: where to run.
            teacher: the original network.
            plans: of each block, in the order in which they are fitted.
            samples: the samples, named as the teacher's inputs are.
            batches: which samples run together.
            store: keeps the columns, the samples, and what crosses a cut.
        """
        self.plans = tuple(plans)
        self.batches = tuple(batches)
        self.store = store
        self.gather = Gatherer(runtime)
        self._runtime = runtime
        self._teacher = teacher
        self._feeds = read_lazily(samples, batches, store, runtime.device)
        self._places = batch_offsets(batches)
        self._windows = _windows(plans)
        self._at = -1
        self._network: SegmentRunner | None = None
        self._columns: dict[int, dict[int, TargetColumns]] = {}

    def follow(self, student: gs.Graph) -> SegmentRunner:
        """Set a student out on the same samples, to stop where the blocks need it to."""
        names = [tensor.name for tensor in student.inputs]
        feeds = [dict(zip(names, feed.values(), strict=True)) for feed in self._feeds]
        stops = [plan.of_student for plan in self.plans]
        return SegmentRunner(self._runtime, student, stops, self.batches, feeds, self.store)

    def advance(self, block: int) -> None:
        """Have the columns of a block at hand; those of others may go."""
        wanted = next(i for i, window in enumerate(self._windows) if block in window)
        if self._network is None or wanted < self._at:  # the next student starts from the front
            stops = [
                list(dict.fromkeys(name for block in w for name in self.plans[block].of_teacher))
                for w in self._windows
            ]
            self._network = SegmentRunner(
                self._runtime, self._teacher, stops, self.batches, self._feeds, self.store
            )
            self._at = -1
        while self._at < wanted:
            self._at += 1
            self._run(self._network, self._windows[self._at])

    def columns(self, block: int) -> dict[int, TargetColumns]:
        """Return the columns of a block, which was advanced to, by batch; not all have some."""
        return self._columns[block]

    def _run(self, network: SegmentRunner, window: range) -> None:
        self._columns = {block: {} for block in window}
        text = f"teacher, blocks {window.start + 1} to {window.stop} of {len(self.plans)}"
        plans = list(self.plans[window.start : window.stop])
        network.enter(text)
        wanted = [plans]
        for place in self._places:
            drawn = wanted[place.index]
            if not drawn:
                continue
            names = {name for plan in drawn for name in plan.of_teacher}
            # Held by the work alone: gone before the next batch needs as much memory.
            gather = partial(self._gather, place, network.tensors_once(place.index, names))
            for plan, found in zip(drawn, each(gather, drawn), strict=True):
                if found is not None:
                    self._columns[plan.index][place.index] = found.kept(self.store)
            del gather
            if place.index == 0:
                wanted = self._wanted(plans)
        network.leave()

    def _wanted(self, plans: list[BlockPlan]) -> list[list[BlockPlan]]:
        """Return the blocks to show of each batch, once shapes are known from the first one.

        Most batches may do without most blocks: where there are many samples, a block with many
        positions draws from a few of them. Each combination of blocks is a session of its own, so
        there are two: the one that most batches do with, and all blocks for the others.
        """
        first = self._places[0]
        shapes = {plan.index: self._columns[plan.index][first.index].shape for plan in plans}

        def draws(plan: BlockPlan, place: BatchOffset) -> bool:
            rows = shapes[plan.index][0] // len(first.batch.samples) * len(place.batch.samples)
            return plan.draw.reaches(place, rows, plan.positions(shapes[plan.index]))

        drawn = [
            frozenset(plan.index for plan in plans if draws(plan, place)) for place in self._places
        ]
        usual, times = Counter(drawn).most_common(1)[0]
        few = [plan for plan in plans if plan.index in usual]
        if 2 * times <= len(drawn):
            few = plans
        return [few if blocks <= usual else plans for blocks in drawn]

    def _gather(
        self, place: BatchOffset, tensors: Mapping[str, OrtValue], plan: BlockPlan
    ) -> _Gathered | None:
        shape = tuple(tensors[plan.partner.output.name].shape())
        count, chosen = plan.draw.choose(place, shape[0], plan.positions(shape))
        if count == 0:
            return None
        columns = [
            self.gather(tensors[name], plan.channels_last, count, chosen[np.newaxis])
            for name in plan.of_teacher
            if tuple(tensors[name].shape()) == shape
        ]
        return _Gathered(count, chosen, shape, columns)


@dataclass(frozen=True)
class _Gathered:
    """The teacher's columns of one block in one batch, before they are kept."""

    count: int
    chosen: NDArray[np.intp]
    shape: tuple[int, ...]
    columns: list[NDArray[np.floating]]

    def kept(self, store: TensorStore) -> TargetColumns:
        """Return them as they are kept."""
        targets, *totals = (
            store.keep(OrtValue.ortvalue_from_numpy(columns)) for columns in self.columns
        )
        behind = totals[0] if totals else None
        return TargetColumns(self.count, self.chosen, self.shape, targets, behind)


def _windows(plans: Sequence[BlockPlan]) -> list[range]:
    """Divide the blocks into runs whose columns may lie in memory together."""
    windows: list[range] = []
    held = 0
    for plan in plans:
        held += plan.bytes
        if not windows or held > _AHEAD_BYTES:
            windows.append(range(plan.index, plan.index))
            held = plan.bytes
        windows[-1] = range(windows[-1].start, plan.index + 1)
    return windows
