"""Which body of an If the samples take: where it is the same for all, blocks in it are fitted.

The condition of an If inside of a body is only seen with that body in the place of its If, so this
goes level by level. Conditions are seen in every batch, and in runs of one and of two samples where
a network takes any number: one that depends on how many run together stays.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.segments import plan_segments
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.passes.inline_branches import Inlined, conditions, inline_branches
from fskd_onnx.pipeline.networks import LoadedModel, Networks, arranged
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors, run
from fskd_onnx.runtime.tensor_store import upload
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
    for values in _values(graph, computed, runtime, samples, runs):
        for name, value in values.items():
            found[name].add(bool(value.numpy().any()))
    return {name: values.pop() for name, values in found.items() if len(values) == 1}


def _values(
    graph: gs.Graph,
    names: Sequence[str],
    runtime: Runtime,
    samples: DecodedSamples,
    runs: Sequence[Indices],
) -> Iterator[dict[str, OrtValue]]:
    """Yield the values of some tensors of a network, run by run."""
    if not names:
        return
    inputs = list(zip(graph.inputs, samples.inputs, strict=True))
    types = {
        tensor.name: onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(spec.dtype), [None] * len(spec.shape)
        )
        for tensor, spec in inputs
    }
    segment = plan_segments(graph, [names])[0]
    with named_errors(graph.name):
        session = runtime.session(extract(graph, segment, types))
        for indices in runs:
            taken = samples.take(indices)
            feeds = {
                tensor.name: np.asarray(spec.joined(taken[spec.name]))
                for tensor, spec in inputs
                if tensor.name in segment.inputs
            }
            yield run(session, upload(feeds, runtime.device), names, runtime.device)
