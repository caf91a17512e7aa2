"""Everything that a fit starts from: two canonical networks, their pairs, samples in folds."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.augment import Augmented
from fskd_onnx.compare import Outputs, agreement, check_same_interface, forward
from fskd_onnx.engine import Batch, default_batch_size, plan_batches
from fskd_onnx.errors import MatchError, SamplesError
from fskd_onnx.match import Matching, match_models
from fskd_onnx.model_io import (
    ModelSource,
    fixed_batch_size,
    input_specs,
    load_model,
    source_name,
)
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import Canonicalize
from fskd_onnx.providers import Runtime, open_runtime
from fskd_onnx.report import Agreement
from fskd_onnx.samples import SampleReader, SampleSource, load_samples

logger = logging.getLogger(__name__)

_HELD_OUT = 0.1  # fraction of the samples that no block is fitted on
_FOLDS = 5
_LEAST_SAMPLES = 3  # one held out, two folds


@dataclass(frozen=True)
class NetworkFile:
    """A model as it came and as the passes read it."""

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto

    @staticmethod
    def load(source: ModelSource) -> NetworkFile:
        """Read, check and canonicalize a model."""
        model = load_model(source)
        result = Canonicalize()(model)
        for note in result.notes:
            logger.debug("%s: %s", source_name(source), note)
        return NetworkFile(source_name(source), model, result.model)

    def graph(self) -> gs.Graph:
        """Return a fresh graph of the canonical form, to read or to rewrite."""
        return gs.import_onnx(self.canonical)


@dataclass(frozen=True)
class Task:
    """Everything that a fit starts from."""

    teacher: NetworkFile
    student: NetworkFile
    matching: Matching
    runtime: Runtime
    samples: SampleReader
    count: int
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


def prepare(
    teacher: ModelSource, student: ModelSource, samples: SampleSource, options: FitOptions
) -> Task:
    """Load everything, and check that it belongs together.

    Raises:
        FskdError: a file, the samples or the machine cannot be used.
    """
    networks = [NetworkFile.load(source) for source in (teacher, student)]
    check_same_interface(networks[0].model, networks[1].model, networks[0].name, networks[1].name)
    matching = match_models(*(network.graph() for network in networks))
    if not matching.usable:
        raise MatchError(
            f"{networks[1].name}: no block has a counterpart in {networks[0].name}; "
            "give a student that was made from this teacher and kept its names"
        )
    run, inputs = options.run, input_specs(networks[0].model)
    loaded = load_samples(samples, inputs, run.preprocess, run.max_samples, run.seed)
    if len(loaded) < _LEAST_SAMPLES:
        raise SamplesError(
            f"{len(loaded)} samples are too few to fit on some and check on others; "
            f"give at least {_LEAST_SAMPLES}"
        )
    shuffled = np.random.default_rng(run.seed).permutation(len(loaded))
    held_out = max(1, round(_HELD_OUT * len(loaded)))
    rest = shuffled[held_out:]
    specs = [spec for network in networks for spec in input_specs(network.model)]
    folds = np.array_split(rest, min(_FOLDS, len(rest)))
    source: SampleReader = loaded
    if options.augment:
        source = Augmented(loaded, options.augment, run.seed)
        copies = np.arange(options.augment_copies + 1) * len(loaded)
        # A copy in another fold than its source would let that fold be tested on what it has seen.
        folds = [(copies[:, np.newaxis] + fold).reshape(-1) for fold in folds]
    batches = plan_batches(
        folds,
        run.batch_size or default_batch_size(loaded.take(rest[:1])),
        fixed_batch_size(specs),
    )
    return Task(
        teacher=networks[0],
        student=networks[1],
        matching=matching,
        runtime=open_runtime(run.providers),
        samples=source,
        count=len(loaded),
        batches=batches,
        held_out=np.sort(shuffled[:held_out]),
        options=run,
    )
