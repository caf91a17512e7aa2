"""Numbers that a graph computes from the extents of its tensors.

Exporters write a size that they know as a computation, so that it would follow if it changed::

    x (N, 16, H, W) ──▶ Shape ──▶ Gather (1) ──▶ Div (2) ──▶ end of a Slice

Integers that are computed from others that are written out, such as pads that an exporter puts in
order, count as well. ``passes.fold_extents`` makes constants of what is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fskd_onnx.passes.analysis.nodes import bodies, has_input, is_dense, is_standard
from fskd_onnx.passes.analysis.operators import operator_of

# A shape has an element per axis.
_MOST_VALUES = 64

Values = NDArray[Any]
Dims = Mapping[str, tuple[int | str | None, ...]]
Element = int | str | None
"""A number, the name of an extent, or None where nothing is known."""


class ComputedExtents:
    """What is known of integers that come from shapes.

    Attributes:
        values: of tensors that are known as a whole, by name.
    """

    def __init__(
        self, graph: gs.Graph, dims: Dims, values: Mapping[str, Values] | None = None
    ) -> None:
        """Compute what the nodes of a graph compute from extents.

        Args:
            graph: any graph.
            dims: the shapes of its tensors, as far as they are known.
            values: what is known of these integers already, by the tensor's name.
        """
        self.values: dict[str, Values] = dict(values or {})
        self._graph = graph
        self._dims = dims
        self._partly: dict[str, list[Element]] = {}
        for node in graph.nodes:
            if len(node.outputs) == 1 and not bodies(node) and is_standard(node, str(node.op)):
                self._evaluate(node)

    @staticmethod
    def may_be_in(graph: gs.Graph) -> bool:
        """Whether any node of a graph reads extents."""
        return any(is_standard(node, "Shape", "Size") for node in graph.nodes)

    def target(self, reshape: gs.Node) -> Values | None:
        """Return the target of a Reshape as a constant; None where it cannot be stated."""
        elements = self._partly.get(reshape.inputs[1].name)
        old = self._dims.get(reshape.inputs[0].name)
        if elements is None or old is None or reshape.attrs.get("allowzero", 0):
            return None
        numbers = []
        for axis, element in enumerate(elements):
            if isinstance(element, int):
                if element == 0:
                    return None
                numbers.append(element)
            else:
                is_copied = element is not None and axis < len(old) and old[axis] == element
                numbers.append(0 if is_copied else -1)
        return np.array(numbers, np.int64) if numbers.count(-1) < 2 else None

    def _evaluate(self, node: gs.Node) -> None:
        name = node.outputs[0].name
        if name in self.values:
            return
        if is_standard(node, "Shape", "Size"):
            dims = self._dims.get(node.inputs[0].name)
            if isinstance(node.inputs[0], gs.Constant):
                dims = tuple(node.inputs[0].shape)
            if dims is not None and node.op == "Shape":
                self._note(name, dims[node.attrs.get("start", 0) : node.attrs.get("end", None)])
            elif dims is not None and all(isinstance(dim, int) for dim in dims):
                self.values[name] = np.array(np.prod([int(dim or 0) for dim in dims]), np.int64)
            return
        known = [self._value(tensor) for tensor in node.inputs if not tensor.is_empty()]
        comes_from_shapes = any(
            t.name in self.values or t.name in self._partly for t in node.inputs
        )
        # Beside extents there are integers that are written out: axes, numbers of them, zeros.
        are_integers = all(value is not None and value.dtype.kind == "i" for value in known)
        if not (comes_from_shapes or are_integers) or not operator_of(node).folds:
            return
        if all(value is not None for value in known):
            value = self._run(node)
            if value is not None and (comes_from_shapes or value.dtype.kind == "i"):
                self.values[name] = value
        else:
            self._pick(node, name)

    def _pick(self, node: gs.Node, name: str) -> None:
        """Follow elements that are only partly known through nodes that put them elsewhere."""
        parts = [self._elements(tensor) for tensor in node.inputs]
        first = parts[0]
        if is_standard(node, "Concat"):
            whole = [element for part in parts if part is not None for element in part]
            if all(part is not None for part in parts):
                self._note(name, whole)
        elif first is None:
            return
        elif is_standard(node, "Identity", "Unsqueeze", "Squeeze") or _is_cast_to_int64(node):
            self._note(name, first, scalar=is_standard(node, "Squeeze"))
        elif is_standard(node, "Gather", "Slice"):
            places = self._run(node, np.arange(len(first)))
            if places is not None:
                self._note(name, [first[int(i)] for i in places.reshape(-1)], places.ndim == 0)

    def _note(self, name: str, elements: Sequence[Element], scalar: bool = False) -> None:
        if all(isinstance(element, int) for element in elements):
            value = np.array(elements, np.int64)
            self.values[name] = value.reshape(()) if scalar else value
        else:
            self._partly[name] = list(elements)

    def _value(self, tensor: gs.Tensor) -> Values | None:
        if is_dense(tensor):
            small = np.prod(tensor.shape) <= _MOST_VALUES
            return tensor.values if small and isinstance(tensor.dtype, np.dtype) else None
        return self.values.get(tensor.name)

    def _elements(self, tensor: gs.Tensor) -> list[Element] | None:
        """Return the elements of a scalar or a vector; None if not even their number is known."""
        value = self._value(tensor)
        if value is not None:
            return [int(v) for v in value.reshape(-1)] if value.dtype.kind == "i" else None
        if tensor.name in self._partly:
            return self._partly[tensor.name]
        dims = self._dims.get(tensor.name)
        if dims is None or len(dims) > 1 or not all(isinstance(dim, int) for dim in dims):
            return None
        return [None] * (int(dims[0] or 0) if dims else 1)

    def _run(self, node: gs.Node, first: Values | None = None) -> Values | None:
        """Compute a node of what is known; None where ONNX's own implementation cannot.

        Args:
            node: the node.
            first: to be taken for its first input.
        """
        inputs: dict[str, Values] = {}
        for slot, tensor in enumerate(node.inputs):
            if has_input(node, slot):
                value = first if first is not None and slot == 0 else self._value(tensor)
                if value is None:
                    return None
                inputs[tensor.name] = value
        kinds = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in inputs.items()
        ]
        output = onnx.ValueInfoProto(name=node.outputs[0].name)
        part = onnx.helper.make_graph([OnnxExporter.export_node(node)], "node", kinds, [output])
        opset = onnx.helper.make_opsetid("", self._graph.opset)
        try:
            evaluator = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=[opset]))
            [result] = evaluator.run(None, inputs)
        except Exception:  # whatever it lacks, the graph can do itself
            return None
        is_small = isinstance(result, np.ndarray | np.generic) and np.size(result) <= _MOST_VALUES
        return np.asarray(result) if is_small else None


def _is_cast_to_int64(node: gs.Node) -> bool:
    return is_standard(node, "Cast") and node.attrs["to"] == onnx.TensorProto.INT64
