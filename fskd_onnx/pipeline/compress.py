"""The story of ``compress``: analyse, choose, rewrite, fit, report.

::

    load ─▶ canonicalize ─▶ units, moments, sensitivities      teacher_analysis.study_teacher
    ─▶ choose levels under a budget, or read a plan            TeacherStudy.choose
    ─▶ carry the plan out                                      compression.rewrite
    ─▶ fit with the pairs that the plan knows ─▶ report        fit.fit_networks
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import onnx

from fskd_onnx.compress_options import CompressOptions, CostName
from fskd_onnx.compress_results import (
    CompressResult,
    Plan,
    UnitKind,
)
from fskd_onnx.compression.latency_model import LatencyModel
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.compression.plan import read_plan
from fskd_onnx.compression.rewrite import carry_out, pairs_of
from fskd_onnx.errors import NoImprovementError, TargetError
from fskd_onnx.option_checks import given
from fskd_onnx.passes import Canonicalize, export
from fskd_onnx.pipeline.compress_report import latency_ratio, report_of
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.pipeline.fit import fit_networks
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.refinement import check_refinable, check_torch
from fskd_onnx.pipeline.teacher_analysis import outline_teacher, prepared, study_teacher
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.results import FitResult
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.serialization.model_files import ModelSource, check_source
from fskd_onnx.timing import StageTimer

# Steps of a search for the smallest student that meets a measured target.
_SEARCH_STEPS = 6


@dataclass(frozen=True)
class _Student:
    """A student of a plan, fitted or not."""

    plan: Plan
    model: onnx.ModelProto
    fit: FitResult | None = None


def compress(
    teacher: ModelSource,
    samples: SampleSource | None = None,
    options: CompressOptions | None = None,
) -> CompressResult:
    """Make a smaller student from a teacher, and fit it.

    Args:
        teacher: the original network.
        samples: a few unlabelled samples, see ``fskd_onnx.samples.sources.load_samples``; None for
            a student that is not fitted.
        options: see ``CompressOptions``.

    Raises:
        TargetError: the target cannot be reached.
        NoImprovementError: on held-out samples the fitted student is no closer to the teacher.
        FskdError: a file, the samples or the machine cannot be used.
    """
    check_source(teacher, "teacher")
    chosen = given(options, "options", CompressOptions)
    if samples is None:
        chosen.check_without_samples()
    refines = samples is not None and not chosen.no_fit and chosen.fit.refine > 0
    if refines:
        check_torch()
    model = prepared(LoadedModel.load(teacher))
    if refines:
        check_refinable(model, model)
    loaded = None if samples is None else open_samples(samples, model, chosen.run)
    return _Compression(model, loaded, chosen).run()


class _Compression:
    """One call."""

    def __init__(
        self, model: LoadedModel, samples: Samples | None, options: CompressOptions
    ) -> None:
        self._model, self._samples, self._options = model, samples, options
        self._timer = StageTimer()
        self._runtime: Runtime = open_runtime(options.run.providers)
        self._student_name = f"the student of {model.name}"

    def run(self) -> CompressResult:
        """Analyse, choose, rewrite, fit, report."""
        options = self._options
        student: _Student | None = None
        if options.plan is not None:
            study, plan = self._read_plan(options.plan)
        else:
            study = self._study()
            plan, student = self._choose(study)
        if options.dry_run:
            return self._result(study, self._rewritten(study, plan), None)
        student = student or self._fitted(study, plan)
        return self._result(study, student, student.model)

    def _read_plan(self, file: str) -> tuple[TeacherStudy, Plan]:
        """Return a plan from a file, with the channels that it leaves open."""
        with self._timer("plan"):
            shapes = None if self._samples is None else self._samples.shapes
            study = outline_teacher(self._model, self._options, shapes)
            plan = read_plan(file, self._model.name, study.limits())
        widths = [unit for unit in plan.units if unit.kind == UnitKind.WIDTH and unit.is_reduced]
        if any(unit.kept is None for unit in widths):
            study = self._study()  # for what each channel is worth
        with self._timer("plan"):
            return study, study.completed(plan)

    def _choose(self, study: TeacherStudy) -> tuple[Plan, _Student | None]:
        """Return the plan that meets the target, and its student if the search has fitted it."""
        options = self._options
        if options.max_drop is not None:
            student = self._smallest(study, options.max_drop)
            return student.plan, student
        if options.reduction.what == CostName.LATENCY:
            return self._fast_enough(study, options.reduction.budget).plan, None
        with self._timer("plan"):
            return study.choose(options.reduction.what, options.reduction.budget), None

    def _study(self) -> TeacherStudy:
        options = self._options
        with self._timer("analysis"), TensorStore(options.run.memory_limit) as store:
            divided = None
            if self._samples is not None:
                divided = divide_samples(
                    (self._model,), self._samples, options.fit, store, self._runtime
                )
            return study_teacher(self._model, options, divided, self._runtime)

    def _rewritten(self, study: TeacherStudy, plan: Plan) -> _Student:
        """Return the bare student of a plan."""
        with self._timer("rewrite"):
            graph = study.model.graph()
            carry_out(plan, graph)
            model = export(graph, like=study.model.canonical)
            checked(model, self._student_name)
        return _Student(plan, model)

    def _fitted(self, study: TeacherStudy, plan: Plan) -> _Student:
        """Return the student of a plan, fitted where there is something to fit it on."""
        bare = self._rewritten(study, plan)
        if self._samples is None or self._options.no_fit or not plan.is_reduced:
            return bare
        model, canonical = bare.model, Canonicalize()(bare.model).model
        own = replace(self._model, name=self._student_name, model=model, canonical=canonical)
        pairs = pairs_of(plan, study.channels, own.graph())
        with self._timer("fit"):
            networks = self._model, own
            fit = fit_networks(networks, self._samples, self._options.fit, StageTimer(), pairs)
        return _Student(plan, fit.model, fit)

    def _smallest(self, study: TeacherStudy, most: float) -> _Student:
        """Return the smallest student whose agreement on held-out samples falls by no more."""

        def meets(student: _Student) -> bool:
            if student.fit is None:
                return False
            after = student.fit.report.after
            if after.top1_agreement is not None:
                return 1 - after.top1_agreement <= most
            return after.relative_mse <= most

        def choose(left: float) -> Plan:
            return study.choose(CostName.MACS, left)

        def make(plan: Plan) -> _Student:
            try:
                return self._fitted(study, plan)
            except NoImprovementError:
                return _Student(plan, self._model.model)  # not one to give out

        found = self._search(choose, make, meets)
        if found is None:
            raise TargetError(
                f"{self._model.name}: no student that was tried keeps the agreement within "
                f"{most:.2%}; allow more, or give more samples"
            )
        return found

    def _fast_enough(self, study: TeacherStudy, part: float) -> _Student:
        """Return the student of least error that takes no more than a part of the time."""
        fastest = 1.0

        def meets(student: _Student) -> bool:
            nonlocal fastest
            with self._timer("latency"):
                seed = self._options.run.seed
                ratio = latency_ratio(study, student.model, self._runtime, seed)
            fastest = min(fastest, ratio)
            return ratio <= part

        with self._timer("latency"):
            cases = LinearCase.find(study.model.graph(), study.shapes)
            seconds = LatencyModel(study.cost_model, cases, NodeLatency(self._runtime))

        def choose(left: float) -> Plan:
            return study.choose(CostName.LATENCY, left, seconds)

        found = self._search(choose, partial(self._rewritten, study), meets, smallest=False)
        if found is None:
            raise TargetError(
                f"{self._model.name}: the fastest student that was tried takes {fastest:.0%} of "
                f"its time, and {part:.0%} was asked for; ask for less"
            )
        return found

    def _search(
        self,
        choose: Callable[[float], Plan],
        make: Callable[[Plan], _Student],
        meets: Callable[[_Student], bool],
        *,
        smallest: bool = True,
    ) -> _Student | None:
        """Search by bisection over what is left of a cost.

        Args:
            choose: gives the plan that leaves a part of it.
            make: makes the student of a plan.
            meets: whether a student meets the target.
            smallest: whether the smallest of those is wanted, else the largest.
        """
        low, high = 0.0, 1.0
        found = None
        for _ in range(_SEARCH_STEPS):
            part = (low + high) / 2
            plan = self._reachable(choose, part)
            if plan is None:
                low = part
                continue
            student = make(plan)
            good = meets(student)
            found = student if good else found
            # The smallest good one lies below a good one, the largest one above.
            if good == smallest:
                high = part
            else:
                low = part
        return found

    def _reachable(self, choose: Callable[[float], Plan], part: float) -> Plan | None:
        """Return the plan that leaves a part of a cost; None where there is none."""
        with self._timer("plan"):
            try:
                return choose(part)
            except TargetError:
                return None

    def _why_not_fitted(self, plan: Plan) -> str:
        if self._options.dry_run:
            return "a dry run makes no student"
        if not plan.is_reduced:
            return "the plan leaves all whole, so there is nothing to fit"
        if self._samples is None:
            return "without samples the student is not fitted; it is less accurate than it can be"
        return "it is not fitted"

    def _result(
        self, study: TeacherStudy, student: _Student, given_out: onnx.ModelProto | None
    ) -> CompressResult:
        """Return what is told of a student.

        Args:
            study: of the teacher.
            student: the student.
            given_out: the model that is given out; None after a dry run.
        """
        fit = None if student.fit is None else student.fit.report
        notes = () if fit is not None else (self._why_not_fitted(student.plan),)
        report = report_of(
            study,
            student.plan,
            student.model,
            fit,
            self._options,
            self._runtime,
            self._timer,
            notes=notes,
        )
        return CompressResult(given_out, student.plan, report)
