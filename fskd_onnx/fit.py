"""The story on one page: load, canonicalize, match, (capture, solve, fuse) per block, verify."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fskd_onnx.adapt import BlockFit, fit_block
from fskd_onnx.clock import Clock
from fskd_onnx.compare import Outputs, agreement, check_same_interface, forward
from fskd_onnx.engine import Batch, Lockstep, default_batch_size, plan_batches
from fskd_onnx.errors import FskdError, MatchError, NoImprovementError, SamplesError
from fskd_onnx.match import (
    BlockPair,
    Channels,
    Matching,
    channels_from_moments,
    match_models,
    uncertain,
)
from fskd_onnx.model_io import (
    ModelSource,
    count_parameters,
    fixed_batch_size,
    input_specs,
    load_model,
    source_name,
)
from fskd_onnx.moments import Affine, total
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import Adapter, Canonicalize, FuseAdapter, InsertAdapter
from fskd_onnx.passes.base import export
from fskd_onnx.passes.capture import Columns
from fskd_onnx.passes.linear import Linear, find_linear
from fskd_onnx.passes.replace_weights import ReplaceWeights, Weights
from fskd_onnx.passes.segment import ancestors
from fskd_onnx.providers import Runtime, open_runtime
from fskd_onnx.readout import Readout, read_out
from fskd_onnx.report import Agreement, BlockReport, FitReport, Seconds
from fskd_onnx.samples import Samples, SampleSource, load_samples
from fskd_onnx.select import select_targets
from fskd_onnx.solve import Family
from fskd_onnx.stream import BlockStream, BlockTensors

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1  # fraction of the samples that no block is fitted on
_FOLDS = 5
_LEAST_SAMPLES = 3  # one held out, two folds
# Fused and explicit graphs round differently; this is far above rounding, far below any effect.
_ROUNDING = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-3, np.dtype(np.float16): 5e-2}


@dataclass(frozen=True)
class FitResult:
    """A fitted student and how it came about."""

    model: onnx.ModelProto
    report: FitReport


def fit(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: FitOptions | None = None,
) -> FitResult:
    """Bring a student close to its teacher, block by block, with adapters that cost nothing.

    Block coordinate descent of FSKD (Li et al. 2020, algorithm 1): blocks are fitted in topological
    order, each on the student as corrected so far.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: a few unlabelled samples, see ``fskd_onnx.samples.load_samples``.
        options: see ``FitOptions``.

    Raises:
        NoImprovementError: on held-out samples the fitted student is no closer to the teacher.
        FskdError: a file, the samples or the machine cannot be used.
    """
    options = options or FitOptions()
    clock = Clock()
    task = _prepare(teacher, student, samples, options.run)
    best: _Outcome | None = None
    for start in _starts(task, options, clock):
        outcome = _fit_from(start, task, options, clock)
        if best is None or outcome.after.relative_mse < best.after.relative_mse:
            best = outcome
    if best is None:
        raise MatchError(
            f"{task.student.name}: no block is narrower than its teacher's and free to carry other "
            "channels, so there is nothing to select; choose --targets kept"
        )
    report = FitReport(
        teacher=task.teacher.name,
        student=task.student.name,
        output=None,
        options=_jsonable(options),
        providers=task.runtime.providers,
        sample_count=len(task.samples),
        held_out_count=len(task.held_out),
        blocks=best.fitted.reports,
        before=task.before,
        after=best.after,
        parameters_student=count_parameters(task.student.model),
        parameters_fused=count_parameters(best.model),
        seconds=Seconds(
            total=clock.total,
            **{stage: clock.spent(stage) for stage in ("capture", "solve", "fuse", "verify")},
        ),
        versions=_versions(),
    )
    if not best.after.relative_mse < task.before.relative_mse:
        raise NoImprovementError(
            f"{task.student.name}: the fit brought it no closer to the teacher on "
            f"{len(task.held_out)} held-out samples (relative error {task.before.relative_mse:.4g} -> "
            f"{best.after.relative_mse:.4g}), so nothing was written; give more samples",
            report,
        )
    return FitResult(best.model, report)


def match(
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource | None = None,
    options: RunOptions | None = None,
) -> Matching:
    """Pair the blocks and channels of a student with its teacher's.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: with samples, channels that weights leave open are found from activations, which
            means fitting block by block, since an unfitted student's deep activations say nothing.
        options: how to read and run.
    """
    if samples is None:
        networks = [_Canonical.load(source) for source in (teacher, student)]
        return match_models(*(gs.import_onnx(network.canonical) for network in networks))
    task = _prepare(teacher, student, samples, options or RunOptions())
    if all(pair.channels is not None for pair in task.matching.usable):
        return task.matching
    fitted = _Fitted(gs.import_onnx(task.student.canonical), task.matching)
    _fit_blocks(fitted, task, FitOptions(run=task.options, adapter="pointwise"), Clock())
    return fitted.matching


@dataclass(frozen=True)
class _Canonical:
    """A model as it came and as the passes read it."""

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto

    @staticmethod
    def load(source: ModelSource) -> _Canonical:
        model = load_model(source)
        result = Canonicalize()(model)
        for note in result.notes:
            logger.debug("%s: %s", source_name(source), note)
        return _Canonical(source_name(source), model, result.model)


@dataclass(frozen=True)
class _Task:
    """Everything that a fit starts from."""

    teacher: _Canonical
    student: _Canonical
    matching: Matching
    runtime: Runtime
    samples: Samples
    batches: list[Batch]
    held_out: NDArray[np.intp]
    options: RunOptions

    def outputs(self, model: onnx.ModelProto, name: str) -> Outputs:
        """Run a whole model on the held-out samples."""
        return forward(
            self.runtime, model, self.samples, self.held_out, self.options.batch_size, name
        )

    @cached_property
    def target(self) -> Outputs:
        """The teacher's outputs for the held-out samples."""
        return self.outputs(self.teacher.model, self.teacher.name)

    @cached_property
    def before(self) -> Agreement:
        """How close the untouched student is on held-out samples."""
        return agreement(self.target, self.outputs(self.student.model, self.student.name))


