"""Where the samples lie in the tensors inside of a network.

Shape inference with two numbers of samples shows them on the first axis, which is the ordinary
case, and nothing runs for it. The other tensors are seen in two runs of a few samples
(``fskd_onnx.runtime.sample_axis``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.shapes import infer_shapes
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.inner_tensors import inner_values
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, Runs, SampleAxis
from fskd_onnx.runtime.session_run import named_errors
from fskd_onnx.runtime.tensor_store import is_plain
from fskd_onnx.samples.batches import Batch

# Small ones: where ONNX infers shapes, it takes every vector for a shape, and keeps all its values.
_COUNTS = (11, 13)
# Samples of the first of two runs, where a network takes any number.
_FEW = 3


def find_axes(
    runtime: Runtime,
    graph: gs.Graph,
    samples: DecodedSamples,
    batches: Sequence[Batch],
    names: Sequence[str],
) -> dict[str, FoundAxis]:
    """Find where the samples lie in tensors of a network.

    Args:
        runtime: where to run, if that is needed.
        graph: the network; its inputs are those of the samples, in their order.
        samples: the samples.
        batches: which samples run together. Where all runs are of one size, no other is run.
        names: of the tensors.

    Raises:
        ModelError: ONNX Runtime cannot run the network.
    """
    found: dict[str, FoundAxis] = {}
    for tensor, spec in zip(graph.inputs, samples.inputs, strict=True):
        if tensor.name in names:
            found[tensor.name] = Failing.CONSTANT if spec.axis is None else SampleAxis(spec.axis)
    found |= dict.fromkeys(_on_first_axis(graph, samples) & set(names), SampleAxis())
    unknown = [name for name in dict.fromkeys(names) if name not in found]
    if not unknown:
        return found
    size = run_size(graph, samples)
    with named_errors(graph.name):
        runs = [batch.samples[: size or len(batch.samples)] for batch in batches]
        return found | _from_runs(runtime, graph, samples, runs, unknown)


def run_size(graph: gs.Graph, samples: DecodedSamples) -> int | None:
    """Return the number of samples that a network insists on; None where it takes any."""
    stated = (
        tensor.shape[spec.axis]
        for tensor, spec in zip(graph.inputs, samples.inputs, strict=True)
        if tensor.shape is not None and spec.axis is not None
    )
    return max((size for size in stated if isinstance(size, int) and size > 0), default=None)


def _on_first_axis(graph: gs.Graph, samples: DecodedSamples) -> set[str]:
    """Return the tensors whose first axis, and no other, counts samples."""
    one, other = (infer_shapes(graph, samples.shapes_of(graph, count)) for count in _COUNTS)
    return {
        name
        for name, shape in one.items()
        if shape[:1] == _COUNTS[:1] and other.get(name) == (_COUNTS[1], *shape[1:])
    }


def _from_runs(
    runtime: Runtime,
    graph: gs.Graph,
    samples: DecodedSamples,
    runs: Sequence[NDArray[np.intp]],
    names: Sequence[str],
) -> dict[str, FoundAxis]:
    """Find where the samples lie in some tensors, by two runs of the network up to these."""
    sizes = {len(part) for part in runs}
    fixed = len(sizes) == 1
    every = np.concatenate(runs).tolist()
    first = every[: sizes.pop() if fixed else _FEW]
    others = [sample for sample in every if sample not in first][:1]
    stacked = samples.take(np.array([*first, *others]))
    pair = Runs.plan(
        first,
        others,
        [stacked[spec.name] for spec in samples.inputs if spec.axis is not None],
        fixed,
        {node.op for node in graph.nodes},
    )
    parts = [np.array(part) for part in (pair.first, pair.second)]
    seen = list(inner_values(runtime, graph, samples, parts, names))
    return {name: _compare(pair, *(values[name] for values in seen)) for name in names}


def _compare(pair: Runs, one: OrtValue, other: OrtValue) -> FoundAxis:
    if not (is_plain(one) and is_plain(other)):
        return Failing.NO_NUMBERS
    return pair.compare(one.numpy(), other.numpy())
