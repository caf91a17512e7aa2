"""The paper's FSKD-SGD: the 1x1 adapters of all blocks at once, by gradient steps.

The sum of the errors of all block outputs is minimized over all adapters together, from the
identity on (Li et al. 2020, section 3.3). Each block counts by its relative error, and adapters
have a shift, as those of the closed form have. They are fused in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.adapters import Pointwise, families_for
from fskd_onnx.fitting.block_reports import constants_read, fitted, kept
from fskd_onnx.fitting.coordinate_descent import Descent
from fskd_onnx.fitting.corrected_student import CorrectedStudent
from fskd_onnx.fitting.factored import DecomposedBlocks
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.block_errors import compare_blocks
from fskd_onnx.pipeline.gradient_setup import block_targets, steps_towards
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.progress import with_prefix
from fskd_onnx.samples.batches import Batch
from fskd_onnx.timing import StageTimer

# Of a step, as a part of the typical entry of an adapter.
_STEPS, _LENGTH = 600, 0.1
_FAMILY = Pointwise.name

Errors = Mapping[str, float | None]


@dataclass(frozen=True)
class AdapterSteps:
    """One fit by FSKD-SGD.

    Attributes:
        problem: what is fitted.
        split: the samples to fit on, and those that block errors are measured on.
        timer: counts the time of each stage.
        folds: those that a student is to be fitted without, besides the one that is fitted to all.
    """

    problem: FitProblem
    split: SampleSplit
    timer: StageTimer
    folds: Collection[int] = ()

    def run(self) -> Descent:
        """Train all adapters and fuse them.

        Raises:
            FskdError: a network cannot be run, or the machine has not enough memory.
        """
        reasons = self._reasons()
        names = {name for name, reason in reasons.items() if not reason}
        trained = {fold: self._trained(names, fold) for fold in (None, *self.folds)}
        # Graphs of the student have its inputs in the order of the teacher's.
        student = self.problem.student
        graphs = {
            fold: replace(student, canonical=model).graph()
            for fold, model in trained.items()
            if model is not None
        }
        if len(graphs) < len(trained):
            graphs = {fold: student.graph() for fold in trained}
            diverged = "gradient steps led to values that are not finite"
            reasons = {name: reason or diverged for name, reason in reasons.items()}
        with self.timer("verify"):
            before = self._errors({fold: student.graph() for fold in graphs})
            after = self._errors(graphs)
        rows = []
        for pair in self.problem.matching.pairs:
            errors = before.get(pair.student), after.get(pair.student)
            reason = reasons.get(pair.student, pair.reason)
            rows.append(kept(pair, reason, errors) if reason else fitted(pair, _FAMILY, errors))
        students = {f: CorrectedStudent(g, DecomposedBlocks({}), {}) for f, g in graphs.items()}
        parameters = constants_read(students[None].linears)
        without = {fold: students[fold] for fold in self.folds}
        return Descent(students[None], without, self.problem.matching, tuple(rows), parameters)

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

    def _trained(self, names: Collection[str], without: int | None) -> onnx.ModelProto | None:
        """Return the student with trained adapters; None where they leave the range of numbers.

        Args:
            names: of the nodes that get one.
            without: the fold to leave out; None for none.
        """
        from fskd_onnx.gradient.trainable import TrainableAdapters

        problem = self.problem
        aims = {p.student: (p.teacher, p.channels or ()) for p in problem.matching.usable}
        targets = block_targets(problem, {name: aims[name] for name in aims if name in names})
        model = problem.student.canonical
        some = [batch for batch in self.split.batches if batch.fold != without]
        split = replace(self.split, batches=some)
        trained = TrainableAdapters(model, names)
        steps = steps_towards(problem, split, model, trained, targets, _LENGTH, as_they_are=True)
        last = None
        prefix = "" if without is None else f"without fold {without + 1}, "
        with self.timer("solve"), with_prefix(prefix):
            for point in steps.points(_STEPS):
                last = point
        return last.model if last is not None and last.steps == _STEPS else None

    def _errors(self, students: Mapping[int | None, gs.Graph]) -> Errors:
        """Return the error of each block on samples that it was not fitted to, the mean of folds.

        Args:
            students: by the fold that they were fitted without, the one fitted to all under None.
        """
        problem = self.problem
        held_out = set(self.split.held_out.tolist())
        batches: dict[int | None, list[Batch]] = {
            fold: [batch for batch in self.split.batches if batch.fold == fold]
            for fold in self.folds
        } or {None: [b for b in problem.splits.batches if held_out.issuperset(b.samples.tolist())]}
        found: dict[str, list[float | None]] = {}
        for fold, some in batches.items():
            graphs = problem.teacher.graph(), students[fold]
            seed = problem.options.seed
            for block in compare_blocks(
                graphs, problem.matching, problem.runtime, problem.samples, some, seed
            ):
                found.setdefault(block.student, []).append(block.error)
        return {name: _mean(errors) for name, errors in found.items()}


def _mean(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return float(np.mean(known)) if known else None


def _views(graph: gs.Graph) -> dict[str, Linear]:
    return {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