@dataclass(frozen=True)
class _Outcome:
    """A fitted student and how close it came on held-out samples."""

    fitted: _Fitted
    model: onnx.ModelProto
    after: Agreement


@dataclass
class _Fitted:
    """The student as corrected so far, and how."""

    student: gs.Graph
    matching: Matching
    adapters: dict[str, Adapter] = field(default_factory=dict)
    weights: dict[str, Weights] = field(default_factory=dict)
    known: dict[str, tuple[Channels, float]] = field(default_factory=dict)
    blocks: dict[str, BlockReport] = field(default_factory=dict)

    def pair(self, name: str) -> BlockPair:
        """Return the pair of a student's node."""
        return next(pair for pair in self.matching.pairs if pair.student == name)

    def correct(self, name: str, linear: Linear, block: BlockFit) -> None:
        """Apply a fit to the graph, and keep it for the explicit form of the whole."""
        if block.family.name == "pointwise":
            self.adapters[name] = Adapter(block.adapter.matrix, block.adapter.shift.reshape(-1))
            InsertAdapter({name: self.adapters[name]}).run(self.student)
            FuseAdapter().run(self.student)
        else:
            self.weights[name] = Weights(block.adapter.matrix, block.adapter.shift.reshape(-1))
            ReplaceWeights({name: self.weights[name]}).run(self.student)

    def explicit(self, canonical: onnx.ModelProto) -> onnx.ModelProto:
        """Return the corrected student with its pointwise adapters as nodes of their own."""
        replaced = ReplaceWeights(self.weights)(canonical).model
        return InsertAdapter(self.adapters)(replaced).model

    @property
    def reports(self) -> tuple[BlockReport, ...]:
        """A line for every linear node of the student, in order."""
        alone = {
            pair.student: _kept(pair, pair.reason) for pair in self.matching.pairs if pair.reason
        }
        return tuple((self.blocks | alone)[pair.student] for pair in self.matching.pairs)


