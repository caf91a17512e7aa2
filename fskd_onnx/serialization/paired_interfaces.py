"""Which inputs and outputs of two models belong together.

By their names where these are the same, else by their order where types and shapes allow no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import onnx

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.interface import (
    InputSpec,
    fixed_batch_size,
    input_specs,
    output_names,
    shape_of,
)


@dataclass(frozen=True)
class PairedInterface:
    """How the inputs and outputs of a student belong to its teacher's.

    Attributes:
        inputs: the student's inputs, in the order of the teacher's.
        outputs: names of the student's outputs, in the order of the teacher's.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]


def pair_interfaces(
    teacher: onnx.ModelProto, student: onnx.ModelProto, teacher_name: str, student_name: str
) -> PairedInterface:
    """Pair the inputs and outputs of two models.

    Args:
        teacher: a model.
        student: a model.
        teacher_name: what to call the teacher in an error.
        student_name: what to call the student in an error.

    Raises:
        ModelError: they do not take the same inputs or do not give as many outputs, or which
            belong together cannot be told.
    """
    specs = [input_specs(model) for model in (teacher, student)]
    by_name = {spec.name: spec for spec in specs[1]}
    sizes = [fixed_batch_size(part) or 1 for part in specs]
    if by_name.keys() == {spec.name for spec in specs[0]}:
        inputs = [by_name[spec.name] for spec in specs[0]]
    else:
        inputs = _in_only_order(
            specs[0], specs[1], _take_the_same, "inputs", teacher_name, student_name
        )
    if len(inputs) != len(specs[0]) or not all(map(_take_the_same, specs[0], inputs)):
        listed = [", ".join(map(str, part)) for part in specs]
        raise ModelError(
            f"{student_name}: takes other inputs ({listed[1]}) than {teacher_name} ({listed[0]}); "
            "give a student of that teacher"
        )
    outputs = [list(model.graph.output) for model in (teacher, student)]
    if len(outputs[0]) != len(outputs[1]):
        raise ModelError(
            f"{student_name}: has {len(outputs[1])} outputs and {teacher_name} has "
            f"{len(outputs[0])}; give a student of that teacher"
        )
    names = [output_names(model) for model in (teacher, student)]
    if set(names[0]) == set(names[1]):
        names[1] = names[0]
    else:

        def alike(one: onnx.ValueInfoProto, other: onnx.ValueInfoProto) -> bool:
            return _give_the_same(one, other, (sizes[0], sizes[1]))

        found = _in_only_order(outputs[0], outputs[1], alike, "outputs", teacher_name, student_name)
        names[1] = [value.name for value in found]
    axes = [spec.axis for spec in specs[0]]
    along = (replace(spec, axis=axis) for spec, axis in zip(inputs, axes, strict=True))
    return PairedInterface(tuple(along), tuple(names[1]))


_Tensor = TypeVar("_Tensor", InputSpec, onnx.ValueInfoProto)


def _in_only_order(
    one: Sequence[_Tensor],
    other: Sequence[_Tensor],
    fit: Callable[[_Tensor, _Tensor], bool],
    what: str,
    teacher_name: str,
    student_name: str,
) -> list[_Tensor]:
    """Return the second tensors in the only order in which they fit the first.

    Only one order fits where one tensor after the other has a single partner among those left.

    Raises:
        ModelError: there are several such orders, or none.
    """
    if len(one) != len(other) or len(one) < 2:
        return list(other)
    open_pairs = {(i, j) for i, a in enumerate(one) for j, b in enumerate(other) if fit(a, b)}
    order: dict[int, int] = {}
    while open_pairs:
        rows = Counter(i for i, _ in open_pairs)
        columns = Counter(j for _, j in open_pairs)
        found = next((p for p in open_pairs if rows[p[0]] == 1 or columns[p[1]] == 1), None)
        if found is None:
            break
        order[found[0]] = found[1]
        open_pairs = {p for p in open_pairs if p[0] != found[0] and p[1] != found[1]}
    if len(order) == len(one):
        return [other[order[i]] for i in range(len(one))]
    names = [", ".join(tensor.name for tensor in part) for part in (other, one)]
    raise ModelError(
        f"{student_name}: its {what} ({names[0]}) have other names than those of {teacher_name} "
        f"({names[1]}), and types and shapes do not tell which belong together; name them as the "
        "teacher's"
    )


def _take_the_same(one: InputSpec, other: InputSpec) -> bool:
    """Return whether one tensor can be fed to both inputs; batch sizes may differ."""
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        return False
    return all(
        a == b or a is None or b is None or axis == one.axis
        for axis, (a, b) in enumerate(zip(one.shape, other.shape, strict=True))
    )


def _give_the_same(
    one: onnx.ValueInfoProto, other: onnx.ValueInfoProto, sizes: tuple[int, int]
) -> bool:
    """Return whether two outputs may be the same, their models taking batches of such sizes."""
    if one.type.WhichOneof("value") != other.type.WhichOneof("value"):
        return False
    tensors = one.type.tensor_type, other.type.tensor_type
    if tensors[0].elem_type != tensors[1].elem_type:
        return False
    if not all(tensor.HasField("shape") for tensor in tensors):
        return True
    shapes = shape_of(one), shape_of(other)
    return len(shapes[0]) == len(shapes[1]) and all(
        a is None or b is None or a == b or a * sizes[1] == b * sizes[0]
        for a, b in zip(*shapes, strict=True)
    )
