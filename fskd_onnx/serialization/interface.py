"""The inputs and outputs of a model, as they are fed and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from fskd_onnx.errors import ModelError


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: the input's name.
        shape: its dimensions, the batch first; ``None`` where the model leaves the size open.
        dtype: its element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Return the inputs that have to be fed: those without an initializer.

    Raises:
        ModelError: one of them is not a tensor.
    """
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [_spec(value) for value in model.graph.input if value.name not in given]


def output_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the outputs, in order."""
    return [value.name for value in model.graph.output]


def fixed_batch_size(specs: list[InputSpec]) -> int | None:
    """Return the only batch size that a model takes; None where it takes any."""
    sizes = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    return max(sizes, default=None)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"the model's input '{value.name}' is not a tensor; export it with tensors as inputs"
        )
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    return InputSpec(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def check_same_interface(
    teacher: onnx.ModelProto, student: onnx.ModelProto, teacher_name: str, student_name: str
) -> None:
    """Check that two models take the same inputs and give as many outputs.

    Args:
        teacher: a model.
        student: a model.
        teacher_name: what to call the teacher in an error.
        student_name: what to call the student in an error.

    Raises:
        ModelError: they do not.
    """
    specs = [input_specs(model) for model in (teacher, student)]
    if len(specs[0]) != len(specs[1]) or not all(map(_take_the_same, *specs)):
        listed = [", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in part) for part in specs]
        raise ModelError(
            f"{student_name}: takes other inputs ({listed[1]}) than {teacher_name} ({listed[0]}); "
            "give a student of that teacher"
        )
    counts = [len(output_names(model)) for model in (teacher, student)]
    if counts[0] != counts[1]:
        raise ModelError(
            f"{student_name}: has {counts[1]} outputs and {teacher_name} has {counts[0]}; "
            "give a student of that teacher"
        )


def _take_the_same(one: InputSpec, other: InputSpec) -> bool:
    """Return whether one tensor can be fed to both inputs; batch sizes may differ."""
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    extents = zip(one.shape[1:], other.shape[1:], strict=True)
    return all(a == b or a is None or b is None for a, b in extents)