def _prepare(
    teacher: ModelSource, student: ModelSource, samples: SampleSource, options: RunOptions
) -> _Task:
    networks = [_Canonical.load(source) for source in (teacher, student)]
    check_same_interface(networks[0].model, networks[1].model, networks[0].name, networks[1].name)
    matching = match_models(*(gs.import_onnx(network.canonical) for network in networks))
    if not matching.usable:
        raise MatchError(
            f"{networks[1].name}: no block has a counterpart in {networks[0].name}; "
            "give a student that was made from this teacher and kept its names"
        )
    loaded = load_samples(
        samples,
        input_specs(networks[0].model),
        options.preprocess,
        options.max_samples,
        options.seed,
    )
    if len(loaded) < _LEAST_SAMPLES:
        raise SamplesError(
            f"{len(loaded)} samples are too few to fit on some and check on others; "
            f"give at least {_LEAST_SAMPLES}"
        )
    shuffled = np.random.default_rng(options.seed).permutation(len(loaded))
    held_out = max(1, round(_HELD_OUT * len(loaded)))
    rest = shuffled[held_out:]
    specs = [spec for network in networks for spec in input_specs(network.model)]
    batches = plan_batches(
        np.array_split(rest, min(_FOLDS, len(rest))),
        options.batch_size or default_batch_size(loaded.take(rest[:1])),
        fixed_batch_size(specs),
    )
    return _Task(
        teacher=networks[0],
        student=networks[1],
        matching=matching,
        runtime=open_runtime(options.providers),
        samples=loaded,
        batches=batches,
        held_out=np.sort(shuffled[:held_out]),
        options=options,
    )


def _fit_blocks(state: _Fitted, task: _Task, options: FitOptions, clock: Clock) -> None:
    """Advance both networks block by block, correcting the student's before it runs on."""
    teacher = gs.import_onnx(task.teacher.canonical)
    plans = _plan_blocks(state.matching, state.student, teacher)
    lockstep = Lockstep(
        task.runtime,
        state.student,
        teacher,
        [(list(p.tensors.of_student.values()), list(p.tensors.of_teacher.values())) for p in plans],
        task.samples,
        task.batches,
    )
    for plan in plans:
        # Systems of this size lose more by being handed round among threads than they gain.
        with clock("capture"), lockstep.stage(), clock("solve"), threadpool_limits(1):
            state.blocks[plan.name] = _fit_one(task, options, state, plan, lockstep, clock)


def _fit_one(
    task: _Task,
    options: FitOptions,
    state: _Fitted,
    plan: _BlockPlan,
    lockstep: Lockstep,
    clock: Clock,
) -> BlockReport:
    """Fit one block and correct it in the student's graph, or say why it is kept."""
    linear = find_block(state.student, plan.name)
    seed = (task.options.seed, plan.index)
    try:
        if state.pair(plan.name).channels is None:
            columns = plan.columns(linear, None, outputs=True)
            stream = BlockStream(task.runtime, lockstep, plan.tensors, columns, seed, clock)
            channels, confidence = channels_from_moments(total(stream.sums()[0]))
            if uncertain(confidence):
                correlation = f"by {confidence:.2f}" if confidence > 0 else "not at all"
                return _kept(
                    state.pair(plan.name),
                    f"one of its channels correlates with the teacher's {correlation}",
                )
            state.known[plan.name] = channels, confidence
            state.matching = _rematch(task, state)
        pair = state.pair(plan.name)
        outputs = options.adapter == "pointwise"
        columns = plan.columns(linear, np.array(pair.channels), outputs)
        stream = BlockStream(task.runtime, lockstep, plan.tensors, columns, seed, clock)
        block = fit_block(stream, columns, _families(linear, options.adapter), plan.readout)
    except MatchError as error:
        return _kept(state.pair(plan.name), str(error))
    if not block.improves:
        return _kept(pair, "no adapter is better on held-out folds", block.error_before)
    with clock("fuse"):
        state.correct(plan.name, linear, block)
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


