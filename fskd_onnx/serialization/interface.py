"""The inputs and outputs of a model, as they are fed and compared, and the axis of the samples.

Which axis of an input the samples lie on is read from the model's symbolic dimensions, and checked
when the model runs (``fskd_onnx.runtime.sample_axis``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError

# Names that exporters and people give to the number of samples.
_NAMES_OF_SAMPLES = frozenset({"n", "b", "bs", "num_samples", "samples"})


# Of an input. No machine holds as many, be each a byte.
_MOST_ELEMENTS = 2**40


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: the input's name.
        shape: its dimensions; ``None`` where the model leaves the size open.
        dtype: its element type.
        axis: the axis that the samples lie on; None for an input that all samples share.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    axis: int | None = 0

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Dimensions of one sample."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def batch_size(self) -> int | None:
        """The only number of samples that the input takes; None where it takes any."""
        return None if self.axis is None else self.shape[self.axis]

    def with_samples(self, sample: tuple[int, ...], count: int) -> tuple[int, ...]:
        """Return the shape of what the model is fed.

        Args:
            sample: shape of one sample.
            count: number of samples.
        """
        if self.axis is None:
            return sample
        return *sample[: self.axis], count, *sample[self.axis :]

    def __str__(self) -> str:
        """Return what to call the input in an error: its name, its type and its shape."""
        sizes = ["?" if size is None else str(size) for size in self.shape]
        return f"{self.name} {self.dtype}[{', '.join(sizes)}]"

    def joined(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return what the model is fed: samples, stacked along a first axis, along their axis."""
        return samples[0] if self.axis is None else np.moveaxis(samples, 0, self.axis)


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Return the inputs that have to be fed: those without an initializer.

    Raises:
        ModelError: one of them is not a tensor.
    """
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    values = [value for value in model.graph.input if value.name not in given]
    specs = [_spec(value) for value in values]
    dims = [_symbols(value) for value in values]
    symbol = _symbol_of_samples(dims, [_symbols(value) for value in model.graph.output])
    size = None if symbol is not None else _size_of_samples(specs)
    any_number = symbol is not None or any(spec.shape[:1] == (None,) for spec in specs)
    return [
        replace(spec, axis=_axis(spec, names, symbol, size, any_number))
        for spec, names in zip(specs, dims, strict=True)
    ]


def check_interface(model: onnx.ModelProto, name: str) -> None:
    """Check that a model has inputs that samples can be fed to, and outputs.

    Args:
        model: any model.
        name: what to call it.

    Raises:
        ModelError: it has none, or not such ones.
    """
    if not model.graph.output:
        raise ModelError(f"{name}: has no outputs; export the network again")
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    for value in model.graph.input:
        if value.name in given:
            continue
        kind = value.type.WhichOneof("value") or "tensor_type"
        if kind != "tensor_type":
            raise ModelError(
                f"{name}: its input '{value.name}' is not a tensor but {_a(kind)}; export it "
                "with tensors as inputs"
            )
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise ModelError(
                f"{name}: its input '{value.name}' takes strings, and samples are numbers; export "
                "it without what reads them"
            )
        elements = math.prod(size or 1 for size in shape_of(value))
        if elements > _MOST_ELEMENTS:
            raise ModelError(
                f"{name}: its input '{value.name}' takes {elements} numbers at once, more than fit "
                "into memory; export it for smaller inputs or fewer samples"
            )


def _a(kind: str) -> str:
    """Return words for a kind of value that ONNX knows."""
    word = kind.removesuffix("_type").replace("_", " ")
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def output_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the outputs, in order."""
    return [value.name for value in model.graph.output]


def fixed_batch_size(specs: Sequence[InputSpec]) -> int | None:
    """Return the only batch size that a model takes; None where it takes any."""
    return max((size for spec in specs if (size := spec.batch_size) is not None), default=None)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"the model's input '{value.name}' is not a tensor; export it with tensors as inputs"
        )
    kind = value.type.tensor_type.elem_type
    if kind not in onnx.helper.get_all_tensor_dtypes():
        raise ModelError(
            f"the model's input '{value.name}' has no type of ONNX ({kind}); export it again"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return InputSpec(value.name, shape_of(value), dtype)


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the dimensions that a model states of a tensor; None where one is left open."""
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    )


def _symbols(value: onnx.ValueInfoProto) -> tuple[str, ...]:
    """Return the name of each dimension; empty for one that has a size or no name."""
    return tuple(dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _symbol_of_samples(
    inputs: Sequence[tuple[str, ...]], outputs: Sequence[tuple[str, ...]]
) -> str | None:
    """Return the symbolic dimension that counts samples; None where no name tells.

    The samples' name, then what the inputs have in common, then what stands on the first axis of
    inputs and outputs: the time of a sequence often goes on the way to the output.
    """

    def rank(symbol: str) -> tuple[int, ...]:
        return (
            _likeness(symbol),
            sum(symbol in dims for dims in inputs),
            sum(dims[:1] == (symbol,) for dims in (*inputs, *outputs)),
            sum(symbol in dims for dims in outputs),
        )

    # One sample of any length, (1, length, ...), is more usual than the samples on another axis.
    candidates = [
        symbol
        for symbol in dict.fromkeys(name for dims in inputs for name in dims if name)
        if _likeness(symbol) or any(dims[:1] == (symbol,) for dims in (*inputs, *outputs))
    ]
    return max(candidates, key=rank, default=None)


def _size_of_samples(specs: Sequence[InputSpec]) -> int | None:
    """Return the number of samples that a model of fixed sizes takes; None where it cannot be told.

    It is the first extent of the first input where no other one's is an extent of all: of (1, 576)
    and states (2, 1, 128), 1. Where all agree on the first axis, nothing has to be told.
    """
    shapes = [spec.shape for spec in specs if spec.shape]
    first = {shape[0] for shape in shapes}
    common = [size for size in first if size and all(size in shape for shape in shapes)]
    return common[0] if len(first) > 1 and common == [shapes[0][0]] else None


def _likeness(symbol: str) -> int:
    """Return how clearly a name speaks of samples."""
    if "batch" in symbol.lower():
        return 2
    return int(symbol.lower() in _NAMES_OF_SAMPLES)


def _axis(
    spec: InputSpec,
    names: tuple[str, ...],
    symbol: str | None,
    size: int | None,
    any_number: bool,
) -> int | None:
    """Return the axis that the samples of an input lie on.

    Args:
        spec: the input.
        names: of its extents.
        symbol: that of the samples, where there is one.
        size: their number, where it is fixed and tells.
        any_number: whether an input takes any number of samples.
    """
    if not spec.shape:
        return None
    if size is not None:
        return spec.shape.index(size)
    if not any_number or (spec.shape[0] is None and symbol not in names):
        return 0
    if symbol is not None and symbol in names:
        axis = names.index(symbol)
        return 0 if spec.shape[0] == 1 and _likeness(symbol) < 2 else axis
    # A size on the first axis, where another input takes any number of samples: (2, any, width).
    free = [axis for axis, size in enumerate(spec.shape) if size is None]
    return free[0] if len(free) == 1 and spec.shape[0] != 1 else 0
