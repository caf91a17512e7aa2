"""A model without its large weights, and these beside it, as arrays.

Serializing a model copies every weight in it, and so does parsing it; nor can more than 2 GB be
serialized. Without its weights a model is small::

    ModelProto, gs.Graph ──▶ model that names its large weights
                         └─▶ arrays that refer to the memory they lie in

An array has the shape of its initializer and elements of the size of its own. What these mean, the
initializer says: not all element types of ONNX exist in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from fskd_onnx.passes.analysis.constants import element_type

# In bytes. Smaller ones are copied as fast; and a shape or a list of axes, which a runtime has to
# see when it parses the model, is never as large.
_LARGE = 2**14

# Element types of whole bytes, as bits.
_BITS = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}

Array = NDArray[Any]


@dataclass(frozen=True)
class Separated:
    """A model, and those of its weights that are not in it.

    Attributes:
        model: each initializer that ``weights`` holds is marked as one outside, of no file.
        weights: values by the name of the initializer, in its shape.
    """

    model: onnx.ModelProto
    weights: Mapping[str, Array]


def separate(model: onnx.ModelProto) -> Separated:
    """Separate a model from its large weights, except those without readers and those in files.

    Args:
        model: any model; it is not modified.
    """
    initializers = model.graph.initializer
    read = set(_reads(model.graph))
    found = {tensor.name: _stored(tensor) for tensor in initializers if tensor.name in read}
    weights = {name: values for name, values in found.items() if values is not None}
    light = without_weights(model)
    light.graph.initializer.extend(
        _named(tensor.name, tensor.data_type, tensor.dims) if tensor.name in weights else tensor
        for tensor in initializers
    )
    return Separated(light, weights)


def separate_constants(
    constants: Sequence[gs.Constant],
) -> tuple[list[TensorProto], dict[str, Array]]:
    """Export dense constants of a graph as initializers, those that are large without values.

    Returns:
        The initializers, and the values of those that have none.
    """
    found = {constant.name: _large_values(constant) for constant in constants}
    weights = {name: values for name, values in found.items() if values is not None}
    initializers = [
        _named(constant.name, element_type(constant), constant.shape)
        if constant.name in weights
        else OnnxExporter.export_tensor_proto(constant)
        for constant in constants
    ]
    return initializers, weights


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy all of a model but its initializers."""
    light = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _set(light, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _set(light.graph, field.name, value)
    return light


def _set(message: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    if isinstance(value, str | int):
        setattr(message, name, value)
    else:
        getattr(message, name).MergeFrom(value)


def _stored(tensor: TensorProto) -> Array | None:
    """Return the values of an initializer as bits, if it is large and stores whole bytes."""
    count = math.prod(tensor.dims)
    if uses_external_data(tensor) or not tensor.HasField("raw_data") or count == 0:
        return None
    raw = tensor.raw_data
    bits = _BITS.get(len(raw) // count)
    if bits is None or len(raw) < _LARGE or len(raw) != count * bits.itemsize:
        return None
    return np.frombuffer(raw, bits).reshape(tuple(tensor.dims))


def _large_values(constant: gs.Constant) -> Array | None:
    """Return the values of a constant, if it is large and of numbers."""
    values = constant._values
    if not isinstance(values, np.ndarray):
        return _stored(values.tensor)
    return values if values.dtype.kind in "biuf" and values.nbytes >= _LARGE else None


def _named(name: str, kind: int, shape: Sequence[int]) -> TensorProto:
    """Return an initializer without values, marked as one outside."""
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="memory")
    return tensor


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield what the nodes of a graph read, those in bodies included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _reads(body)