@dataclass(frozen=True)
class _BlockPlan:
    """What is known of a block before anything runs."""

    index: int
    name: str
    partner: Linear
    tensors: BlockTensors
    readout: Readout

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
    linears = [find_block(student, pair.student) for pair in matching.usable]
    plans = []
    for index, (pair, linear) in enumerate(zip(matching.usable, linears, strict=True)):
        partner = partners[str(pair.teacher)]
        mine, theirs = read_out(student, linear), read_out(teacher, partner)
        readout = mine
        if readout.total is not None:
            later = {id(v.bias_node or v.node) for v in linears[index:]}
            known = all(id(n) not in later for n in ancestors([tensors.get(str(mine.shortcut))]))
            # A shortcut that is corrected later would be repaired twice.
            if theirs.total is None or not known:
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
    if adapter == "pointwise":
        n = linear.width // linear.groups
        identity = np.broadcast_to(np.eye(n), (linear.groups, n, n))
        return [Family("pointwise", Affine(identity, np.zeros((linear.groups, n))), False)]
    kernel = Family("kernel", block, on_outputs=False)
    return [kernel] if adapter == "kernel" else [Family("pointwise", block, True), kernel]


def find_block(graph: gs.Graph, name: str) -> Linear:
    """Return the linear node of a name that is known to be there."""
    views = (view for view in find_linear(graph) if isinstance(view, Linear))
    return next(view for view in views if view.name == name)


def _rematch(task: _Task, state: _Fitted) -> Matching:
    """Match again with what activations have decided; what was settled before stays as it is."""
    graphs = [gs.import_onnx(network.canonical) for network in (task.teacher, task.student)]
    again = match_models(graphs[0], graphs[1], state.known)
    pairs = zip(state.matching.pairs, again.pairs, strict=True)
    return Matching(tuple(new if old.channels is None else old for old, new in pairs))


def _starts(task: _Task, options: FitOptions, clock: Clock) -> Iterator[_Fitted]:
    """Yield the students to fit: with the channels that were kept, with channels chosen anew."""
    if options.targets != "select":
        yield _Fitted(gs.import_onnx(task.student.canonical), task.matching)
    # Pointwise adapters cannot make up for channels that a block's own weights never read.
    if options.targets == "kept" or (options.targets == "auto" and options.adapter == "pointwise"):
        return
    graphs = [gs.import_onnx(network.canonical) for network in (task.student, task.teacher)]
    with clock("select"):
        selection = select_targets(*graphs, task.matching, task.runtime, task.samples, task.batches)
    if selection is not None:
        ReplaceWeights(selection.weights).run(graphs[0])
        yield _Fitted(graphs[0], selection.matching, weights=dict(selection.weights))


def _fit_from(start: _Fitted, task: _Task, options: FitOptions, clock: Clock) -> _Outcome:
    """Fit all blocks; check the fused model against the explicit one and against the teacher."""
    _fit_blocks(start, task, options, clock)
    with clock("fuse"):
        model = export(start.student, like=task.student.canonical)
        explicit = start.explicit(task.student.canonical)
    with clock("verify"):
        load_model(model)
        fused = task.outputs(model, f"fused {task.student.name}")
        separate = task.outputs(explicit, f"{task.student.name} with explicit adapters")
        for one, other in zip(fused, separate, strict=True):
            difference, bound = _difference(one, other), _ROUNDING.get(one.dtype, 0.0)
            if difference > bound:
                raise FskdError(
                    f"{task.student.name}: the fused model differs from explicit adapters by "
                    f"{difference:.2g}, more than rounding; please report this model"
                )
    return _Outcome(start, model, agreement(task.target, fused))


def _difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return the largest difference, relative to the largest value."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    largest = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / largest if largest else float(np.any(a))


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


def _jsonable(options: FitOptions) -> dict[str, object]:
    return dataclasses.asdict(options)


def _versions() -> dict[str, str]:
    versions = {"fskd-onnx": importlib.metadata.version("fskd-onnx")}
    for package in ("onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
