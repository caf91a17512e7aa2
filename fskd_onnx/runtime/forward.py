"""Whole models on samples: every output, sample by sample.

Where the samples lie in an output is found from the first batch and a second run of some of its
samples (``fskd_onnx.runtime.sample_axis``). An output that does not differ between samples, or
whose rows depend on the data, is left out by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
from fskd_onnx.runtime.output_axes import find_output_axes, why_left_out
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, SampleAxis
from fskd_onnx.runtime.whole_network import WholeNetwork
from fskd_onnx.samples.batches import default_batch_size, plan_batches
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import InputSpec

Outputs = list[NDArray[np.generic]]


@dataclass(frozen=True)
class ForwardResult:
    """Outputs of a model for some samples.

    Attributes:
        values: by name, (samples, ...); the rows of a sample are on the second axis where it has
            several.
        axes: where the samples lie in each of these.
        left_out: why other outputs are left out, by name.
    """

    values: dict[str, NDArray[np.generic]]
    axes: dict[str, SampleAxis]
    left_out: dict[str, str]


def forward(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: SampleReader,
    indices: NDArray[np.intp],
    batch_size: int | None,
    name: str,
    inputs: Sequence[InputSpec] | None = None,
    axes: Mapping[str, SampleAxis] | None = None,
) -> ForwardResult:
    """Run a whole model on some samples.

    Args:
        runtime: where.
        model: any model that takes the samples' inputs, under whatever names.
        samples: the samples.
        indices: which of them.
        batch_size: samples of every run, padded; None chooses by the size of the inputs. A size
            that the model states counts before both.
        name: what to call the model in errors.
        inputs: the model's inputs, in the order of the samples'; None: in its own order.
        axes: the outputs to return and where the samples lie in them; None finds that out.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or an output mixes samples.
    """
    network = WholeNetwork(runtime, model, samples, name, inputs)
    fixed = network.fixed_size or batch_size
    batches = plan_batches([indices], default_batch_size(samples.shapes), fixed)
    found: dict[str, FoundAxis] = dict(axes or {})
    parts: dict[str, Outputs] = {}
    for batch in batches:
        values = network.run(batch.samples)
        if axes is None and not parts:
            found = find_output_axes(network, batch.samples, values, indices, fixed is not None)
            parts = {output: [] for output in found}
        for output, axis in found.items():
            value = values[output]
            if isinstance(axis, SampleAxis) and value is not None:
                by_sample = axis.by_sample(value)
                earlier = parts.setdefault(output, [])
                if len(by_sample) == len(batch.samples) and all(
                    part.shape[1:] == by_sample.shape[1:] for part in earlier[:1]
                ):
                    earlier.append(by_sample[: batch.count])
                else:
                    found[output] = Failing.ROWS_FROM_DATA
    left_out = {
        o: why_left_out(model, o, axis) for o, axis in found.items() if isinstance(axis, Failing)
    }
    if axes is not None and left_out:
        output, reason = next(iter(left_out.items()))
        raise ModelError(f"{name}: output '{output}': {reason}; cut the network in front of it")
    kept = {output: axis for output, axis in found.items() if isinstance(axis, SampleAxis)}
    joined = {output: np.concatenate(parts[output]) for output in kept}
    return ForwardResult(joined, kept, left_out)


def common_outputs(
    results: tuple[ForwardResult, ForwardResult], names: Sequence[tuple[str, str]], teacher: str
) -> tuple[list[tuple[str, str]], tuple[tuple[str, str], ...]]:
    """Return the outputs that a student can be compared with its teacher by.

    Args:
        results: of teacher and student.
        names: the names of each output in both.
        teacher: what to call the teacher in an error.

    Returns:
        The names of these outputs in both networks, and for the others the teacher's name and why
        they are left out.

    Raises:
        ModelError: there is none.
    """
    left_out = {
        one: results[0].left_out.get(one) or results[1].left_out.get(other) for one, other in names
    }
    compared = [(one, other) for one, other in names if left_out[one] is None]
    reasons = tuple((output, reason) for output, reason in left_out.items() if reason is not None)
    if not compared:
        listed = "; ".join(f"'{output}': {reason}" for output, reason in reasons)
        raise ModelError(
            f"{teacher}: no output can be compared sample by sample ({listed}); "
            "cut both networks in front of it"
        )
    return compared, reasons
