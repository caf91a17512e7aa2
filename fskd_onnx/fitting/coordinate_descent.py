"""Block coordinate descent: fit the blocks in order, each on the student as corrected so far."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.adapters import families_for, families_of, need_patches
from fskd_onnx.fitting.block_columns import BlockColumns, BlockRequest
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_fit import BlockFit, error_of, fit_block
from fskd_onnx.fitting.block_plan import BlockPlan
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.channels import Channels, channels_from_moments, uncertain
from fskd_onnx.options import FitOptions
from fskd_onnx.passes import AffineMap, ReplaceWeights
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.results import BlockPair, BlockReport, BlockStatus, Matching
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)

MatchAgain = Callable[[Mapping[str, tuple[Channels, float]]], Matching]
"""Matches channels anew from those that activations have decided, with their confidence."""


@dataclass(frozen=True)
class Descent:
    """What a descent comes to.

    Attributes:
        student: the corrected graph.
        matching: pairs of blocks and channels, those settled by activations included.
        blocks: a line for every linear node of the student, in order.
        parameters: names of the constants that each of these nodes reads, by its name.
    """

    student: gs.Graph
    matching: Matching
    blocks: tuple[BlockReport, ...]
    parameters: Mapping[str, tuple[str, ...]]


class CoordinateDescent:
    """Fits a student to its teacher, block by block (Li et al. 2020, algorithm 1).

    Attributes:
        student: the graph, corrected block by block.
        matching: pairs of blocks and channels; activations may settle what weights left open.
    """

    def __init__(
        self,
        student: gs.Graph,
        matching: Matching,
        teacher: TeacherPass,
        options: FitOptions,
        timer: StageTimer,
        match_again: MatchAgain,
        weights: Mapping[str, AffineMap] | None = None,
    ) -> None:
        """Start from a student, or from the student with other weights.

        Args:
            student: the compressed network, which is changed in place.
            matching: the targets.
            teacher: the columns to fit to; several descents may use them, one after another.
            options: how to fit.
            timer: counts the time of each stage.
            match_again: follows channels that activations have decided to other blocks.
            weights: to start from instead of the student's, by the name of its nodes.
        """
        self.student = student
        self.matching = matching
        self._teacher = teacher
        self._options = options
        self._families = families_of(options.adapter)
        self._timer = timer
        self._match_again = match_again
        self._settled: dict[str, tuple[Channels, float]] = {}
        # The map of the student as it was given, of the nodes that start from another.
        self._given = {
            name: (view.native, view.bias)
            for name, view in self._views().items()
            if name in (weights or {})
        }
        ReplaceWeights(weights or {}).run(self.student)
        self._linears = self._views()
        self._unbiased = {n for n, view in self._linears.items() if view.bias_slot is None}

    def run(self) -> Descent:
        """Fit block by block; each is corrected before the student runs on."""
        plans, runner = self._teacher.plans, self._teacher.runner_of(self.student)
        blocks: dict[str, BlockReport] = {}
        with self._timer("capture"), solved_by(self._options.solver):
            for plan in plans:
                with threads_for(plan.unknowns):
                    batches = self._teacher.columns(plan.index)
                text = f"block {plan.index + 1} of {len(plans)}"
                with (
                    runner.next_stage(text, batches) as stage,
                    self._timer("solve"),
                    threads_for(plan.unknowns),
                ):
                    blocks[plan.name] = self._fit(plan, stage)
        for pair in self.matching.pairs:
            if pair.reason:
                blocks[pair.student] = _kept(pair, pair.reason)
        views = self._views()
        added = {name for name in self._unbiased if views[name].bias_slot is not None}
        reports = tuple(
            replace(blocks[pair.student], adds_node=pair.student in added)
            for pair in self.matching.pairs
        )
        parameters = {name: tuple(_parameters(view)) for name, view in views.items()}
        return Descent(self.student, self.matching, reports, parameters)

    def _views(self) -> dict[str, Linear]:
        """Return the linear nodes of the student as it is now, by name."""
        views = (view for view in find_linear(self.student) if isinstance(view, Linear))
        return {view.name: view for view in views}

    def _fit(self, plan: BlockPlan, stage: Stage) -> BlockReport:
        """Fit one block and correct it in the graph, or say why it is kept."""
        linear = self._linears[plan.name]
        epilogue = self._epilogue(plan, linear, stage)
        pair = self._pair(plan.name)
        try:
            if pair.channels is None:
                confidence = self._settle_channels(plan, linear, stage)
                pair = self._pair(plan.name)
                if uncertain(confidence):
                    reason = f"a channel correlates with the teacher's by only {confidence:.2f}"
                    return _kept(pair, reason)
            families, keep_zeros = families_for(linear, self._families)
            request = BlockRequest(
                plan=plan,
                linear=linear,
                channels=np.array(pair.channels),
                residual=epilogue.sum_output is not None,
                needs_patches=need_patches(self._families),
                keep_zeros=keep_zeros,
            )
            columns = BlockColumns(stage, self._teacher, request, self._timer).in_span()
            data = BlockData(columns, self._timer)
            block = fit_block(data, families, epilogue)
        except MatchError as error:
            return _kept(pair, str(error))
        before: float | None = block.error_before
        if linear.name in self._given:
            matrix, bias = self._given[linear.name]
            groups = linear.shape[:2]
            given = AffineMap(np.asarray(matrix, np.float64), bias.reshape(groups))
            before = error_of(given, data, epilogue)
        if not block.improves:
            return _kept(pair, _why_kept(block), before, block.error_before)
        with self._timer("fuse"):
            self._correct(linear, block)
        logger.info("%s: %.4g -> %.4g", plan.name, block.error_before, block.error_after)
        return BlockReport(
            student=plan.name,
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
        )

    def _epilogue(self, plan: BlockPlan, linear: Linear, stage: Stage) -> Epilogue:
        """Return where the error is seen: not behind a sum that broadcasts its terms."""
        if plan.epilogue.sum_output is None:
            return plan.epilogue
        found = self._teacher.columns(plan.index)[0]
        with self._timer("capture"):
            shape = stage.tensors(0)[str(plan.epilogue.shortcut)].shape()
        if len(shape) == len(found.shape):
            shape[linear.channel_axis] += plan.partner.width - linear.width
        same = found.sums is not None and tuple(shape) == found.shape
        return plan.epilogue if same else plan.epilogue.without_sum()

    def _settle_channels(self, plan: BlockPlan, linear: Linear, stage: Stage) -> float:
        """Let activations decide a block's channels, and all that follows for later blocks."""
        everything = np.arange(plan.partner.width)
        request = BlockRequest(plan, linear, everything, across_groups=True)
        columns = BlockColumns(stage, self._teacher, request, self._timer)
        data = BlockData(columns, self._timer)
        channels, confidence = channels_from_moments(sum_moments(data.moments(everything)))
        if not uncertain(confidence):
            self._settled[linear.name] = channels, confidence
            pairs = zip(self.matching.pairs, self._match_again(self._settled).pairs, strict=True)
            self.matching = Matching(
                tuple(new if old.channels is None else old for old, new in pairs)
            )
        return confidence

    def _correct(self, linear: Linear, block: BlockFit) -> None:
        """Fuse a block's adapter in the graph, cast once to the types that are stored."""
        fused = block.family.fused(block.adapter, linear.matrix)
        ReplaceWeights({linear.name: fused}).run(self.student)

    def _pair(self, name: str) -> BlockPair:
        return next(pair for pair in self.matching.pairs if pair.student == name)


def _parameters(view: Linear) -> Iterator[str]:
    """Yield the names of the constants that a linear node reads."""
    for constant in (view.weight, view.bias_constant):
        if constant is not None:
            yield constant.name


def _why_kept(block: BlockFit) -> str:
    """Return why a block stays as it is."""
    if block.error_before <= block.rounding:
        return "it is the teacher's, to rounding"
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
    )
