"""Everything that a fit starts from: two canonical networks, their pairs, samples in folds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.errors import MatchError, SamplesError
from fskd_onnx.matching.activation_similarity import ActivationSimilarity
from fskd_onnx.matching.channels import match_channels
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import Partner, pair_blocks
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import Canonicalize
from fskd_onnx.reporting.agreement import agreement
from fskd_onnx.results import Agreement, Matching
from fskd_onnx.runtime.forward import Outputs, forward
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.samples.augment import Augmented
from fskd_onnx.samples.batches import Batch, default_batch_size, plan_batches
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import check_same_interface, fixed_batch_size, input_specs
from fskd_onnx.serialization.model_files import ModelSource, load_model, source_name

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1  # fraction of the samples that no block is fitted on
_FOLDS = 5
_LEAST_SAMPLES = 3  # one held out, two folds
# Fewer judge by accident: one of ten samples refuses many a good fit. And the fit misses them.
_LEAST_HELD_OUT = 6


@dataclass(frozen=True)
class LoadedModel:
    """A model as it came and as the passes read it."""

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto

    @staticmethod
    def load(source: ModelSource) -> LoadedModel:
        """Read, check and canonicalize a model."""
        model = load_model(source)
        result = Canonicalize()(model)
        for note in result.notes:
            logger.debug("%s: %s", source_name(source), note)
        return LoadedModel(source_name(source), model, result.model)

    def graph(self) -> gs.Graph:
        """Return a fresh graph of the canonical form, to read or to rewrite."""
        return gs.import_onnx(self.canonical)


@dataclass(frozen=True)
class SampleSplit:
    """Samples to fit on, and samples that such a fit never sees.

    Attributes:
        batches: of the samples to fit on, in folds.
        held_out: indices of the others.
    """

    batches: list[Batch]
    held_out: NDArray[np.intp]


@dataclass(frozen=True)
class FitProblem:
    """Everything that a fit starts from.

    Attributes:
        teacher: the original network.
        student: the compressed network.
        partners: of the student's blocks among the teacher's.
        matching: the same with their channels.
        runtime: where to run.
        samples: the samples, and moved copies of them behind.
        count: how many there are, without copies.
        trials: fits whose held-out samples, together, give the verdict: one, or where too few
            could be held out, one for each fold in turn.
        final: the fit that is given out: the trial, or where there are several, one to all samples.
        options: how to read and run.
    """

    teacher: LoadedModel
    student: LoadedModel
    partners: tuple[Partner, ...]
    matching: Matching
    runtime: Runtime
    samples: SampleReader
    count: int
    trials: tuple[SampleSplit, ...]
    final: SampleSplit
    options: RunOptions

    @property
    def held_out(self) -> NDArray[np.intp]:
        """Samples of the verdict, trial after trial."""
        return np.concatenate([trial.held_out for trial in self.trials])

    def outputs(self, model: onnx.ModelProto, name: str, samples: NDArray[np.intp]) -> Outputs:
        """Run a whole model on some samples."""
        return forward(self.runtime, model, self.samples, samples, self.options.batch_size, name)

    @cached_property
    def target(self) -> Outputs:
        """The teacher's outputs for the samples of the verdict."""
        return self.outputs(self.teacher.model, self.teacher.name, self.held_out)

    @cached_property
    def before(self) -> Agreement:
        """How close the untouched student is on these samples."""
        outputs = self.outputs(self.student.model, self.student.name, self.held_out)
        return agreement(self.target, outputs)


def prepare(
    teacher: ModelSource, student: ModelSource, samples: SampleSource, options: FitOptions
) -> FitProblem:
    """Load everything, and check that it belongs together.

    Raises:
        FskdError: a file, the samples or the machine cannot be used.
    """
    networks = [LoadedModel.load(source) for source in (teacher, student)]
    check_same_interface(networks[0].model, networks[1].model, networks[0].name, networks[1].name)
    run, inputs = options.run, input_specs(networks[0].model)
    loaded = load_samples(samples, inputs, run.preprocess, run.max_samples, run.seed)
    if len(loaded) < _LEAST_SAMPLES:
        raise SamplesError(
            f"{len(loaded)} samples are too few to fit on some and check on others; "
            f"give at least {_LEAST_SAMPLES}"
        )
    source: SampleReader = loaded
    if options.augment:
        source = Augmented(loaded, options.augment, run.seed)
    specs = [spec for network in networks for spec in input_specs(network.model)]
    size = run.batch_size or default_batch_size(loaded.take(np.arange(1)))

    def split(folds: Sequence[NDArray[np.intp]], held_out: NDArray[np.intp]) -> SampleSplit:
        # A copy in another fold than its source would let that fold be tested on what it has seen.
        copies = np.arange(options.augment_copies + 1 if options.augment else 1) * len(loaded)
        folds = [(copies[:, np.newaxis] + fold).reshape(-1) for fold in folds]
        return SampleSplit(plan_batches(folds, size, fixed_batch_size(specs)), np.sort(held_out))

    shuffled = np.random.default_rng(run.seed).permutation(len(loaded))
    held_out = round(_HELD_OUT * len(loaded))
    if held_out >= _LEAST_HELD_OUT:
        final = split(np.array_split(shuffled[held_out:], _FOLDS), shuffled[:held_out])
        trials = [final]
    else:
        folds = np.array_split(shuffled, min(_FOLDS, len(shuffled)))
        trials = [split(folds[:k] + folds[k + 1 :], fold) for k, fold in enumerate(folds)]
        final = split(folds, np.empty(0, np.intp))
    runtime = open_runtime(run.providers)
    graphs = networks[0].graph(), networks[1].graph()
    partners = pair_blocks(
        *graphs,
        given=read_map(options.map, *graphs) if options.map is not None else {},
        similarity=ActivationSimilarity(runtime, *graphs, source, final.batches),
    )
    matching = match_channels(*graphs, partners)
    if not matching.usable:
        first = next(iter(matching.pairs), None)
        why = f" ('{first.student}': {first.reason})" if first is not None else ""
        raise MatchError(
            f"{networks[1].name}: no block has a counterpart in {networks[0].name}{why}; "
            "give a student of that teacher, or say by --map which blocks belong together"
        )
    return FitProblem(
        teacher=networks[0],
        student=networks[1],
        partners=partners,
        matching=matching,
        runtime=runtime,
        samples=source,
        count=len(loaded),
        trials=tuple(trials),
        final=final,
        options=run,
    )
