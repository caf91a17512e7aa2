"""Parameters of linear nodes and normalisations that are NaN or infinite in single precision.

In double precision, products of larger ones are infinite as well. Constants of other nodes may be
infinite on purpose: attention masks what it must not see by -inf.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.ir.tensor import LazyValues

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.nodes import input_dependent, is_dense, is_standard, node_name

_NORMALISATIONS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)


def find_not_finite(graph: gs.Graph) -> list[tuple[str, str]]:
    """Return parameters with a value that is not finite in single precision, and who reads each.

    Args:
        graph: any graph; it stays as it is.

    Returns:
        The name of the constant, be it the source of what the node reads, and that of the node.
    """
    found: dict[str, str] = {}
    from_inputs = input_dependent(graph)
    seen: set[int] = set()
    for name, tensor in _parameters(graph):
        for constant in _sources(tensor, from_inputs, seen):
            if not _finite(constants.native(constant)):
                found.setdefault(constant.name, name)
    return list(found.items())


def _finite(values: NDArray[np.floating]) -> bool:
    if values.dtype != np.float64:
        return constants.all_finite(values)
    return bool((np.abs(values) <= np.finfo(np.float32).max).all())


def _parameters(graph: gs.Graph) -> Iterator[tuple[str, gs.Tensor]]:
    """Yield what linear nodes and normalisations read besides their data."""
    for node in graph.nodes:
        if is_standard(node, *LINEAR_OPERATORS, *_NORMALISATIONS):
            yield from ((node_name(node), tensor) for tensor in node.inputs[1:])
    for view in find_linear(graph):
        if isinstance(view, Linear) and view.bias_node is not None:
            yield from ((view.name, tensor) for tensor in view.bias_node.inputs)


def _sources(tensor: gs.Tensor, from_inputs: set[int], seen: set[int]) -> Iterator[gs.Constant]:
    """Yield the constants of floats that a parameter is computed from, each once in all calls."""
    pending = [tensor]
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen or id(tensor) in from_inputs:
            continue
        seen.add(id(tensor))
        if isinstance(tensor, gs.Constant):
            if _is_read(tensor):
                yield tensor
        else:
            pending += [source for node in tensor.inputs for source in node.inputs]


def _is_read(constant: gs.Constant) -> bool:
    """Whether a constant is of floats, stored in full and in memory."""
    if not is_dense(constant) or constants.element_type(constant) not in constants.FLOATS:
        return False
    values = constant._values
    return not (isinstance(values, LazyValues) and uses_external_data(values.tensor))
