"""The story of ``compress``: analyse, choose, rewrite, fit, report.

::

    load ─▶ canonicalize ─▶ units, moments, sensitivities      teacher_analysis.study_teacher
    ─▶ choose levels under a budget, or read a plan            TeacherStudy.choose
    ─▶ carry the plan out                                      compression.rewrite
    ─▶ fit with the pairs that the plan knows ─▶ report        fit.fit_networks
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

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
from fskd_onnx.compression.rewrite import carry_out, pairs_of, pairs_through
from fskd_onnx.errors import NoImprovementError, TargetError
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.option_checks import given
from fskd_onnx.passes import Canonicalize, SplitTerms, export
from fskd_onnx.passes.analysis.factorizable import Form
from fskd_onnx.passes.restore_parameters import restore_parameters
from fskd_onnx.pipeline.compress_report import latency_feeds, measured_latency, report_of
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.pipeline.fit import fit_networks
from fskd_onnx.pipeline.gradient_setup import check_torch, check_trainable
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.target_search import search_student
from fskd_onnx.pipeline.teacher_analysis import outline_teacher, prepared, study_teacher
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.progress import share
from fskd_onnx.results import FitResult
from fskd_onnx.runtime.out_of_memory import with_enough_memory
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_check import checked
from fskd_onnx.serialization.model_files import ModelSource, check_source
from fskd_onnx.timing import StageTimer

# Of the work, roughly, where there is one fit.
_ANALYSIS = 0.3


@dataclass(frozen=True)
class _Student:
    """A student of a plan, fitted or not."""

    plan: Plan
    model: onnx.ModelProto
    fit: FitResult | None = None
    partners: Mapping[str, Partner] = field(default_factory=dict)


@threads_for()
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
    refines = samples is not None and not chosen.no_fit and chosen.fit.needs_torch
    if refines:
        check_torch()
    model = prepared(LoadedModel.load(teacher))
    if refines:
        check_trainable(model, model)
    loaded = None if samples is None else open_samples(samples, model, chosen.run)
    return _Compression(model, loaded, chosen).run()


class _Compression:
    """One call."""

    def __init__(
        self, model: LoadedModel, samples: Samples | None, options: CompressOptions
    ) -> None:
        self._teacher, self._samples, self._options = model, samples, options
        # What is made smaller: the teacher, in later rounds the student of the one before; that
        # one's partners in the teacher.
        self._model: LoadedModel = model
        self._partners: Mapping[str, Partner] = {}
        self._decoupled: set[str] = set()  # nodes, in earlier rounds
        self._notes: list[str] = []
        self._timer = StageTimer()
        self._runtime: Runtime = open_runtime(options.run.providers)
        self._student_name = f"the student of {model.name}"

    def run(self) -> CompressResult:
        """Analyse, choose, rewrite, fit, report."""
        options = self._options
        for number in range(1, options.rounds):
            with share((number - 1) / options.rounds, number / options.rounds):
                self._run_round(number)
        with share(1 - 1 / options.rounds, 1.0):
            return self._run_last_round()

    def _run_last_round(self) -> CompressResult:
        options = self._options
        student: _Student | None = None
        if options.plan is not None:
            study, plan = self._read_plan(options.plan)
        else:
            study = self._study()
            plan, student = self._choose(study)
        if options.dry_run:
            return self._result(study, self._rewritten(study, plan))
        return self._result(study, student or self._fitted(study, plan))

    def _run_round(self, number: int) -> None:
        """Go a part of the way, and on from the student that comes out."""
        what, rounds = self._options.reduction.what, self._options.rounds
        study = self._study()
        with self._timer("plan"):
            plan = study.choose(what, self._part_left(study, number))
        student = self._fitted(study, plan)
        if student.fit is None:
            return  # so little goes in this round that all stays whole
        canonical = Canonicalize()(student.model).model
        self._model = prepared(replace(self._teacher, model=student.model, canonical=canonical))
        self._partners = student.partners
        self._decoupled |= student.plan.ranks(Form.DECOUPLE).keys()
        left = self._cost(outline_teacher(self._model, self._options, self._shapes)) / self._whole
        self._notes.append(
            f"round {number} of {rounds}: {left:.1%} of {what} left, relative error "
            f"{student.fit.report.after.relative_mse:.4g} on held-out samples"
        )

    def _part_left(self, study: TeacherStudy, number: int) -> float:
        """Return the part of a network's cost that a round leaves: of the teacher's, as much each.

        Args:
            study: of the network.
            number: of the round, 1 for the first one.
        """
        options = self._options
        part: float = options.reduction.budget ** (number / options.rounds)
        return part if options.rounds == 1 else part * self._whole / self._cost(study)

    @cached_property
    def _whole(self) -> float:
        """The cost of the teacher."""
        return self._cost(outline_teacher(self._teacher, self._options, self._shapes))

    def _cost(self, study: TeacherStudy) -> float:
        total = study.costs.total
        of_params = self._options.reduction.what == CostName.PARAMS
        return float(total.parameters if of_params else total.macs)

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """Shapes of one sample, by input; None without samples."""
        return None if self._samples is None else self._samples.shapes

    def _read_plan(self, file: str) -> tuple[TeacherStudy, Plan]:
        """Return a plan from a file, with the channels that it leaves open."""
        with self._timer("plan"):
            study = outline_teacher(self._model, self._options, self._shapes)
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
            part = self._part_left(study, options.rounds)
            return study.choose(options.reduction.what, part), None

    def _study(self) -> TeacherStudy:
        """Analyse what is made smaller, with as many samples at once as fit into memory."""
        with self._timer("analysis"):
            return with_enough_memory(self._analysed, self._options.run.batch_size)

    def _analysed(self) -> TeacherStudy:
        options = self._options
        with share(0.0, _ANALYSIS), TensorStore(options.run.memory_limit) as store:
            divided = None
            if self._samples is not None:
                divided = divide_samples(
                    (self._model,), self._samples, options.fit, store, self._runtime
                )
            if options.rounds > 1:  # together they take no more of a layer than one may
                most = 1 - (1 - options.max_ratio) ** (1 / options.rounds)
                options = replace(options, max_ratio=most)
            return study_teacher(self._model, options, divided, self._runtime)

    def _rewritten(self, study: TeacherStudy, plan: Plan) -> _Student:
        """Return the bare student of a plan."""
        with self._timer("rewrite"):
            graph = study.model.graph()
            carry_out(plan, graph)
            model = restore_parameters(export(graph, like=study.model.canonical), study.model.given)
            checked(model, self._student_name)
        return _Student(plan, model)

    def _fitted(self, study: TeacherStudy, plan: Plan) -> _Student:
        """Return the student of a plan, fitted where there is something to fit it on."""
        bare = self._rewritten(study, plan)
        if self._samples is None or self._options.no_fit or not plan.is_reduced:
            return bare
        model, canonical = bare.model, Canonicalize()(bare.model).model
        own = replace(self._teacher, name=self._student_name, model=model, canonical=canonical)
        pairs = pairs_of(plan, study.channels, own.graph())
        if self._partners:
            pairs = pairs_through(pairs, study.channels, self._partners)
        with self._timer("fit"), share(_ANALYSIS, 1.0):
            networks = self._teacher, own
            fit = fit_networks(networks, self._samples, self._options.fit, StageTimer(), pairs)
        return _Student(plan, fit.model, fit, pairs)

    def _smallest(self, study: TeacherStudy, most: float) -> _Student:
        """Return the smallest student whose agreement on held-out samples falls by no more."""

        def meets(student: _Student) -> bool:
            if student.fit is None:
                return False
            after = student.fit.report.after
            if after.top1_agreement is not None:
                return 1 - after.top1_agreement <= most
            return after.relative_mse <= most

        def choose(left: float) -> Plan | None:
            return self._reachable(lambda: study.choose(CostName.MACS, left))

        def make(plan: Plan) -> _Student:
            try:
                return self._fitted(study, plan)
            except NoImprovementError:
                return _Student(plan, self._model.model)  # not one to give out

        found = search_student(choose, make, meets, smallest=True)
        if found is None:
            raise TargetError(
                f"{self._model.name}: no student that was tried keeps the agreement within "
                f"{most:.2%}; allow more, or give more samples"
            )
        return found

    def _fast_enough(self, study: TeacherStudy, part: float) -> _Student:
        """Return the student of least error that takes no more than a part of the time."""
        fastest = 1.0
        feeds = latency_feeds(study, self._samples, self._options.run.seed)

        def meets(student: _Student) -> bool:
            nonlocal fastest
            with self._timer("latency"):
                found = measured_latency(study, self._given_out(student), self._runtime, feeds)
                ratio = found.ratios[1]
            fastest = min(fastest, ratio)
            return ratio <= part

        with self._timer("latency"):
            cases = LinearCase.find(study.model.graph(), study.shapes)
            seconds = LatencyModel(study.cost_model, cases, NodeLatency(self._runtime))

        def choose(left: float) -> Plan | None:
            return self._reachable(lambda: study.choose(CostName.LATENCY, left, seconds))

        make = partial(self._rewritten, study)
        found = search_student(choose, make, meets, smallest=False)
        if found is None:
            raise TargetError(
                f"{self._model.name}: the fastest student that was tried takes {fastest:.0%} of "
                f"its time, and {part:.0%} was asked for; ask for less"
            )
        return found

    def _reachable(self, choose: Callable[[], Plan]) -> Plan | None:
        """Return the plan that is chosen; None where there is none."""
        with self._timer("plan"):
            try:
                return choose()
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

    def _given_out(self, student: _Student) -> onnx.ModelProto:
        """Return the model of a student, the terms of its decoupled nodes as branches."""
        decoupled = self._decoupled | student.plan.ranks(Form.DECOUPLE).keys()
        return SplitTerms(decoupled)(student.model).model if decoupled else student.model

    def _result(self, study: TeacherStudy, student: _Student) -> CompressResult:
        """Return a student, and what is told of it."""
        model = self._given_out(student)
        fit = None if student.fit is None else student.fit.report
        notes = self._notes if fit is not None else [self._why_not_fitted(student.plan)]
        if study.model is not self._teacher:
            study = outline_teacher(self._teacher, self._options, self._shapes)
        report = report_of(
            study,
            student.plan,
            model,
            fit,
            self._options,
            self._runtime,
            self._timer,
            feeds=latency_feeds(study, self._samples, self._options.run.seed),
            notes=tuple(notes),
        )
        return CompressResult(None if self._options.dry_run else model, student.plan, report)
