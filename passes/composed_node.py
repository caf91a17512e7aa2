"""One linear node in the place of several that are one linear map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.composed_kernels import Kernel
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import index_of, name_of_new, unused_name
from fskd_onnx.passes.analysis.windows import Window
from fskd_onnx.passes.edit import remove


def put_composed(
    graph: gs.Graph,
    like: Linear,
    nodes: Sequence[gs.Node],
    kernel: Kernel,
    window: Window,
    bias: NDArray[np.float64],
    source: gs.Tensor,
    output: gs.Tensor,
) -> None:
    """Put one node in the place of several.

    Args:
        graph: their graph.
        like: the one of them whose operator, name and type it has.
        nodes: all of them; the last one in the order of the graph gives the output.
        kernel: what it applies.
        window: where to.
        bias: what it adds, (n,). An Add behind it holds it where its operator has no place for it.
        source: what it reads.
        output: what it writes.
    """
    at = max(index_of(graph, node) for node in nodes)
    name = name_of_new(graph, like.name, gone=nodes)
    attributes: dict[str, object] = {}
    if like.is_convolution:
        attributes = {
            "group": kernel.groups,
            "kernel_shape": list(window.taps),
            "strides": list(window.strides),
            "dilations": list(window.dilations),
            "pads": [*window.begin, *window.end],
        }
    node = gs.Node(like.op, name, attributes, [source])
    shape, dtype = kernel.weights.shape, like.dtype
    matrix = kernel.weights.reshape(shape[0], shape[1], -1).astype(np.float64)
    weight = like.operator.stored(node, matrix, kernel.kernel_shape)
    node.inputs.append(_constant(graph, f"{output.name}/weight", weight.astype(dtype)))
    new = [node]
    if like.operator.bias_input is not None:
        node.inputs.append(_constant(graph, f"{output.name}/bias", bias.astype(dtype)))
    elif bias.any():
        product = gs.Variable(unused_name(graph, f"{output.name}/product"), dtype)
        node.outputs.append(product)
        shift = _constant(graph, f"{output.name}/bias", bias.astype(dtype))
        new.append(gs.Node("Add", "", {}, [product, shift]))
    for offset, made in enumerate(new):
        graph.nodes.insert(at + 1 + offset, made)
    remove(graph, *nodes)
    new[-1].outputs.append(output)


def _constant(
    graph: gs.Graph, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]
) -> gs.Constant:
    return gs.Constant(unused_name(graph, name), np.ascontiguousarray(values))
