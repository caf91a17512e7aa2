"""Students of any teacher: renamed and shuffled, with noise, with fresh weights, decomposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from fskd_onnx.passes import export
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import index_of
from tests.helpers import Array, check, random_weight


@dataclass(frozen=True)
class Renamed:
    """A model without any of its names, and the names that it had.

    Attributes:
        model: the model.
        old: names of nodes and tensors as they were, by what they are now.
    """

    model: onnx.ModelProto
    old: Mapping[str, str]


def renamed(model: onnx.ModelProto, seed: int) -> Renamed:
    """Give nodes and tensors random names; shuffle initializers and, as far as may be, nodes."""
    rng = np.random.default_rng(seed)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    _shuffle(graph, rng)
    new: dict[str, str] = {"": ""}

    def rename(name: str) -> str:
        return new.setdefault(name, f"n{rng.integers(2**60):x}")

    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
    for named in (*graph.initializer, *graph.input, *graph.output):
        named.name = rename(named.name)
    del graph.value_info[:]
    check(result)
    return Renamed(result, {renamed: name for name, renamed in new.items()})


def with_noise(model: onnx.ModelProto, strength: float, seed: int = 0) -> onnx.ModelProto:
    """Add noise to all weights, relative to their standard deviation."""
    rng = np.random.default_rng(seed)

    def noisy(values: Array) -> Array:
        return values + strength * values.std() * rng.standard_normal(values.shape)

    return _with_weights(model, noisy)


def with_fresh_weights(model: onnx.ModelProto, seed: int = 1) -> onnx.ModelProto:
    """Draw all weights anew."""
    rng = np.random.default_rng(seed)
    return _with_weights(model, lambda values: random_weight(rng, values.shape))


Parts = Sequence[tuple[Array, Mapping[str, object]]]
"""Weights and attributes of the nodes that one convolution becomes, in their order."""


def decomposed(
    model: onnx.ModelProto,
    split: Callable[[Linear], Parts],
    wanted: Callable[[Linear], bool],
    activated: bool = False,
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Replace convolutions by chains of convolutions.

    Args:
        model: the teacher.
        split: gives the parts of a convolution.
        wanted: which convolutions.
        activated: whether a Relu stands between the parts.

    Returns:
        The student, and the block output of each of its linear nodes that has one in the teacher,
        by the name of the node.
    """
    graph = gs.import_onnx(model)
    partners = {}
    for view in find_linear(graph):
        assert isinstance(view, Linear)
        if view.op == "Conv" and wanted(view):
            partners[_replace(graph, view, split(view), activated)] = view.output.name
        else:
            partners[view.name] = view.output.name
    student = export(graph, like=model)
    check(student)
    return student, partners


def _replace(graph: gs.Graph, view: Linear, parts: Parts, activated: bool) -> str:
    node, source, output = view.node, view.input, view.output
    bias = node.inputs[2:]
    at = index_of(graph, node)
    nodes = []
    for number, (weight, attributes) in enumerate(parts):
        last = number == len(parts) - 1
        name = f"{view.name}.part{number}"
        values = gs.Constant(f"{name}.weight", np.ascontiguousarray(weight, np.float32))
        result = output if last else gs.Variable(f"{name}.output", np.float32)
        inputs = [source, values, *(bias if last else [])]
        nodes.append(gs.Node("Conv", name, attributes, inputs, []))
        source = result
        if activated and not last:
            source = gs.Variable(f"{name}.relu", np.float32)
            nodes[-1].outputs = [result]
            nodes.append(gs.Node("Relu", f"{name}.relu", {}, [result], [source]))
        elif not last:
            nodes[-1].outputs = [result]
    node.inputs.clear()
    node.outputs.clear()
    del graph.nodes[at]
    nodes[-1].outputs = [output]
    for offset, part in enumerate(nodes):
        graph.nodes.insert(at + offset, part)
    return str(nodes[-1].name)


def depthwise_pointwise(view: Linear) -> Parts:
    """Give a k x k kernel per channel, then 1 x 1: the largest singular vectors of each input."""
    kernel, attributes = _kernel(view)
    u, s, vt = np.linalg.svd(np.moveaxis(kernel.reshape(*kernel.shape[:2], -1), 1, 0), False)
    inputs = kernel.shape[1]
    depth = vt[:, 0].reshape(inputs, 1, *kernel.shape[2:])
    point = (u[:, :, 0] * s[:, :1]).T[..., np.newaxis, np.newaxis]
    return [(depth, {**attributes, "group": inputs}), (point, {})]


