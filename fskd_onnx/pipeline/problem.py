"""Everything that a fit starts from: two canonical networks, their pairs, samples in folds."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.errors import MatchError, SamplesError
from fskd_onnx.matching.activation_similarity import ActivationSimilarity
from fskd_onnx.matching.branches import sums_to_merge
from fskd_onnx.matching.channels import Channels, match_channels
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import Partner, pair_blocks
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes import Canonicalize, MergeBranches, export
from fskd_onnx.passes.branch_sums import find_sums
from fskd_onnx.passes.merge_branches import give_back
from fskd_onnx.pipeline.splits import Splits, split_samples
from fskd_onnx.reporting.agreement import agreement
from fskd_onnx.results import Agreement, BlockPair, Evidence, Matching
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.forward import Outputs, forward
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.augment import Augmented
from fskd_onnx.samples.batches import default_batch_size, plan_batches
from fskd_onnx.samples.reader import SampleReader, Samples
from fskd_onnx.samples.sources import SampleSource, load_samples
from fskd_onnx.serialization.interface import check_same_interface, fixed_batch_size, input_specs
from fskd_onnx.serialization.model_files import ModelSource, load_model, source_name

logger = logging.getLogger(__name__)

_LEAST_SAMPLES = 3  # one held out, two folds


@dataclass(frozen=True)
class LoadedModel:
    """A model as it came and as the passes read it.

    Attributes:
        name: for messages.
        model: as it came.
        canonical: as the passes read it.
        with_branches: the canonical form before sums of branches were merged; None where none was.
        summed: the nodes that went away with that, and what each was merged into.
    """

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto
    with_branches: onnx.ModelProto | None = None
    summed: Mapping[str, str] = field(default_factory=dict)

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

    def with_merged(self, sums: Collection[str]) -> LoadedModel:
        """Return the model with some sums of branches merged in its canonical form."""
        found = [branches for branches in find_sums(self.graph()) if branches.name in sums]
        summed = {
            linear.name: branches.largest.name
            for branches in found
            for linear in branches.linears
            if linear.node is not branches.largest.node
        }
        if not found:
            return self
        merged = MergeBranches(sums)(self.canonical).model
        return replace(self, canonical=merged, with_branches=self.canonical, summed=summed)

    def export(self, fitted: gs.Graph) -> onnx.ModelProto:
        """Return the model with the weights of a graph of its canonical form."""
        if self.with_branches is None:
            return export(fitted, like=self.canonical)
        graph = gs.import_onnx(self.with_branches)
        give_back(graph, self.graph(), fitted)
        return export(graph, like=self.with_branches)

    def tell_of_branches(self, matching: Matching) -> Matching:
        """Return a matching with a line for each node that was merged into another."""
        op = {pair.student: pair.op for pair in matching.pairs}
        reason = "it is summed with '{}', which is fitted for both"
        lines = [
            BlockPair(name, op[into], None, None, None, Evidence.NONE, 0.0, reason.format(into))
            for name, into in self.summed.items()
        ]
        return replace(matching, pairs=(*matching.pairs, *lines))


@dataclass(frozen=True)
class FitProblem:
    """Everything that a fit starts from.

    Attributes:
        teacher: the original network.
        student: the compressed network.
        partners: of the student's blocks among the teacher's.
        matching: the same with their channels.
        runtime: where to run.
        samples: the samples, and moved copies of them behind, each read once.
        count: how many there are, without copies.
        splits: which of them are fitted on, and which give the verdict.
        options: how to read and run.
    """

    teacher: LoadedModel
    student: LoadedModel
    partners: tuple[Partner, ...]
    matching: Matching
    runtime: Runtime
    samples: DecodedSamples
    count: int
    splits: Splits
    options: RunOptions

    @property
    def held_out(self) -> NDArray[np.intp]:
        """Samples of the verdict, trial after trial."""
        return np.concatenate([trial.held_out for trial in self.splits.trials])

    def match_again(self, settled: Mapping[str, tuple[Channels, float]]) -> Matching:
        """Match channels anew, from those that activations have decided."""
        graphs = self.teacher.graph(), self.student.graph()
        return self.student.tell_of_branches(match_channels(*graphs, self.partners, settled))

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
    teacher: ModelSource,
    student: ModelSource,
    samples: SampleSource,
    options: FitOptions,
    store: TensorStore,
) -> FitProblem:
    """Load everything, and check that it belongs together.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: a few unlabelled samples.
        options: how to fit.
        store: keeps the samples once they are read, and what crosses a cut.

    Raises:
        FskdError: a file, the samples or the machine cannot be used.
    """
    run = options.run
    networks = _load_networks(teacher, student)
    loaded = _load_samples(samples, networks[0], run)
    splits = _split(loaded, networks, options)
    runtime = open_runtime(run.providers)
    decoded = _decode(loaded, splits, options, store, runtime)
    graphs = networks[0].graph(), networks[1].graph()
    given = {} if options.map is None else read_map(options.map, *graphs, networks[1].summed)
    partners = _pair(graphs, runtime, decoded, splits, given)
    matching = _match(networks, graphs, partners)
    return FitProblem(
        teacher=networks[0],
        student=networks[1],
        partners=partners,
        matching=matching,
        runtime=runtime,
        samples=decoded,
        count=len(loaded),
        splits=splits,
        options=run,
    )


Networks = tuple[LoadedModel, LoadedModel]
Graphs = tuple[gs.Graph, gs.Graph]


def load_networks(teacher: ModelSource, student: ModelSource) -> Networks:
    """Load teacher and student; sums of branches that only one of them has are merged."""
    one, other = LoadedModel.load(teacher), LoadedModel.load(student)
    graphs = one.graph(), other.graph()
    if not any(find_sums(graph) for graph in graphs):
        return one, other
    theirs, mine = sums_to_merge(*graphs)
    merged = MergeBranches(theirs)(one.canonical)
    # What stands behind a sum folds into it as well: the teacher is never written.
    one = replace(one, canonical=Canonicalize()(merged.model).model)
    return one, other.with_merged(mine)


def _load_networks(teacher: ModelSource, student: ModelSource) -> Networks:
    """Load teacher and student, which take the same inputs and give the same outputs."""
    networks = load_networks(teacher, student)
    one, other = networks
    check_same_interface(one.model, other.model, one.name, other.name)
    return networks


def _load_samples(source: SampleSource, teacher: LoadedModel, run: RunOptions) -> Samples:
    """Open the samples, which have to be enough to fit on some and check on others."""
    inputs = input_specs(teacher.model)
    loaded = load_samples(source, inputs, run.preprocess, run.max_samples, run.seed)
    if len(loaded) < _LEAST_SAMPLES:
        raise SamplesError(
            f"{len(loaded)} samples are too few to fit on some and check on others; "
            f"give at least {_LEAST_SAMPLES}"
        )
    return loaded


def _split(loaded: Samples, networks: Networks, options: FitOptions) -> Splits:
    """Divide the samples and their copies, into batches of a size that both networks take."""
    size = options.run.batch_size or default_batch_size(loaded.shapes)
    fixed = fixed_batch_size([s for network in networks for s in input_specs(network.model)])
    copies = options.augment_copies + 1 if options.augment else 1
    return split_samples(len(loaded), copies, options.run.seed, size, fixed)


def _decode(
    loaded: Samples, splits: Splits, options: FitOptions, store: TensorStore, runtime: Runtime
) -> DecodedSamples:
    """Return the samples, with moved copies behind where these are asked for, read once."""
    source: SampleReader = loaded
    if options.augment:
        # Copies are made on the host, in many batches; all of them are made of one reading.
        alone = plan_batches([np.arange(len(loaded))], default_batch_size(loaded.shapes), None)
        read_once = DecodedSamples(loaded, alone, store, "cpu")
        source = Augmented(read_once, options.augment, options.run.seed)
    return DecodedSamples(source, splits.batches, store, runtime.device)


def _pair(
    graphs: Graphs,
    runtime: Runtime,
    samples: DecodedSamples,
    splits: Splits,
    given: Mapping[str, Partner],
) -> tuple[Partner, ...]:
    """Pair the student's blocks with the teacher's, those of the map first."""
    teacher, student = graphs
    return pair_blocks(
        teacher,
        student,
        given=given,
        similarity=ActivationSimilarity(runtime, teacher, student, samples, splits.final.batches),
    )


def _match(networks: Networks, graphs: Graphs, partners: tuple[Partner, ...]) -> Matching:
    """Pair the channels of paired blocks; there has to be a block that can be fitted."""
    matching = networks[1].tell_of_branches(match_channels(*graphs, partners))
    if not matching.usable:
        first = next(iter(matching.pairs), None)
        why = f" ('{first.student}': {first.reason})" if first is not None else ""
        raise MatchError(
            f"{networks[1].name}: no block has a counterpart in {networks[0].name}{why}; "
            "give a student of that teacher, or say by --map which blocks belong together"
        )
    return matching
