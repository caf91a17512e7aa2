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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting import block_reports
from fskd_onnx.fitting.adapters import Families, families_for, need_patches
from fskd_onnx.fitting.block_columns import BlockColumns
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_fit import error_of, fit_block
from fskd_onnx.fitting.block_plan import BlockPlan, BlockUse, common_epilogue
from fskd_onnx.fitting.block_sources import BlockRequest
from fskd_onnx.fitting.corrected_student import CorrectedStudent
from fskd_onnx.fitting.factored import DecomposedBlocks
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.assignment import Channels
from fskd_onnx.matching.channel_correlation import channels_from_moments
from fskd_onnx.passes import AffineMap
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.progress import share
from fskd_onnx.results import BlockPair, BlockReport, Matching
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)

Rows = dict[str, BlockReport]
"""Of linear nodes, by name."""

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
        families: Families,
        solver: str,
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
            families: of adapters to try on each block.
            solver: where small systems are solved, a ``SolverName``.
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
        self._families, self._solver = families, solver
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
        blocks: Rows = {}
        with self._timer("capture"), solved_by(self._solver):
            for number, plan in enumerate(plans):
                with share(number / len(plans), (number + 1) / len(plans)):
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
                blocks[pair.student] = block_reports.as_factor(
                    pair, *self._fitted_with[pair.student]
                )
            elif pair.reason:
                blocks[pair.student] = block_reports.kept(pair, pair.reason)
        views = self._student.views()
        added = self._student.with_added_nodes(views)
        reports = tuple(
            replace(blocks[pair.student], adds_node=pair.student in added)
            for pair in self.matching.pairs
        )
        parameters = block_reports.constants_read(views | self._student.decomposed.views)
        return Descent(self._student, self._without, self.matching, reports, parameters)

    def _fit(self, plan: BlockPlan, stage: Stage) -> Rows:
        """Fit one block and correct it in the graph, or say why it is kept.

        Returns:
            A line for each of its uses, by name: with its own partner, and what they share.
        """
        linear, *others = (self._student.linears[use.name] for use in plan.uses)
        epilogue = self._epilogue(plan, stage)

        def kept(reason: str, errors: block_reports.Errors = (None, None)) -> Rows:
            pairs = (self._pair(use.name) for use in plan.uses)
            return {pair.student: block_reports.kept(pair, reason, errors) for pair in pairs}

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
            return kept(block_reports.why_kept(block), (before, block.error_before))
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
                return kept(reason, (before, block.error_before))
            changed = [
                student.take(plan, new)
                for student, new in zip(students, fused, strict=True)
                if new is not None
            ]
            self._fitted_with |= dict.fromkeys(changed[0], (plan.name, block.family.name))
        logger.info("%s: %.4g -> %.4g", plan.name, block.error_before, block.error_after)
        note = block_reports.note_on(self._teacher.names(data.left_out))
        family, errors = block.family.name, (before, block.error_after)
        return {
            use.name: block_reports.fitted(self._pair(use.name), family, errors, block.ridge, note)
            for use in plan.uses
        }

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