def pointwise_depthwise(view: Linear) -> Parts:
    """Give 1 x 1, then a k x k kernel per channel: the largest singular vectors of each output."""
    kernel, attributes = _kernel(view)
    u, s, vt = np.linalg.svd(kernel.reshape(*kernel.shape[:2], -1), False)
    outputs = len(kernel)
    point = (u[:, :, 0] * s[:, :1])[..., np.newaxis, np.newaxis]
    depth = vt[:, 0].reshape(outputs, 1, *kernel.shape[2:])
    return [(point, {}), (depth, {**attributes, "group": outputs})]


def separable(view: Linear) -> Parts:
    """Give k x 1, then 1 x k, of low rank in between (Jaderberg et al. 2014)."""
    kernel, attributes = _kernel(view)
    n, inputs, height, width = kernel.shape
    u, s, vt = np.linalg.svd(np.transpose(kernel, (1, 2, 0, 3)).reshape(inputs * height, -1), False)
    rank = max(1, len(s) // 2)
    first = (u[:, :rank] * s[:rank]).T.reshape(rank, inputs, height, 1)
    second = np.moveaxis(vt[:rank].reshape(rank, n, 1, width), 0, 1)
    top, left, bottom, right = attributes["pads"]
    y, x = attributes["strides"]
    return [
        (first, {"pads": [top, 0, bottom, 0], "strides": [y, 1]}),
        (second, {"pads": [0, left, 0, right], "strides": [1, x]}),
    ]


def bottleneck(view: Linear) -> Parts:
    """Give 1 x 1, k x k, 1 x 1: Tucker-2 (Kim et al. 2016), half as wide inside."""
    kernel, attributes = _kernel(view)
    n, inputs = kernel.shape[:2]
    out, _, _ = np.linalg.svd(kernel.reshape(n, -1), False)
    into, _, _ = np.linalg.svd(np.moveaxis(kernel, 1, 0).reshape(inputs, -1), False)
    out, into = out[:, : max(1, n // 2)], into[:, : max(1, inputs // 2)]
    core = np.einsum("nchw,na,cb->abhw", kernel, out, into)
    ones = (np.newaxis, np.newaxis)
    return [
        (into.T[(..., *ones)], {}),
        (core, attributes),
        (out[(..., *ones)], {}),
    ]


DECOMPOSITIONS = {
    "depthwise, pointwise": depthwise_pointwise,
    "pointwise, depthwise": pointwise_depthwise,
    "k x 1, 1 x k": separable,
    "1 x 1, k x k, 1 x 1": bottleneck,
}


def _kernel(view: Linear) -> tuple[Array, dict[str, list[int]]]:
    """Give a convolution's weight, and its padding and strides."""
    kernel = np.asarray(view.weight.values, np.float64)
    rank = kernel.ndim - 2
    attributes = {
        "pads": list(view.node.attrs.get("pads", [0] * 2 * rank)),
        "strides": list(view.node.attrs.get("strides", [1] * rank)),
    }
    return kernel, attributes


def is_spatial(view: Linear) -> bool:
    """Whether a convolution is dense and larger than 1 x 1."""
    return view.groups == 1 and math.prod(view.kernel_shape) > 1


def _with_weights(model: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """Change the weights of all linear nodes."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    views = (view for view in find_linear(gs.import_onnx(model)) if isinstance(view, Linear))
    weights = {view.weight.name for view in views}
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            changed = np.ascontiguousarray(change(values), values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return result


def _shuffle(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Shuffle initializers, and nodes in an order in which each comes behind what it reads."""
    tensors = [graph.initializer[i] for i in rng.permutation(len(graph.initializer))]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    unmade = {name for node in waiting for name in node.output}
    del graph.node[:]
    while waiting:
        ready = [i for i, node in enumerate(waiting) if not unmade & set(node.input)]
        node = waiting.pop(ready[rng.integers(len(ready))])
        unmade -= set(node.output)
        graph.node.append(node)
