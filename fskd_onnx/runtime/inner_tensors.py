"""Values of tensors inside of a network, for a few runs of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.passes.analysis.segments import plan_segments
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import upload


def inner_values(
    runtime: Runtime,
    graph: gs.Graph,
    samples: DecodedSamples,
    runs: Iterable[NDArray[np.intp]],
    names: Sequence[str],
) -> Iterator[dict[str, OrtValue]]:
    """Run a network up to some tensors, and yield their values run by run.

    Args:
        runtime: where.
        graph: the network; its inputs are those of the samples, in their order.
        samples: the samples.
        runs: which of them run together.
        names: of the tensors.

    Raises:
        Exception: whatever the runtime raises; callers know which file it is about.
    """
    segment = plan_segments(graph, [names])[0]
    inputs = list(zip(graph.inputs, samples.inputs, strict=True))
    types = {
        tensor.name: onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(spec.dtype), [None] * len(spec.shape)
        )
        for tensor, spec in inputs
    }
    session = runtime.session(extract(graph, segment, types))
    for indices in runs:
        taken = samples.take(indices)
        feeds = {
            tensor.name: np.asarray(spec.joined(taken[spec.name]))
            for tensor, spec in inputs
            if tensor.name in segment.inputs
        }
        yield run(session, upload(feeds, runtime.device), names, runtime.device)
