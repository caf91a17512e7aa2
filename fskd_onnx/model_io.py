"""Read, check, describe and write ONNX files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TypeAlias

import google.protobuf.message
import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import ModelError
from fskd_onnx.files import atomic_path
from fskd_onnx.samples import InputSpec

ModelSource: TypeAlias = str | os.PathLike[str] | onnx.ModelProto


def source_name(source: ModelSource) -> str:
    """Return what to call a model in messages and reports."""
    if isinstance(source, onnx.ModelProto):
        return source.graph.name or "a model in memory"
    return os.fspath(source)


def load_model(source: ModelSource) -> onnx.ModelProto:
    """Read a model with its external data, and check it.

    Args:
        source: a path, or a model, which is checked and returned as it is.

    Raises:
        ModelError: the file is missing, is no ONNX model, or breaks the ONNX specification.
    """
    name = source_name(source)
    try:
        model = source if isinstance(source, onnx.ModelProto) else onnx.load(os.fspath(source))
        # A file is checked by its path: a model with external data may exceed protobuf's 2 GB.
        onnx.checker.check_model(
            model if isinstance(source, onnx.ModelProto) else os.fspath(source), full_check=True
        )
    except FileNotFoundError as error:
        raise ModelError(f"{name}: there is no such file ({error.filename or error})") from error
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({error.strerror or error})") from error
    except google.protobuf.message.DecodeError as error:
        raise ModelError(
            f"{name}: is not an ONNX file; export the network to ONNX first"
        ) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{name}: is not a valid ONNX model: {first}; export it again") from error
    return model


def save_model(
    model: onnx.ModelProto, path: str | os.PathLike[str], like: ModelSource | None = None
) -> None:
    """Write a model, whole or not at all.

    Args:
        model: the model.
        path: where to.
        like: the file that the model came from; where it keeps weights outside, so does the new
            one, in one file beside it, named after it.

    Raises:
        FskdError: the file cannot be written.
    """
    path = Path(path)
    if like is None or isinstance(like, onnx.ModelProto) or not _has_external_data(like):
        with atomic_path(path) as temporary:
            onnx.save_model(model, temporary)
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    data = path.with_name(path.name + ".data")
    with (
        atomic_path(path) as temporary,
        atomic_path(data) as temporary_data,
        tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".") as folder,
    ):
        whole = Path(folder) / path.name
        onnx.save_model(copy, whole, save_as_external_data=True, location=data.name)
        whole.replace(temporary)
        whole.with_name(data.name).replace(temporary_data)


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Describe the inputs that have to be fed: those without an initializer."""
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [_spec(value) for value in model.graph.input if value.name not in given]


def output_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the outputs, in order."""
    return [value.name for value in model.graph.output]


def fixed_batch_size(specs: list[InputSpec]) -> int | None:
    """Return the batch size that the inputs of a model insist on, if they do."""
    sizes = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    return max(sizes, default=None)


def count_parameters(model: onnx.ModelProto) -> int:
    """Count the numbers in floating-point initializers, biases and statistics included."""
    floats = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    )
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type in floats
    )


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in tensor.shape.dim
    )
    return InputSpec(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def _has_external_data(path: str | os.PathLike[str]) -> bool:
    model = onnx.load(os.fspath(path), load_external_data=False)
    return any(uses_external_data(tensor) for tensor in model.graph.initializer)
