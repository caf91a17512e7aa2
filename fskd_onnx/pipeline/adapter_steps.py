"""The paper's FSKD-SGD: the 1x1 adapters of all blocks at once, by gradient steps.

The sum of the errors of all block outputs is minimized over all adapters together, from the
identity on (Li et al. 2020, section 3.3). Each block counts by its relative error, and adapters
have a shift, as those of the closed form have. They are fused in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.adapters import Pointwise, families_for
from fskd_onnx.fitting.coordinate_descent import Descent
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.block_errors import compare_blocks
from fskd_onnx.pipeline.gradient_setup import block_targets, steps_towards
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.results import BlockPair, BlockReport, BlockStatus
from fskd_onnx.timing import StageTimer

# More of them bring held-out errors down by less than the closed form is ahead. The length is a
# part of the typical entry of an adapter.
_STEPS, _LENGTH = 1000, 0.02


@dataclass(frozen=True)
class AdapterSteps:
    """One fit by FSKD-SGD.

    Attributes:
        problem: what is fitted.
        split: the samples to fit on, and those that block errors are measured on.
        timer: counts the time of each stage.
    """

    problem: FitProblem
    split: SampleSplit
    timer: StageTimer

    def run(self) -> Descent:
        """Train all adapters and fuse them.

        Raises:
            FskdError: a network cannot be run, or the machine has not enough memory.
        """
        reasons = self._reasons()
        before = self.problem.student.graph()
        with self.timer("solve"):
            model = self._trained({name for name, reason in reasons.items() if not reason})
        if model is None:
            model = self.problem.student.canonical
            diverged = "gradient steps led to values that are not finite"
            reasons = {name: reason or diverged for name, reason in reasons.items()}
        fitted = gs.import_onnx(model)
        views = _views(fitted)
        with self.timer("verify"):
            errors = self._errors(before), self._errors(gs.import_onnx(model))
        blocks = tuple(
            _report(pair, reasons.get(pair.student, pair.reason), errors)
            for pair in self.problem.matching.pairs
        )
        parameters = {
            name: tuple(c.name for c in (view.weight, view.bias_constant) if c is not None)
            for name, view in views.items()
        }
        return Descent(fitted, self.problem.matching, blocks, parameters, {})

    def _reasons(self) -> dict[str, str]:
        """Return for each linear node why it gets no adapter; "" where it gets one."""
        views = _views(self.problem.student.graph())
        found = {}
        for pair in self.problem.matching.pairs:
            reason = pair.reason
            if not reason and pair.channels is None:
                reason = (
                    "its weights do not say which of the teacher's channels it has, and only the "
                    "closed form asks its activations; choose --optimizer bcd"
                )
            if not reason:
                try:
                    families_for(views[pair.student], (Pointwise,))
                except MatchError as error:
                    reason = str(error)
            found[pair.student] = reason
        return found

    def _trained(self, names: set[str]) -> onnx.ModelProto | None:
        """Return the student with trained adapters; None where they leave the range of numbers."""
        from fskd_onnx.gradient.trainable import TrainableAdapters

        problem = self.problem
        aims = {p.student: (p.teacher, p.channels or ()) for p in problem.matching.usable}
        targets = block_targets(problem, {name: aims[name] for name in aims if name in names})
        model = problem.student.canonical
        steps = steps_towards(
            problem,
            self.split,
            model,
            TrainableAdapters(model, names),
            targets,
            _LENGTH,
            as_they_are=True,
        )
        last = None
        for point in steps.points(_STEPS):
            last = point
        return last.model if last is not None and last.steps == _STEPS else None

    def _errors(self, student: gs.Graph) -> Mapping[str, float | None]:
        """Return the error of each block on held-out samples, the student running as it is."""
        problem = self.problem
        held_out = set(self.split.held_out.tolist())
        batches = [b for b in problem.splits.batches if held_out.issuperset(b.samples.tolist())]
        if not batches:
            return {}
        found = compare_blocks(
            (problem.teacher.graph(), student),
            problem.matching,
            problem.runtime,
            problem.samples,
            batches,
            problem.options.seed,
        )
        return {block.student: block.error for block in found}


Errors = Mapping[str, float | None]


def _report(pair: BlockPair, reason: str, errors: tuple[Errors, Errors]) -> BlockReport:
    """Return the row of a linear node.

    Args:
        pair: the node.
        reason: why it has no adapter; "" where it has one.
        errors: of all nodes before and after.
    """
    before, after = (of_nodes.get(pair.student) for of_nodes in errors)
    return BlockReport(
        student=pair.student,
        teacher=pair.teacher,
        op=pair.op,
        adapter=None if reason else Pointwise.name,
        ridge=None,
        channels=pair.channels or (),
        error_before=before,
        error_after=after,
        status=BlockStatus.KEPT if reason else BlockStatus.FITTED,
        reason=reason,
        teacher_width=pair.teacher_width,
        evidence=pair.evidence,
        first_use=pair.first_use,
    )


def _views(graph: gs.Graph) -> dict[str, Linear]:
    return {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
