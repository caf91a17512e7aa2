"""What a form of a graph is: how its teacher is built, its student, and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from tests.helpers import Array, build

Build = Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Form:
    """A way to write a network.

    Attributes:
        teacher: builds it.
        sizes: of its open dimensions, by name; 6 where nothing is said.
        student: turns the teacher into its student; noise on all weights where nothing is said.
        adapter: the family that is fitted.
        count: number of samples.
        fails: a part of the one sentence that refuses it, where that is what should happen.
    """

    teacher: Build
    sizes: Mapping[str, int] = field(default_factory=dict)
    student: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    adapter: str = "auto"
    count: int = 56
    fails: str = ""

    def pair(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Build teacher and student."""
        teacher = self.teacher()
        return teacher, (self.student or noisy)(teacher)

    def samples(self, seed: int) -> dict[str, Array]:
        """Draw values for all inputs: small whole numbers where it takes integers."""
        model, rng = self.teacher(), np.random.default_rng(seed)
        given = {tensor.name for tensor in model.graph.initializer}
        drawn: dict[str, Array] = {}
        for value in model.graph.input:
            if value.name in given:
                continue
            tensor = value.type.tensor_type
            shape = [d.dim_value or self.sizes.get(d.dim_param, 6) for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [self.count, *shape[1:]]
            whole = dtype.kind in "iub"
            values = rng.integers(0, 5, shape) if whole else rng.standard_normal(shape)
            drawn[value.name] = values.astype(dtype)
        return drawn


def noisy(model: onnx.ModelProto, amount: float = 0.1, seed: int = 9) -> onnx.ModelProto:
    """Copy a model with noise on its matrices and kernels, wherever the graph keeps them."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = [a.t for n in copy.graph.node if n.op_type == "Constant" for a in n.attribute]
    for tensor in [*copy.graph.initializer, *constants]:
        floats = tensor.data_type in (1, 10, 11, 16)
        if floats and sum(extent > 1 for extent in tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            exact = values.astype(np.float64)
            exact += amount * exact.std() * rng.standard_normal(values.shape)
            changed = numpy_helper.from_array(exact.astype(values.dtype), tensor.name)
            tensor.CopyFrom(changed)
    for node in copy.graph.node:
        if node.op_type == "ConstantOfShape" and node.attribute:
            value = numpy_helper.to_array(node.attribute[0].t)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(value * value.dtype.type(1.2)))
    return copy


def text(graph: str, opset: int = 17, ir: int = 8) -> Build:
    """A graph in ONNX's text, see ``tests.helpers.build``."""
    return lambda: build(graph, opset=opset, ir=ir)


def one(node: str, weights: str, x: str = "float[N,4,6,6]", z: str = "float[N,A,B,C]") -> Build:
    """x ─▶ the node ─▶ z."""
    return text(f"g ({x} x) => ({z} z) <{weights}> {{ {node} }}")
