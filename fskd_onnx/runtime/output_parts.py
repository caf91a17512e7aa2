"""Which part of an output each of its numbers belongs to, found by a run of the network.

The parts are tensors that are joined last (``fskd_onnx.passes.analysis.output_parts``). In a
network with numbers in their place (``fskd_onnx.passes.number_parts``) outputs say which is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes import NumberParts
from fskd_onnx.passes.analysis.output_parts import all_parts, reads_of_parts
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import SampleAxis
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import InputSpec


@dataclass(frozen=True, eq=False)
class OutputParts:
    """The parts of an output.

    Attributes:
        names: of the tensors that they come from.
        numbers: (numbers of a sample,) which of these each number of a sample is of.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.intp]


def output_parts(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: SampleReader,
    batch_size: int | None,
    name: str,
    inputs: Sequence[InputSpec] | None,
    axes: Mapping[str, SampleAxis],
) -> dict[str, OutputParts]:
    """Return the parts of outputs that have several, by the name of the output.

    Args:
        runtime: where to run.
        model: the network.
        samples: of which the first is run.
        batch_size: as of ``fskd_onnx.runtime.forward.forward``.
        name: what to call the network in errors.
        inputs: the network's, in the order of the samples'; None: in its own order.
        axes: where the samples lie in the outputs that are asked for.

    Raises:
        ModelError: ONNX Runtime cannot run the network.
    """
    graph = gs.import_onnx(model)
    names = [part.name for part in all_parts(graph)]
    several = {output.name for output in graph.outputs if reads_of_parts(output)}
    wanted = {output: axis for output, axis in axes.items() if output in several}
    numbered = NumberParts()(model) if wanted else None
    if numbered is None or not numbered.changed:
        return {}
    first = np.zeros(1, np.intp)
    run = forward(runtime, numbered.model, samples, first, batch_size, name, inputs, wanted)
    found = {}
    for output, values in run.values.items():
        parts, numbers = np.unique(values, return_inverse=True)
        own = tuple(names[part] for part in parts.astype(np.intp).tolist())
        found[output] = OutputParts(own, numbers.reshape(-1).astype(np.intp))
    return found
