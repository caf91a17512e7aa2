"""Block coordinate descent: fit the blocks in order, each on the student as corrected so far.

Where samples are few, the student that is given out is fitted to all of them, and none is left to
judge it by. A descent without each fold in turn would take a whole fit per fold. The moments of a
block are sums per fold, so the block without a fold is one more solution of what is left of them::

    ┌──▶ student ──▶ columns ──▶ moments ─┬─ of all folds ──────▶ block of the student ──┐
    │                                     ├─ of all but fold 1 ─▶ block without fold 1   │
    │                                     └─ ...                                         │
    └──────────────────────── runs on with the block that is fitted to all ◀─────────────┘

The students without a fold never run in a descent; they are judged as whole networks. Of the fold
that one was fitted without it knows no target, and that fold has no say in its ridges. But it is no
descent of its own. No block repairs what the blocks before it do worse than those of the student
that runs on. And the inputs that its blocks are fitted to, and the family and the repetitions of
each, are those of a student that has seen the fold. How far its errors are from those of a descent
of its own is measured by ``tests/benchmarks/few_samples.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.adapters import families_for, families_of, need_patches
from fskd_onnx.fitting.block_columns import BlockColumns, BlockRequest
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_fit import BlockFit, error_of, fit_block
from fskd_onnx.fitting.block_plan import BlockPlan, BlockUse, common_epilogue
from fskd_onnx.fitting.corrected_student import CorrectedStudent
from fskd_onnx.fitting.factored import DecomposedBlocks
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.assignment import Channels
from fskd_onnx.matching.channel_correlation import channels_from_moments
from fskd_onnx.options import FitOptions
from fskd_onnx.passes import AffineMap
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.progress import share
from fskd_onnx.results import BlockPair, BlockReport, BlockStatus, Matching
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)

# Samples that are named of those that were left out.
_NAMED = 3

MatchAgain = Callable[[Mapping[str, tuple[Channels, float]]], Matching]
"""Matches channels anew from those that activations have decided, with their confidence."""


@dataclass(frozen=True)
class Descent:
    """What a descent comes to.

    Attributes:
        student: corrected.
        without: the same by fold, fitted without it; empty where that was not asked for.
        matching: pairs of blocks and channels, those settled by activations included.
        blocks: a line for every linear node of the student, in order.
        parameters: names of the constants that each of these nodes reads, by its name.
    """

    student: CorrectedStudent
    without: Mapping[int, CorrectedStudent]
    matching: Matching
    blocks: tuple[BlockReport, ...]
    parameters: Mapping[str, tuple[str, ...]]


class CoordinateDescent:
    """Fits a student to its teacher, block by block (Li et al. 2020, algorithm 1).

    Attributes:
        matching: pairs of blocks and channels; activations may settle what weights left open.
    """

    def __init__(
        self,
        student: Callable[[], gs.Graph],
        matching: Matching,
        teacher: TeacherPass,
        options: FitOptions,
        timer: StageTimer,
        match_again: MatchAgain,
        weights: Mapping[str, AffineMap] | None = None,
        decomposed: Mapping[str, FactoredBlock] | None = None,
        kernels: Mapping[str, AffineMap] | None = None,
        folds: Collection[int] = (),
    ) -> None:
        """Start from a student, or from the student with other weights.

        Args:
            student: gives a graph of the compressed network, another one each time.
            matching: the targets.
            teacher: the columns to fit to; several descents may use them, one after another.
            options: how to fit.
            timer: counts the time of each stage.
            match_again: follows channels that activations have decided to other blocks.
            weights: to start from instead of the student's, by the name of its nodes.
            decomposed: the nodes of blocks that are one node of the graph, by the name of that.
            kernels: what a decomposed block is to be like, of its shape, by the same name; its
                factors are pulled to that and not to what they are.
            folds: those that a student is to be fitted without, besides the one that is fitted to
                all: none, or all folds of the batches.
        """
        self.matching = matching
        self._teacher = teacher
        self._options = options
        self._families = families_of(options.adapter)
        self._timer = timer
        self._match_again = match_again
        self._settled: dict[str, tuple[Channels, float]] = {}
        start, given = weights or {}, student()
        # The map of the student as it was given, of the nodes that start from another.
        self._given = {
            view.name: (view.native, view.bias)
            for view in (find_linear(given) if start else ())
            if isinstance(view, Linear) and view.name in start
        }
        self._kernels = {**(kernels or {}), **start}
        self._fitted_with: dict[str, tuple[str, str]] = {}
        blocks = DecomposedBlocks(decomposed or {})
        start = blocks.representable(start)
        self._student = CorrectedStudent(given, blocks, start)
        self._without = {fold: CorrectedStudent(student(), blocks.copy(), start) for fold in folds}

    def run(self) -> Descent:
        """Fit block by block; each is corrected before the student runs on."""
        plans = self._teacher.plans
        runner = self._teacher.runner_of(self._student.graph)
        blocks: dict[str, BlockReport] = {}
        with self._timer("capture"), solved_by(self._options.solver):
            for number, plan in enumerate(plans):
                with share(number / len(plans), (number + 1) / len(plans)):
                    with threads_for(plan.unknowns):
                        batches = self._teacher.batches_of(plan.index)
                    text = f"block {number + 1} of {len(plans)}"
                    with (
                        runner.next_stage(text, batches) as stage,
                        self._timer("solve"),
                        threads_for(plan.unknowns),
                    ):
                        blocks |= self._fit(plan, stage)
        for pair in self.matching.pairs:
            if pair.student in self._fitted_with:
                blocks[pair.student] = _as_factor(pair, *self._fitted_with[pair.student])
            elif pair.reason:
                blocks[pair.student] = _kept(pair, pair.reason)
        views = self._student.views()
        added = self._student.with_added_nodes(views)
        reports = tuple(
            replace(blocks[pair.student], adds_node=pair.student in added)
            for pair in self.matching.pairs
        )
        nodes = views | self._student.decomposed.views
        parameters = {name: tuple(_parameters(view)) for name, view in nodes.items()}
        return Descent(self._student, self._without, self.matching, reports, parameters)

    def _fit(self, plan: BlockPlan, stage: Stage) -> dict[str, BlockReport]:
        """Fit one block and correct it in the graph, or say why it is kept.

        Returns:
            A line for each of its uses, by name: with its own partner, and what they share.
        """
        linear, *others = (self._student.linears[use.name] for use in plan.uses)
        epilogue = self._epilogue(plan, stage)

        def kept(
            reason: str, before: float | None = None, after: float | None = None
        ) -> dict[str, BlockReport]:
            pairs = (self._pair(use.name) for use in plan.uses)
            return {pair.student: _kept(pair, reason, before, after) for pair in pairs}

        if reason := self._pair(plan.name).reason:
            return kept(reason)
        try:
            if self._pair(plan.name).channels is None:
                self._settle_channels(plan, linear, others, stage)
            factors = self._student.decomposed.get(plan.name)
            families, keep_zeros = families_for(linear, self._families, factors)
            kernel = self._kernels.get(plan.name)
            request = BlockRequest(
                plan=plan,
                linear=linear,
                channels=np.array(self._pair(plan.name).channels),
                residual=epilogue.sum_output is not None,
                needs_patches=need_patches(self._families),
                keep_zeros=keep_zeros,
                others=tuple(others),
                factors=factors,
                prior=None if kernel is None or factors is None else kernel.matrix,
            )
            columns = BlockColumns(stage, self._teacher, request, self._timer).in_span()
            data = BlockData(columns, self._timer)
            block = fit_block(data, families, epilogue, without_folds=bool(self._without))
        except MatchError as error:
            return kept(str(error))
        if not math.isfinite(block.error_before):
            return kept("its activations are so large that its error overflows")
        before: float | None = block.error_before
        if linear.name in self._given:
            matrix, bias = self._given[linear.name]
            groups = linear.shape[:2]
            given = AffineMap(np.asarray(matrix, np.float64), bias.reshape(groups))
            before = error_of(given, data, epilogue)
        if not block.improves:
            return kept(_why_kept(block), before, block.error_before)
        with self._timer("fuse"):
            students = [self._student, *self._without.values()]
            # A fold of which no column is finite is a part of no sum.
            adapters = [block.without.get(fold, block.adapter) for fold in self._without]
            fused = [
                student.fused(plan, block, adapter)
                for student, adapter in zip(students, (block.adapter, *adapters), strict=True)
            ]
            if not all(fused):
                reason = "the weights of the best adapter overflow the type that they are stored in"
                return kept(reason, before, block.error_before)
            changed = [
                student.take(plan, new)
                for student, new in zip(students, fused, strict=True)
                if new is not None
            ]
            self._fitted_with |= dict.fromkeys(changed[0], (plan.name, block.family.name))
        logger.info("%s: %.4g -> %.4g", plan.name, block.error_before, block.error_after)
        note = _note_on(self._teacher.names(data.left_out))
        return {use.name: _fitted(self._pair(use.name), block, before, note) for use in plan.uses}

    def _epilogue(self, plan: BlockPlan, stage: Stage) -> Epilogue:
        """Return where the error of all uses is seen; sums that broadcast are not looked behind."""
        return common_epilogue(
            [self._epilogue_of(plan, number, use, stage) for number, use in enumerate(plan.uses)]
        )

    def _epilogue_of(self, plan: BlockPlan, number: int, use: BlockUse, stage: Stage) -> Epilogue:
        linear = self._student.linears[use.name]
        if use.epilogue.sum_output is None:
            return use.epilogue
        found = self._teacher.columns(plan.index, number)[0]
        with self._timer("capture"):
            shape = stage.tensors(0)[str(use.epilogue.shortcut)].shape()
        if len(shape) > 1:
            shape[-1 if linear.columns_last else 1] += use.partner.width - linear.width
        same = found.sums is not None and use.teacher_columns.alike(shape, found.shape)
        return use.epilogue if same else use.epilogue.without_sum()

    def _settle_channels(
        self, plan: BlockPlan, linear: Linear, others: Sequence[Linear], stage: Stage
    ) -> None:
        """Let activations decide a block's channels, and all that follows for later blocks.

        Raises:
            MatchError: they do not tell.
        """
        everything = np.arange(plan.uses[0].partner.width)
        request = BlockRequest(plan, linear, everything, across_groups=True, others=tuple(others))
        columns = BlockColumns(stage, self._teacher, request, self._timer)
        data = BlockData(columns, self._timer)
        channels, confidence = channels_from_moments(sum_moments(data.moments(everything)))
        self._settled |= {use.name: (channels, confidence) for use in plan.uses}
        pairs = zip(self.matching.pairs, self._match_again(self._settled).pairs, strict=True)
        self.matching = Matching(tuple(new if old.channels is None else old for old, new in pairs))

    def _pair(self, name: str) -> BlockPair:
        return next(pair for pair in self.matching.pairs if pair.student == name)


def _fitted(pair: BlockPair, block: BlockFit, before: float | None, note: str) -> BlockReport:
    """Return the row of a block that is fitted.

    Args:
        pair: the block.
        block: its fit.
        before: error of the block of the student as it was given.
        note: what else there is to know of it.
    """
    return BlockReport(
        student=pair.student,
        teacher=pair.teacher,
        op=pair.op,
        adapter=block.family.name,
        ridge=block.ridge,
        channels=pair.channels or (),
        error_before=before,
        error_after=block.error_after,
        status=BlockStatus.FITTED,
        reason="",
        teacher_width=pair.teacher_width,
        evidence=pair.evidence,
        note=note,
        first_use=pair.first_use,
    )


def _as_factor(pair: BlockPair, block: str, adapter: str) -> BlockReport:
    """Return the row of a node that is fitted as one of several of a block.

    Args:
        pair: the node.
        block: name of the node at the end of the block.
        adapter: family.
    """
    return BlockReport(
        student=pair.student,
        teacher=None,
        op=pair.op,
        adapter=adapter,
        ridge=None,
        channels=(),
        error_before=None,
        error_after=None,
        status=BlockStatus.FITTED,
        reason="",
        note=f"it is a factor of the block that ends at '{block}'",
    )


def _note_on(samples: Sequence[str]) -> str:
    """Return what is said of samples that were left out where they are not finite."""
    if not samples:
        return ""
    listed = ", ".join(samples[:_NAMED]) + (", ..." if len(samples) > _NAMED else "")
    return f"its activations are not finite on {len(samples)} samples ({listed}) and left out there"


def _parameters(view: Linear) -> Iterator[str]:
    """Yield the names of the constants that a linear node reads."""
    for constant in (view.weight, view.bias_constant):
        if constant is not None:
            yield constant.name


def _why_kept(block: BlockFit) -> str:
    """Return why a block stays as it is."""
    if block.error_before <= block.rounding:
        return "it is the teacher's, to rounding"
    if block.ranks_worse:
        return "the best adapter ranks the teacher's class first less often"
    if block.error_after < block.error_before:
        return "no adapter gains more than rounding"
    return "no adapter is better on held-out folds"


def _kept(
    pair: BlockPair, reason: str, before: float | None = None, after: float | None = None
) -> BlockReport:
    """Return the row of a block that is not fitted.

    Args:
        pair: the block.
        reason: why.
        before: error of the block of the student as it was given.
        after: error of the block as it is.
    """
    logger.info("%s: not fitted, %s", pair.student, reason)
    return BlockReport(
        student=pair.student,
        teacher=pair.teacher,
        op=pair.op,
        adapter=None,
        ridge=None,
        channels=pair.channels or (),
        error_before=before,
        error_after=after,
        status=BlockStatus.KEPT,
        reason=reason,
        teacher_width=pair.teacher_width,
        evidence=pair.evidence,
        first_use=pair.first_use,
    )
