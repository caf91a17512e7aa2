"""Which body of an If the samples take: where it is the same for all, blocks in it are fitted.

The condition of an If inside of a body is only seen with that body in the place of its If, so this
goes level by level. Conditions are seen in every batch, and in runs of one and of two samples where
a network takes any number: one that depends on how many run together stays.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.inline_branches import Inlined, conditions, inline_branches
from fskd_onnx.pipeline.networks import LoadedModel, Networks, arranged
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.inner_tensors import inner_values
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors
from fskd_onnx.samples.batches import Batch

logger = logging.getLogger(__name__)

Indices = NDArray[np.intp]


def take_branches(
    networks: Networks,
    runtime: Runtime,
    samples: DecodedSamples,
    batches: Sequence[Batch],
    batch_size: int | None,
) -> Networks:
    """Return networks in which bodies stand in the place of Ifs that take the same for all samples.

    Args:
        networks: teacher and student.
        runtime: where to run.
        samples: inputs of both.
        batches: which samples run together.
        batch_size: samples of every run; None where any number runs.

    Raises:
        ModelError: ONNX Runtime cannot run a network.
    """
    runs = [batch.samples for batch in batches]
    if batch_size is None:
        runs += [runs[0][:1], runs[0][:2]]
    one, other = (_with_branches(network, runtime, samples, runs) for network in networks)
    return networks if (one, other) == networks else arranged((one, other))


def _with_branches(
    network: LoadedModel, runtime: Runtime, samples: DecodedSamples, runs: Sequence[Indices]
) -> LoadedModel:
    """Return a network with bodies in the place of Ifs, itself where none can be."""
    model, inlined = network.model, list[Inlined]()
    while open_ones := conditions(model):
        seen = _seen(network, model, set(open_ones.values()), runtime, samples, runs)
        taken = {output: seen[name] for output, name in open_ones.items() if name in seen}
        if not taken:
            break
        model, found = inline_branches(model, taken)
        inlined += found
        for each in found:
            logger.debug(
                "%s: '%s' is %s for all samples", network.name, each.node.input[0], each.taken
            )
    return network.with_branches(model, inlined) if inlined else network


def _seen(
    network: LoadedModel,
    model: onnx.ModelProto,
    names: Collection[str],
    runtime: Runtime,
    samples: DecodedSamples,
    runs: Sequence[Indices],
) -> dict[str, bool]:
    """Return the values of those conditions that have one value in all runs."""
    graph = network.graph_of(model)
    tensors = graph.tensors()
    found: dict[str, set[bool]] = {name: set() for name in names}
    for name in names:
        constant = tensors[name]
        if isinstance(constant, gs.Constant):
            found[name].add(bool(constant.values.any()))
    computed = [name for name, values in found.items() if not values]
    if computed:
        with named_errors(network.name):
            for values in inner_values(runtime, graph, samples, runs, computed):
                for name, value in values.items():
                    found[name].add(bool(value.numpy().any()))
    return {name: values.pop() for name, values in found.items() if len(values) == 1}
