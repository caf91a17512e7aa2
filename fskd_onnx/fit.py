"""The story on one page: load, canonicalize, match, (capture, solve, fuse) per block, verify."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compare import Outputs, agreement, check_same_interface, forward
from fskd_onnx.engine import Network, default_batch_size, plan_batches, upload
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
from fskd_onnx.moments import MomentStream
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import Adapter, Canonicalize, FuseAdapter, InsertAdapter
from fskd_onnx.passes.base import export
from fskd_onnx.passes.linear import Linear, find_linear
from fskd_onnx.providers import Runtime, open_runtime
from fskd_onnx.report import Agreement, BlockReport, FitReport, Seconds
from fskd_onnx.samples import Samples, SampleSource, load_samples
from fskd_onnx.solve import solve_pointwise

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
    clock = _Clock()
    task = _prepare(teacher, student, samples, options.run)
    fitted = _fit_blocks(task, clock)
    with clock("fuse"):
        model = export(fitted.graph, like=task.student.canonical)
    with clock("verify"):
        before, after = _verify(task, fitted, model)
    report = FitReport(
        teacher=task.teacher.name,
        student=task.student.name,
        output=None,
        options=_jsonable(options),
        providers=task.runtime.providers,
        sample_count=len(task.samples),
        held_out_count=len(task.held_out),
        blocks=fitted.blocks,
        before=before,
        after=after,
        parameters_student=count_parameters(task.student.model),
        parameters_fused=count_parameters(model),
        seconds=clock.report(),
        versions=_versions(),
    )
    if not after.relative_mse < before.relative_mse:
        raise NoImprovementError(
            f"{task.student.name}: the fit brought it no closer to the teacher on "
            f"{len(task.held_out)} held-out samples (relative error {before.relative_mse:.4g} -> "
            f"{after.relative_mse:.4g}), so nothing was written; give more samples",
            report,
        )
    return FitResult(model, report)


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
    return _fit_blocks(task, _Clock()).matching


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
    folds: list[NDArray[np.intp]]
    held_out: NDArray[np.intp]
    options: RunOptions


@dataclass(frozen=True)
class _Fitted:
    """What comes out of the blocks."""

    graph: gs.Graph
    adapters: dict[str, Adapter]
    blocks: tuple[BlockReport, ...]
    matching: Matching


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
    return _Task(
        teacher=networks[0],
        student=networks[1],
        matching=matching,
        runtime=open_runtime(options.providers),
        samples=loaded,
        folds=np.array_split(rest, min(_FOLDS, len(rest))),
        held_out=np.sort(shuffled[:held_out]),
        options=options,
    )


def _fit_blocks(task: _Task, clock: _Clock) -> _Fitted:
    """Advance both networks block by block, correcting the student's before it runs on."""
    teacher, student = (
        gs.import_onnx(network.canonical) for network in (task.teacher, task.student)
    )
    references = {
        view.output.name: view for view in find_linear(teacher) if isinstance(view, Linear)
    }
    usable = task.matching.usable
    inputs = {pair.student: _find(student, pair.student).input.name for pair in usable}
    walk = _Lockstep(
        task,
        teacher,
        student,
        [(inputs[pair.student], str(pair.teacher)) for pair in usable],
    )
    matching = task.matching
    known: dict[str, tuple[Channels, float]] = {}
    adapters: dict[str, Adapter] = {}
    blocks: dict[str, BlockReport] = {}
    for index, name in enumerate(pair.student for pair in usable):
        pair = next(pair for pair in matching.pairs if pair.student == name)
        linear = _find(student, name)
        stream = MomentStream(
            task.runtime,
            linear,
            references[str(pair.teacher)],
            None if pair.channels is None else np.array(pair.channels),
            walk.batches,
            (task.options.seed, index),
        )
        try:
            with clock("capture"):
                walk.advance(stream)
        except MatchError as error:
            blocks[name] = _kept(pair, str(error))
            continue
        with clock("solve"):
            folds = stream.folds
            if pair.channels is None:
                channels, confidence = channels_from_moments(sum(folds[1:], start=folds[0]))
                if uncertain(confidence):
                    reason = (
                        f"its channels correlate too little with the teacher's ({confidence:.2f})"
                    )
                    blocks[name] = _kept(pair, reason)
                    continue
                known[name] = channels, confidence
                matching = _rematch(task, known)
                pair = next(pair for pair in matching.pairs if pair.student == name)
                folds = [fold.select(linear.groups, channels) for fold in folds]
            solution = solve_pointwise(folds)
        if not solution.improves:
            blocks[name] = _kept(
                pair, "no adapter is better on held-out folds", solution.error_before
            )
            continue
        with clock("fuse"):
            adapters[name] = Adapter(solution.matrix, solution.shift.reshape(-1))
            InsertAdapter({name: adapters[name]}).run(student)
            FuseAdapter().run(student)
        blocks[name] = BlockReport(
            student=name,
            teacher=pair.teacher,
            op=pair.op,
            adapter="pointwise",
            ridge=solution.ridge,
            channels=pair.channels or (),
            error_before=solution.error_before,
            error_after=solution.error_after,
            status="fitted",
            reason="",
        )
        logger.info("%s: %.4g -> %.4g", name, solution.error_before, solution.error_after)
    alone = {pair.student: _kept(pair, pair.reason) for pair in matching.pairs if pair.reason}
    every = tuple((blocks | alone)[pair.student] for pair in matching.pairs)
    return _Fitted(student, adapters, every, matching)


