"""Where the samples lie in the outputs of a whole model, by two runs that share samples.

Where the model runs on a device, the second run is on the CPU, so that what a device computes is
compared with it (``fskd_onnx.runtime.sample_axis`` says how the runs are compared).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, Runs, SampleAxis
from fskd_onnx.runtime.whole_network import WholeNetwork

# Operators whose results have as many rows as the data says.
_ROWS_FROM_DATA = frozenset({"NonMaxSuppression", "Unique", "Compress", "NonZero"})
# NonZero is a part of how exporters write down shapes that are no data.
_ALWAYS_FROM_DATA = _ROWS_FROM_DATA - {"NonZero"}
# Squared difference of an output on a device from that on the CPU, relative to its square: far more
# than rounding makes, and than rows that swap their places where two scores are nearly the same.
_MOST_ON_DEVICE = 0.25


def find_output_axes(
    network: WholeNetwork,
    first: NDArray[np.intp],
    values: Mapping[str, NDArray[np.generic] | None],
    indices: NDArray[np.intp],
    fixed: bool,
) -> dict[str, FoundAxis]:
    """Find where the samples lie in each output, by a second run.

    Args:
        network: the model.
        first: samples of the first run.
        values: its outputs.
        indices: samples of which the second run may take more.
        fixed: whether it has to have as many as the first.

    Raises:
        ModelError: an output mixes samples, or is not the same on a device and on the CPU.
    """
    others = [sample for sample in indices.tolist() if sample not in first][:1]
    stacked = network.samples.take(np.array([*first.tolist(), *others], dtype=np.intp))
    inputs = [stacked[spec.name] for spec in network.samples.inputs if spec.axis is not None]
    operators = {node.op_type for node in network.model.graph.node}
    runs = Runs.plan(first.tolist(), others, inputs, fixed, operators)
    second = np.array(runs.second, dtype=np.intp)
    host = network.on_cpu()
    again = (host or network).run(second)
    found = _compare(network, runs, values, again)
    if host is not None and not all(runs.tells(axis) for axis in found.values()):
        on_device = network.run(second)
        found = _compare(network, runs, values, on_device)
        _check_device(network, on_device, again, found)
    for output, axis in found.items():
        one = values[output]
        if axis is Failing.MIXED and one is not None:
            what = f"does not keep samples apart (shape {list(one.shape)} of {len(first)})"
            raise ModelError(
                f"{network.name}: its output '{output}' "
                f"{what if one.ndim else 'is one number for all samples'}; take it out of the "
                "graph's outputs, or give --batch-size 1 if samples may run one by one"
            )
    return found


def why_left_out(model: onnx.ModelProto, output: str, why: Failing) -> str:
    """Return why an output is left out, the operator that makes it so included."""
    if why is not Failing.ROWS_FROM_DATA:
        return str(why.value)
    node = _operator(model, output, _ROWS_FROM_DATA)
    if node is None:
        return str(why.value)
    return f"{why.value} ({node.op_type}{f' {node.name!r}' if node.name else ''})"


def _compare(
    network: WholeNetwork,
    runs: Runs,
    values: Mapping[str, NDArray[np.generic] | None],
    again: Mapping[str, NDArray[np.generic] | None],
) -> dict[str, FoundAxis]:
    """Return where the samples lie in each output, by two runs."""
    found: dict[str, FoundAxis] = {}
    for output, one in values.items():
        other = again[output]
        if one is None or other is None:
            found[output] = Failing.NO_NUMBERS
        elif _has_rows_from_data(network, output):
            found[output] = Failing.ROWS_FROM_DATA
        else:
            found[output] = runs.compare(one, other)
    return found


def _check_device(
    network: WholeNetwork,
    on_device: Mapping[str, NDArray[np.generic] | None],
    on_cpu: Mapping[str, NDArray[np.generic] | None],
    found: Mapping[str, FoundAxis],
) -> None:
    """Compare a run on a device with the same run on the CPU.

    Raises:
        ModelError: an output that holds samples is another one.
    """
    for output, axis in found.items():
        one, other = on_device[output], on_cpu[output]
        if not isinstance(axis, SampleAxis) or one is None or other is None:
            continue
        if one.dtype.kind not in "fV":  # classes and indices jump where scores are alike
            continue
        if one.shape != other.shape or _difference(one, other) > _MOST_ON_DEVICE:
            raise ModelError(
                f"{network.name}: its output '{output}' is not the same on "
                f"{network.runtime.providers[0]} and on the CPU; give --providers cpu"
            )


def _has_rows_from_data(network: WholeNetwork, output: str) -> bool:
    """Whether an operator may give the output another number of rows each time."""
    declared = next(value for value in network.model.graph.output if value.name == output)
    dims = list(declared.type.tensor_type.shape.dim)
    # The first axis may count samples, where they may be of any number.
    stated = [dim.dim_value > 0 for dim in dims[int(network.fixed_size is None) :]]
    sized = declared.type.tensor_type.HasField("shape") and all(stated)
    return not sized and _operator(network.model, output, _ALWAYS_FROM_DATA) is not None


def _operator(
    model: onnx.ModelProto, output: str, operators: frozenset[str]
) -> onnx.NodeProto | None:
    """Return the nearest node of some operators that an output depends on."""
    makers: dict[str, onnx.NodeProto] = {
        name: node for node in model.graph.node for name in node.output
    }
    pending, seen = [output], {output}
    for name in pending:
        node = makers.get(name)
        if node is None:
            continue
        if node.op_type in operators:
            return node
        pending += [read for read in node.input if read not in seen]
        seen.update(node.input)
    return None


def _difference(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Return ||one - other||^2 / ||other||^2; what is not finite counts as 0."""
    a, b = (
        np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0) for x in (one, other)
    )
    return float(np.sum((a - b) ** 2)) / (float(np.sum(b**2)) or 1.0)
