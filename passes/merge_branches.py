"""Merge sums of linear branches of one input into one linear node (``branch_sums``).

The merged node has the sum of the kernels, each at its place, and the sum of the biases; it takes
over the output of the sum, so no reader changes.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import index_of, node_name, unused_name
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.branch_sums import BranchSum, find_sums
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PostconditionError


@dataclass(frozen=True)
class MergeBranches(Pass):
    """Put one linear node in the place of a sum of branches. The function stays, to rounding.

    A sum stays as it is where its branches read different inputs, differ in stride, extent, width
    or type, or where anything else reads what is between its input and its output.

    Attributes:
        outputs: names of the sums to merge; None for all of them.
    """

    outputs: Collection[str] | None = None

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per sum."""
        notes = []
        for branches in self._chosen(graph):
            notes.append(f"the branches of '{branches.name}' merged into one node")
            _merge(graph, branches)
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that no chosen sum is left over."""
        for branches in self._chosen(graph):
            msg = f"the branches of '{branches.name}' were left unmerged"
            raise PostconditionError(msg)

    def _chosen(self, graph: gs.Graph) -> list[BranchSum]:
        wanted = self.outputs
        return [s for s in find_sums(graph) if wanted is None or s.name in wanted]


def _merge(graph: gs.Graph, branches: BranchSum) -> None:
    output, name = branches.output, node_name(branches.sums[-1])
    first, kernel, bias = branches.largest, branches.kernel, branches.bias
    at = index_of(graph, branches.sums[-1])
    dtype = first.dtype
    node = gs.Node(first.op, name, _attributes(branches, first), [branches.source])
    shape = kernel.weights.shape
    matrix = kernel.weights.reshape(shape[0], shape[1], -1).astype(np.float64)
    weight = first.operator.stored(node, matrix, kernel.kernel_shape)
    node.inputs.append(_constant(graph, f"{output.name}/weight", weight.astype(dtype)))
    new = [node]
    if first.operator.bias_input is not None:
        node.inputs.append(_constant(graph, f"{output.name}/bias", bias.astype(dtype)))
    elif bias.any():
        product = gs.Variable(unused_name(graph, f"{output.name}/product"), first.dtype)
        node.outputs.append(product)
        shift = _constant(graph, f"{output.name}/bias", bias.astype(dtype))
        new.append(gs.Node("Add", "", {}, [product, shift]))
    for offset, made in enumerate(new):
        graph.nodes.insert(at + 1 + offset, made)
    remove(graph, *branches.nodes)
    new[-1].outputs.append(output)


def _attributes(branches: BranchSum, first: Linear) -> dict[str, object]:
    if not first.is_convolution:
        return {}
    window, kernel = branches.window, branches.kernel
    return {
        "group": kernel.groups,
        "kernel_shape": list(window.taps),
        "strides": list(window.strides),
        "dilations": list(window.dilations),
        "pads": [*window.begin, *window.end],
    }


def _constant(
    graph: gs.Graph, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.floating]]
) -> gs.Constant:
    return gs.Constant(unused_name(graph, name), np.ascontiguousarray(values))