class _Lockstep:
    """Teacher and student side by side, stage by stage, over all batches."""

    def __init__(
        self, task: _Task, teacher: gs.Graph, student: gs.Graph, stops: Sequence[tuple[str, str]]
    ) -> None:
        specs = [input_specs(network.model) for network in (task.teacher, task.student)]
        first = task.samples.take(task.folds[0][:1])
        size = task.options.batch_size or default_batch_size(first)
        fixed = max(filter(None, map(fixed_batch_size, specs)), default=None)
        self.batches = plan_batches(task.folds, size, fixed)
        device = task.runtime.device
        feeds = [upload(task.samples.take(batch.samples), device) for batch in self.batches]
        renamed = [
            dict(zip((spec.name for spec in specs[1]), feed.values(), strict=True))
            for feed in feeds
        ]
        self._stops = stops
        self._student = Network(task.runtime, student, [(mine,) for mine, _ in stops], renamed)
        self._teacher = Network(task.runtime, teacher, [(theirs,) for _, theirs in stops], feeds)
        self._stage = 0

    def advance(self, stream: MomentStream) -> None:
        """Run both networks up to the next block and add up its moments."""
        mine, theirs = self._stops[self._stage]
        self._stage += 1
        for network in (self._student, self._teacher):
            network.enter()
        for index, batch in enumerate(self.batches):
            patches = self._student.step(index)[mine]
            targets = self._teacher.step(index)[theirs]
            stream.add(index, batch, patches, targets)
        for network in (self._student, self._teacher):
            network.leave()


def _rematch(task: _Task, known: dict[str, tuple[Channels, float]]) -> Matching:
    graphs = [gs.import_onnx(network.canonical) for network in (task.teacher, task.student)]
    return match_models(graphs[0], graphs[1], known)


def _verify(task: _Task, fitted: _Fitted, model: onnx.ModelProto) -> tuple[Agreement, Agreement]:
    """Check the fused model against the explicit one; hold it and the student against the teacher."""
    load_model(model)

    def outputs(network: onnx.ModelProto, name: str) -> Outputs:
        return forward(
            task.runtime, network, task.samples, task.held_out, task.options.batch_size, name
        )

    explicit = InsertAdapter(fitted.adapters)(task.student.canonical).model
    fused = outputs(model, f"fused {task.student.name}")
    for one, other in zip(
        fused, outputs(explicit, "the student with explicit adapters"), strict=True
    ):
        difference, bound = _difference(one, other), _ROUNDING.get(one.dtype, 0.0)
        if difference > bound:
            raise FskdError(
                f"{task.student.name}: the fused model differs from explicit adapters by "
                f"{difference:.2g}, more than rounding; please report this model"
            )
    target = outputs(task.teacher.model, task.teacher.name)
    before = agreement(target, outputs(task.student.model, task.student.name))
    return before, agreement(target, fused)


def _difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return the largest difference, relative to the largest value."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    largest = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / largest if largest else float(np.any(a))


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
    )


@dataclass
class _Clock:
    """Adds up wall-clock seconds per stage."""

    started: float = field(default_factory=time.perf_counter)
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        entered = time.perf_counter()
        try:
            yield
        finally:
            self.spent[stage] += time.perf_counter() - entered

    def report(self) -> Seconds:
        stages = {stage: self.spent[stage] for stage in ("capture", "solve", "fuse", "verify")}
        return Seconds(total=time.perf_counter() - self.started, **stages)


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
