"""Block coordinate descent: fit the blocks in order, each on the student as corrected so far."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.adapt import BlockFit, fit_block
from fskd_onnx.clock import Clock
from fskd_onnx.engine import Lockstep
from fskd_onnx.errors import MatchError
from fskd_onnx.match import (
    BlockPair,
    Channels,
    Matching,
    channels_from_moments,
    match_models,
    uncertain,
)
from fskd_onnx.moments import Affine, total
from fskd_onnx.options import FitOptions
from fskd_onnx.passes import Adapter, FuseAdapter, InsertAdapter, ReplaceWeights, Weights
from fskd_onnx.passes.capture import Columns
from fskd_onnx.passes.linear import Linear, find_linear
from fskd_onnx.passes.segment import ancestors
from fskd_onnx.readout import Readout, read_out
from fskd_onnx.report import BlockReport
from fskd_onnx.solve import Family, is_sparse, solved_by
from fskd_onnx.stream import BlockStream, BlockTensors
from fskd_onnx.task import Task

logger = logging.getLogger(__name__)


class Descent:
    """A student on its way to its teacher (Li et al. 2020, algorithm 1).

    Attributes:
        student: the graph, corrected block by block.
        matching: pairs of blocks and channels; activations may settle what weights left open.
    """

    def __init__(
        self,
        task: Task,
        options: FitOptions,
        clock: Clock,
        matching: Matching,
        weights: Mapping[str, Weights] | None = None,
    ) -> None:
        """Set out from the student, or from the student with other weights.

        Args:
            task: what to fit.
            options: how.
            clock: counts the time of each stage.
            matching: the targets.
            weights: to start from instead of the student's, by the name of its nodes.
        """
        self.student = task.student.graph()
        self.matching = matching
        self._task = task
        self._options = options
        self._clock = clock
        self._weights = dict(weights or {})
        self._adapters: dict[str, Adapter] = {}
        self._known: dict[str, tuple[Channels, float]] = {}
        self._blocks: dict[str, BlockReport] = {}
        ReplaceWeights(self._weights).run(self.student)

    def run(self) -> None:
        """Advance both networks block by block, correcting the student's before it runs on."""
        teacher = self._task.teacher.graph()
        plans = _plan_blocks(self.matching, self.student, teacher)
        lockstep = Lockstep(
            self._task.runtime,
            self.student,
            teacher,
            [plan.tensors.stop for plan in plans],
            self._task.samples,
            self._task.batches,
            self._task.options.memory_limit,
        )
        with lockstep, solved_by(self._options.solver):
            for plan in plans:
                with self._clock("capture"), lockstep.stage(), self._clock("solve"):
                    self._blocks[plan.name] = self._fit(plan, lockstep)

    def explicit(self) -> onnx.ModelProto:
        """Return the corrected student with its pointwise adapters as nodes of their own."""
        replaced = ReplaceWeights(self._weights)(self._task.student.canonical).model
        return InsertAdapter(self._adapters)(replaced).model

    @property
    def reports(self) -> tuple[BlockReport, ...]:
        """A line for every linear node of the student, in order."""
        alone = {
            pair.student: _kept(pair, pair.reason) for pair in self.matching.pairs if pair.reason
        }
        return tuple((self._blocks | alone)[pair.student] for pair in self.matching.pairs)

    def _fit(self, plan: _BlockPlan, lockstep: Lockstep) -> BlockReport:
        """Fit one block and correct it in the graph, or say why it is kept."""
        linear = _find(self.student, plan.name)
        plan = plan.seen(linear, lockstep)

        def stream(channels: NDArray[np.intp] | None, outputs: bool) -> BlockStream:
            columns = plan.columns(linear, channels, outputs)
            seed = (self._task.options.seed, plan.index)
            return BlockStream(
                self._task.runtime, lockstep, plan.tensors, columns, seed, self._clock
            )

        try:
            if self._pair(plan.name).channels is None:
                confidence = self._settle_channels(plan.name, stream(None, outputs=True))
                if uncertain(confidence):
                    reason = f"a channel correlates with the teacher's by only {confidence:.2f}"
                    return _kept(self._pair(plan.name), reason)
            pair = self._pair(plan.name)
            columns = stream(np.array(pair.channels), self._options.adapter == "pointwise")
            block = fit_block(columns, _families(linear, self._options.adapter), plan.readout)
        except MatchError as error:
            return _kept(self._pair(plan.name), str(error))
        if not block.improves:
            return _kept(pair, "no adapter is better on held-out folds", block.error_before)
        with self._clock("fuse"):
            self._correct(plan.name, block)
        logger.info("%s: %.4g -> %.4g", plan.name, block.error_before, block.error_after)
        return BlockReport(
            student=plan.name,
            teacher=pair.teacher,
            op=pair.op,
            adapter=block.family.name,
            ridge=block.ridge,
            channels=pair.channels or (),
            error_before=block.error_before,
            error_after=block.error_after,
            status="fitted",
            reason="",
            teacher_width=pair.teacher_width,
        )

    def _settle_channels(self, name: str, stream: BlockStream) -> float:
        """Let activations decide a block's channels, and all that follows for later blocks."""
        channels, confidence = channels_from_moments(total(stream.sums()[0]))
        if not uncertain(confidence):
            self._known[name] = channels, confidence
            again = match_models(
                self._task.teacher.graph(), self._task.student.graph(), self._known
            )
            pairs = zip(self.matching.pairs, again.pairs, strict=True)
            self.matching = Matching(
                tuple(new if old.channels is None else old for old, new in pairs)
            )
        return confidence

    def _correct(self, name: str, block: BlockFit) -> None:
        """Apply a fit to the graph, and keep it for the explicit form of the whole."""
        matrix, shift = block.adapter.matrix, block.adapter.shift.reshape(-1)
        if block.family.name == "pointwise":
            self._adapters[name] = Adapter(matrix, shift)
            InsertAdapter({name: self._adapters[name]}).run(self.student)
            FuseAdapter().run(self.student)
        else:
            self._weights[name] = Weights(matrix, shift)
            ReplaceWeights({name: self._weights[name]}).run(self.student)

    def _pair(self, name: str) -> BlockPair:
        return next(pair for pair in self.matching.pairs if pair.student == name)


