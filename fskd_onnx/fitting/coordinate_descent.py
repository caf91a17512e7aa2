"""Block coordinate descent: fit the blocks in order, each on the student as corrected so far."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.block_data import BlockData, BlockRequest
from fskd_onnx.fitting.block_fit import BlockFit, fit_block
from fskd_onnx.fitting.teacher_pass import BlockPlan, TeacherPass
from fskd_onnx.linalg.backend import solved_by, threads_for
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.linalg.ridge import Family, is_sparse
from fskd_onnx.matching.channels import Channels, channels_from_moments, match_channels, uncertain
from fskd_onnx.options import FitOptions
from fskd_onnx.passes import AffineMap, ReplaceWeights
from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.results import BlockPair, BlockReport, BlockStatus, Matching
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.timing import StageTimer

logger = logging.getLogger(__name__)


class CoordinateDescent:
    """A student on its way to its teacher (Li et al. 2020, algorithm 1).

    Attributes:
        student: the graph, corrected block by block.
        matching: pairs of blocks and channels; activations may settle what weights left open.
    """

    def __init__(
        self,
        task: FitProblem,
        options: FitOptions,
        clock: StageTimer,
        matching: Matching,
        lead: TeacherPass,
        weights: Mapping[str, AffineMap] | None = None,
    ) -> None:
        """Set out from the student, or from the student with other weights.

        Args:
            task: what to fit.
            options: how.
            clock: counts the time of each stage.
            matching: the targets.
            lead: the teacher on its way; several descents may follow it, one after another.
            weights: to start from instead of the student's, by the name of its nodes.
        """
        self.student = task.student.graph()
        self.matching = matching
        self._task = task
        self._options = options
        self._clock = clock
        self._lead = lead
        self._known: dict[str, tuple[Channels, float]] = {}
        self._blocks: dict[str, BlockReport] = {}
        ReplaceWeights(weights or {}).run(self.student)
        views = (view for view in find_linear(self.student) if isinstance(view, Linear))
        self._linears = {view.name: view for view in views}

    def run(self) -> None:
        """Advance the student block by block, correcting it before it runs on."""
        plans, network = self._lead.plans, self._lead.follow(self.student)
        with self._clock("capture"), solved_by(self._options.solver):
            for plan in plans:
                with threads_for(plan.unknowns):
                    self._lead.advance(plan.index)
                asked = self._lead.columns(plan.index)
                network.enter(f"block {plan.index + 1} of {len(plans)}", asked)
                with self._clock("solve"), threads_for(plan.unknowns):
                    self._blocks[plan.name] = self._fit(plan, network)
                network.leave()

    @property
    def reports(self) -> tuple[BlockReport, ...]:
        """A line for every linear node of the student, in order."""
        alone = {
            pair.student: _kept(pair, pair.reason) for pair in self.matching.pairs if pair.reason
        }
        return tuple((self._blocks | alone)[pair.student] for pair in self.matching.pairs)

    def _fit(self, plan: BlockPlan, network: SegmentRunner) -> BlockReport:
        """Fit one block and correct it in the graph, or say why it is kept."""
        linear = self._linears[plan.name]
        readout = self._readout(plan, linear, network)
        pair = self._pair(plan.name)
        try:
            if pair.channels is None:
                confidence = self._settle_channels(self._stream(plan, network, linear, None))
                pair = self._pair(plan.name)
                if uncertain(confidence):
                    reason = f"a channel correlates with the teacher's by only {confidence:.2f}"
                    return _kept(pair, reason)
            sparse = _keeps_zeros(linear, self._options.adapter)
            stream = self._stream(plan, network, linear, pair.channels, readout)
            if not sparse:
                stream.reduce()
            families = _families(linear, stream, self._options.adapter, sparse)
            block = fit_block(stream, families, readout)
        except MatchError as error:
            return _kept(pair, str(error))
        if not block.improves:
            return _kept(pair, "no adapter is better on held-out folds", block.error_before)
        with self._clock("fuse"):
            self._correct(linear, block)
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
            status=BlockStatus.FITTED,
            reason="",
            teacher_width=pair.teacher_width,
        )

    def _stream(
        self,
        plan: BlockPlan,
        network: SegmentRunner,
        linear: Linear,
        channels: Sequence[int] | None,
        readout: Epilogue = NO_EPILOGUE,
    ) -> BlockData:
        """Open a block's columns; with all of the teacher's channels while none are known."""
        reading = BlockRequest(
            plan=plan,
            linear=linear,
            channels=np.arange(plan.partner.width) if channels is None else np.array(channels),
            residual=readout.sum_output is not None,
            outputs=self._options.adapter == "pointwise",
            merged=channels is None,
        )
        return BlockData(network, self._lead, reading, self._clock)

    def _readout(self, plan: BlockPlan, linear: Linear, network: SegmentRunner) -> Epilogue:
        """Return where the error is seen: not behind a sum that broadcasts its terms."""
        if plan.readout.sum_output is None:
            return plan.readout
        found = self._lead.columns(plan.index)[0]
        with self._clock("capture"):
            shape = network.tensors(0)[str(plan.readout.shortcut)].shape()
        if len(shape) == len(found.shape):
            shape[linear.channel_axis] += plan.partner.width - linear.width
        same = found.totals is not None and tuple(shape) == found.shape
        return plan.readout if same else plan.readout.without_sum()

    def _settle_channels(self, stream: BlockData) -> float:
        """Let activations decide a block's channels, and all that follows for later blocks."""
        channels, confidence = channels_from_moments(
            sum_moments(stream.sums(np.arange(len(stream.reading.channels)))[0])
        )
        if not uncertain(confidence):
            self._known[stream.reading.linear.name] = channels, confidence
            task = self._task
            graphs = task.teacher.graph(), task.student.graph()
            again = match_channels(*graphs, task.partners, self._known)
            pairs = zip(self.matching.pairs, again.pairs, strict=True)
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


def _keeps_zeros(linear: Linear, adapter: str) -> bool:
    """Whether a kernel is sparse, and stays so.

    Raises:
        MatchError: it is, and the adapter would fill its zeros.
    """
    # A 1x1 adapter of a single channel only scales.
    if not is_sparse(linear.native) or (adapter == "pointwise" and linear.width == linear.groups):
        return False
    if adapter == "pointwise":
        zeros = np.mean(linear.native == 0)
        raise MatchError(
            f"its kernel is {zeros:.0%} zeros, which a pointwise adapter would fill; "
            "a kernel adapter keeps them"
        )
    return True


def _families(linear: Linear, stream: BlockData, adapter: str, sparse: bool) -> list[Family]:
    """Return the families to try, as maps of the stream's regressors."""
    bias = linear.bias.reshape(linear.groups, -1)
    families = []
    if adapter != "kernel" and not sparse:
        orthonormal = stream.reading.outputs
        families.append(Family.pointwise(stream.block_map, bias, orthonormal))
    if adapter != "pointwise":
        families.append(Family.kernel(stream.block_map, bias, stream.basis, sparse))
    return families


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
        status=BlockStatus.KEPT,
        reason=reason,
        teacher_width=pair.teacher_width,
    )
