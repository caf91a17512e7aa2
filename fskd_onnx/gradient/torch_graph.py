"""A graph of ONNX, run by PyTorch, some of whose weights can be other tensors.

The nodes run in the order of the graph, each by its entry in the table of operators, and a tensor
is forgotten behind its last reader. A value of a run stands in for an input of a node, the same one
for all nodes that use the same weights, so the model itself is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from fskd_onnx.errors import ModelError, OutOfMemoryError

# Each of these enters its operators in the table.
from fskd_onnx.gradient import (  # noqa: F401
    elementwise_operators,
    reduction_operators,
    resize_operators,
    shape_operators,
    spatial_operators,
)
from fskd_onnx.gradient.operator_table import Function, UnsupportedError, built, constant
from fskd_onnx.runtime.out_of_memory import is_out_of_memory
from fskd_onnx.serialization import external_data

_REMEDY = "leave --refine or --optimizer sgd out"


class Slot(NamedTuple):
    """An input of a node.

    Attributes:
        output: name of the node's first output.
        number: of the input; one behind the last where the node gets one more.
    """

    output: str
    number: int


@dataclass(frozen=True)
class _Step:
    """One node.

    Attributes:
        name: what to call it.
        function: what it computes.
        inputs: names of tensors, "" for those that are left out; numbers of values of the run.
        outputs: names of tensors.
        last_reads: names of the tensors that no later node reads.
    """

    name: str
    function: Function
    inputs: tuple[str | int, ...]
    outputs: tuple[str, ...]
    last_reads: tuple[str, ...]


class TorchGraph:
    """A model as PyTorch runs it; half precision is computed in single precision.

    Attributes:
        device: where it runs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        name: str,
        wanted: Sequence[str],
        slots: Sequence[Sequence[Slot]] = (),
        device: str = "cpu",
    ) -> None:
        """Translate a model.

        Args:
            model: a valid one, of any size.
            name: what to call it.
            wanted: names of the tensors to compute.
            slots: the inputs of nodes that each value of a run stands in for.
            device: where to run.

        Raises:
            ModelError: a node that these tensors depend on cannot be run; its name is in it.
        """
        self._name, self._wanted, self.device = name, tuple(dict.fromkeys(wanted)), device
        by_slot = {slot: at for at, of_value in enumerate(slots) for slot in of_value}
        self._steps = _steps(model, name, self._wanted, by_slot)
        read = {one for step in self._steps for one in step.inputs} | {*self._wanted}
        self._constants = {
            tensor.name: _stored(tensor, name).to(device)
            for tensor in model.graph.initializer
            if tensor.name in read
        }
        for tensor in model.graph.sparse_initializer:
            if tensor.values.name in read:
                what = f"its initializer '{tensor.values.name}'"
                raise ModelError(_refusal(name, what, "it is sparse"))

    def run(self, feeds: Mapping[str, Tensor], values: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """Return the wanted tensors.

        Args:
            feeds: the inputs of the model.
            values: those that stand in for inputs of nodes, in the order of their slots.

        Raises:
            OutOfMemoryError: the machine has not enough memory.
            ModelError: a node cannot be run on such inputs.
        """
        tensors = self._constants | {
            key: (value.float() if value.dtype == torch.half else value).to(self.device)
            for key, value in feeds.items()
        }
        for step in self._steps:
            inputs = [
                values[one] if isinstance(one, int) else tensors[one] if one else None
                for one in step.inputs
            ]
            try:
                found = step.function(*inputs)
            except Exception as error:  # of many types; which one says nothing to a user
                if is_out_of_memory(error):
                    what = f"{self._name}: a gradient step does not fit into memory"
                    raise OutOfMemoryError(what, self._name) from error
                what = str(error).partition("\n")[0]
                raise ModelError(
                    f"{self._name}: PyTorch cannot run its node '{step.name}' ({what}); {_REMEDY}"
                ) from error
            if not isinstance(found, tuple | list):
                found = (found,)
            tensors |= {
                key: value.to(self.device)
                for key, value in zip(step.outputs, found, strict=False)
                if key
            }
            for key in step.last_reads:
                del tensors[key]
        return {key: tensors[key] for key in self._wanted}


def check_runs(model: onnx.ModelProto, name: str, wanted: Sequence[str]) -> None:
    """Check that all nodes can be run that some tensors depend on.

    Raises:
        ModelError: one cannot; its name is in it.
    """
    _steps(model, name, wanted, {})


def _steps(
    model: onnx.ModelProto, name: str, wanted: Sequence[str], by_slot: Mapping[Slot, int]
) -> list[_Step]:
    """Return the nodes that some tensors depend on, in order."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    needed, steps = set(wanted), []
    for node in reversed(model.graph.node):
        if not needed.intersection(node.output):
            continue
        label = node.name or next(iter(node.output))
        try:
            function = built(node, version, needed)
        except UnsupportedError as error:
            raise ModelError(
                _refusal(name, f"its node '{label}' ({node.op_type})", str(error))
            ) from error
        slots = [at for (output, at) in by_slot if output == node.output[0]]
        inputs: list[str | int] = [*node.input, *[""] * (max(slots, default=-1) + 1)]
        inputs = inputs[: max(len(node.input), max(slots, default=-1) + 1)]
        for at in slots:
            inputs[at] = by_slot[Slot(node.output[0], at)]
        names = {one for one in inputs if isinstance(one, str) and one}
        last = names - needed
        needed |= names
        steps.append(_Step(label, function, tuple(inputs), tuple(node.output), tuple(last)))
    return steps[::-1]


def _stored(tensor: onnx.TensorProto, name: str) -> Tensor:
    try:
        return constant(tensor, numpy_helper.to_array(tensor, str(external_data.ROOT)))
    except UnsupportedError as error:
        raise ModelError(_refusal(name, f"its initializer '{tensor.name}'", str(error))) from error


def _refusal(model: str, what: str, why: str) -> str:
    """Return the sentence that refuses a model."""
    return (
        f"{model}: gradient steps run the student in PyTorch, and {what} cannot be used there: "
        f"{why}; {_REMEDY}"
    )
