"""The numbers of a constant as its file stores them: read in float64, made in their own type.

bfloat16 has no type in NumPy, so it is read from bits and rounded to them, to nearest, ties to
even, as ONNX's Cast does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from fskd_onnx.passes.analysis.nodes import is_dense, is_standard

COMPUTED = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
"""Element types that the fit computes in."""
FLOATS = (*COMPUTED, TensorProto.BFLOAT16)
"""Element types that a weight may be stored in."""
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Those of two bytes."""


def element_type(constant: gs.Constant) -> int:
    """Return the ONNX element type of a dense constant."""
    return _onnx_type(constant.dtype)


def epsilon(constant: gs.Constant) -> float:
    """Return the distance of the type that a constant of floats is stored in from 1 to the next."""
    kind = element_type(constant)
    if kind == TensorProto.BFLOAT16:
        return 2.0**-7
    return float(np.finfo(onnx.helper.tensor_dtype_to_np_dtype(kind)).eps)


def read(constant: gs.Constant) -> NDArray[np.float64]:
    """Return the values of a constant of floats; what it stores stays as it is."""
    return np.asarray(native(constant), dtype=np.float64)


def native(constant: gs.Constant) -> NDArray[np.floating]:
    """Return the values of a constant of floats in its own type, to be read and not written.

    A bfloat16 comes as the float32 that it is.
    """
    if _is_bfloat16(constant):
        values: NDArray[np.floating] = numpy_helper.to_array(_proto(constant)).astype(np.float32)
        return values
    if isinstance(constant._values, LazyValues):
        # What graphsurgeon would load is a copy of this.
        constant.values = numpy_helper.to_array(constant._values.tensor)
    own: NDArray[np.floating] = constant.values
    return own


def make(name: str, values: NDArray[np.generic], kind: int) -> gs.Constant:
    """Make a constant that stores floats as an element type."""
    if kind == TensorProto.BFLOAT16:
        return gs.Constant(name, _bfloat16(name, values.astype(np.float64)))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return gs.Constant(name, np.asarray(values, dtype, order="C"))


def survives(values: NDArray[np.generic], kind: int) -> bool:
    """Whether floats can be stored as an element type without a loss."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(native(make("", values, kind)), values))


def fits(values: NDArray[np.float64], kind: int) -> bool:
    """Whether floats are finite in an element type."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(native(make("", values, kind))).all())


def all_finite(values: NDArray[np.floating]) -> bool:
    """Whether no value is NaN or infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        # Half the time of a mask; only a sum of huge values overflows where none of them does.
        return bool(np.isfinite(values.sum(dtype=np.float64)) or np.isfinite(values).all())


def parameter(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the constant of floats that a node reads, be it behind a Cast to another float.

    Files keep weights in half precision behind such Casts.
    """
    source = tensor
    if cast := cast_of(tensor):
        source = cast.inputs[0]
    return source if is_dense(source) and element_type(source) in FLOATS else None


def cast_of(tensor: gs.Tensor) -> gs.Node | None:
    """Return the Cast that makes a tensor of a constant."""
    for node in tensor.inputs:
        if is_standard(node, "Cast") and is_dense(node.inputs[0]):
            return node
    return None


def readers(constant: gs.Constant) -> list[gs.Node]:
    """Return the nodes that read a constant, those behind its Casts in the place of these.

    A Cast that no node reads, as that of an output of the graph is, stands for itself.
    """
    found: list[gs.Node] = []
    for node in constant.outputs:
        behind = node.outputs[0].outputs if is_standard(node, "Cast") else ()
        found += behind or [node]
    return found


def computed_type(tensor: gs.Tensor) -> int:
    """Return the element type of a parameter where it is read, behind its Cast."""
    cast = cast_of(tensor)
    return _onnx_type(tensor.dtype if cast is None else cast.attrs["to"])


@cache
def _onnx_type(dtype: object) -> int:
    """Return an element type; graphsurgeon knows some by number and some by NumPy's type."""
    if isinstance(dtype, int):
        return dtype
    kind: int = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))  # type: ignore[call-overload]
    return kind


def _is_bfloat16(constant: gs.Constant) -> bool:
    return element_type(constant) == TensorProto.BFLOAT16


def _proto(constant: gs.Constant) -> onnx.TensorProto:
    values = constant._values
    assert isinstance(values, LazyValues)
    tensor: onnx.TensorProto = values.tensor
    return tensor


def _bfloat16(name: str, values: NDArray[np.float64]) -> LazyValues:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    tensor = onnx.helper.make_tensor(
        name, TensorProto.BFLOAT16, values.shape, rounded.tobytes(), raw=True
    )
    return LazyValues(tensor)
