"""What it takes to run an operator of ONNX in PyTorch: a builder, and the table of all of them.

A builder reads the attributes of one node, once, and returns the function of its inputs that the
node is. What it cannot do, it refuses then, before anything runs; so does `built` where attributes
are left that the builder has not read. To add an operator, decorate its builder::

    @operator("ThresholdedRelu")
    def _thresholded_relu(node: NodeReader) -> Function:
        alpha = node.number("alpha", 1.0)
        return lambda x: torch.where(x > alpha, x, 0)

Optional inputs that a node leaves out are None. Half precision is computed in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

T = TypeVar("T")

Function: TypeAlias = Callable[..., Any]
"""From inputs to the output, or to a tuple of outputs."""


class UnsupportedError(Exception):
    """A node cannot be run in PyTorch; the message says what of it."""


class NodeReader:
    """The attributes of a node, each asked for once.

    Attributes:
        op: the operator.
        version: of the operator set that the model imports.
        outputs: number of the last output that somebody reads.
        all_outputs: number of outputs.
    """

    def __init__(self, node: onnx.NodeProto, version: int, read: Collection[str]) -> None:
        """Read a node.

        Args:
            node: the node.
            version: of the operator set that the model imports.
            read: names of the tensors that somebody reads.
        """
        self.op, self.version = node.op_type, version
        self.outputs = max((k for k, name in enumerate(node.output, 1) if name in read), default=0)
        self.all_outputs = len(node.output)
        self._values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._unread = set(self._values)

    def given(self, name: str) -> Any:
        """Return the value of an attribute, None where the node has none."""
        self._unread.discard(name)
        return self._values.get(name)

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is one real number."""
        found = self.given(name)
        return default if found is None else float(found)

    def whole(self, name: str, default: int) -> int:
        """Return an attribute that is one whole number."""
        found = self.given(name)
        return default if found is None else int(found)

    def wholes(self, name: str) -> list[int] | None:
        """Return an attribute that is a list of whole numbers, None where the node has none."""
        found = self.given(name)
        return None if found is None else [int(value) for value in found]

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a text."""
        found = self.given(name)
        return default if found is None else bytes(found).decode()

    def only(self, name: str, found: T, *allowed: T) -> T:
        """Return the value of an attribute, which has to be one of those allowed.

        Raises:
            UnsupportedError: it is another one.
        """
        if found not in allowed:
            raise UnsupportedError(f"its attribute {name} is {found!r}")
        return found

    def one_output(self) -> None:
        """Refuse a node of which somebody reads more than the first output.

        Raises:
            UnsupportedError: it is one.
        """
        if self.outputs > 1:
            raise UnsupportedError("more than its first output is read")

    @property
    def unread(self) -> list[str]:
        """Names of the attributes that nobody has asked for."""
        return sorted(self._unread)


OPERATORS: dict[str, Callable[[NodeReader], Function]] = {}


def operator(
    *names: str,
) -> Callable[[Callable[[NodeReader], Function]], Callable[[NodeReader], Function]]:
    """Enter a builder in the table, under the names of its operators."""

    def enter(builder: Callable[[NodeReader], Function]) -> Callable[[NodeReader], Function]:
        OPERATORS.update(dict.fromkeys(names, builder))
        return builder

    return enter


def built(node: onnx.NodeProto, version: int, read: Collection[str]) -> Function:
    """Return the function of a node.

    Args:
        node: the node.
        version: of the operator set that the model imports.
        read: names of the tensors that somebody reads.

    Raises:
        UnsupportedError: there is none, or not with these attributes.
    """
    builder = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if builder is None:
        raise UnsupportedError("the operator is not one of those that run in PyTorch")
    reader = NodeReader(node, version, read)
    function = builder(reader)
    if reader.unread:
        raise UnsupportedError(f"its attribute {reader.unread[0]} is not known")
    return function


_TYPES: Mapping[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float32,
    onnx.TensorProto.BFLOAT16: torch.float32,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def torch_type(element_type: int) -> torch.dtype:
    """Return the type that values of an ONNX type are computed in.

    Raises:
        UnsupportedError: there is none.
    """
    if element_type not in _TYPES:
        name = onnx.helper.tensor_dtype_to_string(element_type)
        raise UnsupportedError(f"it has values of the type {name}")
    return _TYPES[element_type]


def constant(tensor: onnx.TensorProto, values: NDArray[Any] | None = None) -> Tensor:
    """Return a stored tensor.

    Args:
        tensor: says of which type it is.
        values: its values; None where they are in it.

    Raises:
        UnsupportedError: of its type.
    """
    kind = torch_type(tensor.data_type)
    values = numpy_helper.to_array(tensor) if values is None else values
    if kind.is_floating_point:  # also those that NumPy has no type of its own for
        return torch.tensor(values.astype("float64")).to(kind)
    return torch.tensor(values)


def whole_numbers(tensor: Tensor | None) -> list[int] | None:
    """Return the values of a tensor of whole numbers; None where the input is left out."""
    return None if tensor is None else [int(value) for value in tensor.reshape(-1).tolist()]


def along(axis: int, ndim: int) -> int:
    """Return an axis counted from the front."""
    return axis + ndim if axis < 0 else axis


def axes_of(given: Sequence[int] | None, ndim: int) -> list[int]:
    """Return axes counted from the front; all of them where none are given."""
    return list(range(ndim)) if given is None else [along(axis, ndim) for axis in given]