@dataclass(frozen=True)
class _BlockPlan:
    """What is known of a block before anything runs."""

    index: int
    name: str
    partner: Linear
    tensors: BlockTensors
    readout: Readout

    def seen(self, linear: Linear, lockstep: Lockstep) -> _BlockPlan:
        """Return the plan without the sum behind the block where that broadcasts its terms."""
        if self.readout.total is None:
            return self
        mine, theirs = lockstep.tensors(0)
        targets = theirs[self.tensors.targets].shape()
        totals = theirs[str(self.tensors.totals)].shape()
        shortcut = mine[str(self.tensors.shortcut)].shape()
        if len(shortcut) == len(targets):
            shortcut[linear.channel_axis] += self.partner.width - linear.width
        if shortcut == totals == targets:
            return self
        return replace(
            self,
            tensors=BlockTensors(self.tensors.patches, self.tensors.targets),
            readout=self.readout.without_sum(),
        )

    def columns(self, linear: Linear, channels: NDArray[np.intp] | None, outputs: bool) -> Columns:
        """Say how to cut columns: with all of the teacher's channels while none are chosen."""
        return Columns(
            linear=linear,
            outputs=outputs,
            groups=1 if channels is None else linear.groups,
            channels=np.arange(self.partner.width) if channels is None else channels,
            targets_width=self.partner.width,
            targets_last=self.partner.op == "MatMul",
            residual=self.readout.total is not None,
        )


def _plan_blocks(matching: Matching, student: gs.Graph, teacher: gs.Graph) -> list[_BlockPlan]:
    """Look up where each block's columns come from and where its error is seen."""
    partners = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
    tensors = {t.name: t for node in student.nodes for t in node.outputs}
    linears = [_find(student, pair.student) for pair in matching.usable]
    plans = []
    for index, (pair, linear) in enumerate(zip(matching.usable, linears, strict=True)):
        partner = partners[str(pair.teacher)]
        mine, theirs = read_out(student, linear), read_out(teacher, partner)
        readout = mine
        if readout.total is not None:
            later = {id(v.bias_node or v.node) for v in linears[index:]}
            shortcut = [tensors[name] for name in (mine.shortcut,) if name in tensors]
            # A shortcut that is corrected later would be repaired twice.
            if theirs.total is None or any(id(node) in later for node in ancestors(shortcut)):
                readout = mine.without_sum()
        names = BlockTensors(linear.input.name, partner.output.name)
        if readout.total is not None:
            names = BlockTensors(
                linear.input.name, partner.output.name, readout.shortcut, theirs.total
            )
        plans.append(_BlockPlan(index, pair.student, partner, names, readout))
    return plans


def _families(linear: Linear, adapter: str) -> list[Family]:
    """Return the families to try, as maps of what is captured: outputs for pointwise alone."""
    block = Affine(linear.matrix, linear.bias.reshape(linear.groups, -1))
    kernel = Family("kernel", block, on_outputs=False)
    if adapter == "kernel" or (adapter == "auto" and is_sparse(linear.matrix)):
        return [kernel]
    if adapter == "auto":
        return [Family("pointwise", block, on_outputs=True), kernel]
    n = linear.width // linear.groups
    if n > 1 and is_sparse(linear.matrix):
        zeros = np.mean(linear.matrix == 0)
        raise MatchError(
            f"its kernel is {zeros:.0%} zeros, which a pointwise adapter would fill; "
            "a kernel adapter keeps them"
        )
    identity = np.broadcast_to(np.eye(n), (linear.groups, n, n))
    return [Family("pointwise", Affine(identity, np.zeros((linear.groups, n))), on_outputs=False)]


def _find(graph: gs.Graph, name: str) -> Linear:
    views = (view for view in find_linear(graph) if isinstance(view, Linear))
    return next(view for view in views if view.name == name)


def _kept(pair: BlockPair, reason: str, error: float | None = None) -> BlockReport:
    logger.info("%s: kept, %s", pair.student, reason)
    return BlockReport(
        student=pair.student,
        teacher=pair.teacher,
        op=pair.op,
        adapter=None,
        ridge=None,
        channels=pair.channels or (),
        error_before=error,
        error_after=error,
        status="kept",
        reason=reason,
        teacher_width=pair.teacher_width,
    )
