"""Whether tensors hold what they say that they hold, seen before any of it is read.

The size of a tensor follows from its type and its shape. What a file says of it otherwise is wrong,
be it by a byte or by a terabyte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import onnx
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import ModelError
from fskd_onnx.printable import shortened

# Bits of the types whose names do not tell.
_BITS = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}
_WITHOUT_SIZE = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)


def check_tensors(tensors: Iterable[onnx.TensorProto]) -> None:
    """Check that the shapes and types of tensors are possible, and that their bytes suit them.

    Args:
        tensors: of a model, those of attributes that hold none included.

    Raises:
        ValueError: they are not, or do not; a clause about the model.
    """
    for tensor in tensors:
        wrong = why_impossible(tensor)
        if wrong:
            raise ValueError(wrong)


def why_impossible(tensor: onnx.TensorProto) -> str | None:
    """Return what cannot be of a tensor, a clause; None where all can."""
    if tensor.data_type not in onnx.TensorProto.DataType.values():
        return (
            f"the tensor '{tensor.name}' is of type {tensor.data_type}, which the installed onnx "
            "does not know"
        )
    if tensor.HasField("segment"):
        return f"the tensor '{tensor.name}' is a segment of another one, not the whole"
    if any(size < 0 for size in tensor.dims):
        return f"the tensor '{tensor.name}' is of shape {_shape(tensor)}, and no extent is negative"
    if uses_external_data(tensor) or not tensor.HasField("raw_data"):
        return None  # what else a tensor may hold its values in, the checker of ONNX compares
    size = _size(tensor)
    if size is None or len(tensor.raw_data) == size:
        return None
    return (
        f"there are {len(tensor.raw_data)} bytes of '{tensor.name}', and {_described(tensor)} "
        f"takes {size}"
    )


def _size(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor takes by its type and shape; None without a known size."""
    if tensor.data_type in _WITHOUT_SIZE:
        return None
    bits: int = math.prod(tensor.dims) * _bits(tensor.data_type)
    return -(-bits // 8)


def stated_range(tensor: onnx.TensorProto, model: str, file: str, there: int) -> tuple[int, int]:
    """Return where the bytes of an external tensor begin and how many they are.

    Args:
        tensor: an external one.
        model: what to call its model.
        file: the file that its bytes lie in.
        there: number of bytes of that file.

    Raises:
        ValueError: what the model says is no number or does not suit the tensor.
        ModelError: it is not all in the file.
    """
    check_tensors([tensor])
    stated = {entry.key: entry.value for entry in tensor.external_data}
    offset = _number(stated.get("offset") or "0", "offset", tensor)
    size = _size(tensor)
    length = _number(stated.get("length") or str(size or 0), "length", tensor)
    if size is not None and length != size:
        raise ValueError(
            f"{length} bytes of '{file}' are said to be '{tensor.name}', and {_described(tensor)} "
            f"takes {size}"
        )
    if offset + length > there:
        raise ModelError(
            f"{file}: is shorter than the weights in it ({there} bytes, and '{tensor.name}' of "
            f"{model} ends at {offset + length}); copy the model again"
        )
    return offset, length


def _number(text: str, key: str, tensor: onnx.TensorProto) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(
            f"{shortened(text)!r} is said to be the {key} of '{tensor.name}' in another file, and "
            "is no number of bytes"
        )
    return int(text)


def _bits(data_type: int) -> int:
    name = onnx.TensorProto.DataType.Name(data_type)
    digits = re.search(r"[0-9]+", name)
    return int(digits[0]) if digits else _BITS[name]


def _described(tensor: onnx.TensorProto) -> str:
    name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return f"{name} of shape {_shape(tensor)}"


def _shape(tensor: onnx.TensorProto) -> str:
    return f"({', '.join(map(str, tensor.dims))})"
