"""Prepare a fit: two canonical networks, their pairs, samples in folds."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError, ModelError
from fskd_onnx.fitting.adapters import families_of, fit_factors_too
from fskd_onnx.matching.activation_similarity import ActivationSimilarity
from fskd_onnx.matching.channels import match_channels
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.matching.pairing import Partner, pair_blocks
from fskd_onnx.matching.sample_axes import leave_without_samples
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.passes.analysis.refusals import is_of_quantized
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.pipeline.networks import Networks, check_order, compose_decomposed, load_networks
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import Splits
from fskd_onnx.pipeline.taken_branches import take_branches
from fskd_onnx.results import Matching
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource


def load_inputs(
    teacher: ModelSource, student: ModelSource, samples: SampleSource, options: RunOptions
) -> tuple[Networks, Samples]:
    """Load the networks and open the samples, and check that they belong together.

    Args:
        teacher: the original network.
        student: the compressed network.
        samples: a few unlabelled samples.
        options: how to read and run.

    Raises:
        FskdError: a file or the samples cannot be used.
    """
    networks = load_networks(teacher, student)
    return networks, open_samples(samples, networks[0], options)


def prepare(
    networks: Networks,
    loaded: Samples,
    options: FitOptions,
    store: TensorStore,
    given: Mapping[str, Partner] | None = None,
) -> FitProblem:
    """Read the samples, divide them, and find what belongs together.

    Args:
        networks: teacher and student.
        loaded: the samples.
        options: how to fit.
        store: keeps the samples once they are read, and what crosses a cut.
        given: pairs that are known, by the name of the student's node; None for those of the map.

    Raises:
        FskdError: a file, the samples or the machine cannot be used.
    """
    run = options.run
    runtime = open_runtime(run.providers)
    divided = divide_samples(networks, loaded, options, store, runtime)
    decoded, groups, splits = divided.decoded, divided.groups, divided.splits
    networks = take_branches(networks, runtime, decoded, splits.batches, divided.batch_size)
    graphs = networks[0].graph(), networks[1].graph()
    if given is None and options.map is not None:
        given = read_map(options.map, *graphs, networks[1].parts)
    try:
        partners = _pair(graphs, runtime, decoded, splits, given or {})
        partners = leave_without_samples(partners, graphs, runtime, decoded, splits.final.batches)
    except ModelError:
        first = splits.final.batches[0].samples
        for network in networks:  # says which of them does not run, and how it would
            model, name, inputs = network.model, network.name, network.inputs
            forward(runtime, model, decoded, first, run.batch_size, name, inputs)
        raise
    check_order(networks, partners)
    if fit_factors_too(families_of(options.adapter)):
        networks = compose_decomposed(networks, partners)
    matching = _match(networks, partners)
    return FitProblem(
        teacher=networks[0],
        student=networks[1],
        partners=partners,
        matching=matching,
        runtime=runtime,
        samples=decoded,
        count=len(loaded),
        groups=groups,
        splits=splits,
        options=run,
    )


Graphs = tuple[gs.Graph, gs.Graph]


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


def _match(networks: Networks, partners: tuple[Partner, ...]) -> Matching:
    """Pair the channels of paired blocks; there has to be a block that can be fitted."""
    graphs = networks[0].graph(), networks[1].graph()
    matching = networks[1].tell_of_parts(match_channels(*graphs, partners))
    if not matching.usable:
        first = next(iter(matching.pairs), None)
        why = f" ('{first.student}': {first.reason})" if first is not None else ""
        remedy = "give a student of that teacher, or say by --map which blocks belong together"
        if first is not None and is_of_quantized(first.reason):
            remedy = "fit the student before it is quantized"
        raise MatchError(
            f"{networks[1].name}: no block has a counterpart in {networks[0].name}{why}; {remedy}"
        )
    return matching
