"""Weights in files of their own: what is read of them, what stays there, how they reach a runtime.

A model of more than 2 GB does not fit into one protobuf, so its weights lie in files beside it.
Those that a fit computes with are read. Large ones that only the runtime needs (the table of an
embedding) stay where they are, and the runtime maps them into memory::

    model.onnx ──▶ ModelProto ──▶ passes ──▶ ModelProto ──▶ session ◀── maps ── model.data
                                                        └─▶ fused.onnx, fused.onnx.data ◀── copied

In memory, the location of such a tensor counts from ``ROOT``, wherever its model came from.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_tensor,
    uses_external_data,
)

from fskd_onnx.errors import ModelError
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.fold_constants import NEVER_FOLDED, SCALES
from fskd_onnx.passes.separate_weights import Separated, separate, without_weights

ROOT = Path(Path.cwd().anchor)
"""Folder that locations of tensors outside count from, in memory."""

# Protobuf writes 2 GB; the rest is for what is not a weight.
_LARGEST_MODEL = 2**31 - 2**26
# Smaller ones are not worth a file.
_LARGE = 2**24
# Offsets at which every system can map a file.
_ALIGNMENT = 2**16
_CHUNK = 2**24


def load(path: Path) -> onnx.ModelProto:
    """Read a model, and those of its weights that are small or that a pass may read.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    model: onnx.ModelProto = onnx.load(os.fspath(path), format="protobuf", load_external_data=False)
    # Not resolved: behind a link to the model, the files beside it may have other names.
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100
    outside = [tensor for tensor in tensors(model.graph) if uses_external_data(tensor)]
    read = _read_by_passes(model.graph) if outside else set()
    for tensor in outside:
        info = ExternalDataInfo(tensor)
        file = folder / info.location
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), info.location)
        length = info.length or file.stat().st_size - (info.offset or 0)
        if length < _LARGE or tensor.name in read or folder.anchor != ROOT.anchor:
            load_external_data_for_tensor(tensor, os.fspath(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        else:
            location = file.relative_to(ROOT).as_posix()
            _point(tensor, location, info.offset or 0, length)
    return model


def save(model: onnx.ModelProto, path: Path, data: Path, location: str, names: set[str]) -> None:
    """Write a model with some of its weights in a file of their own.

    Args:
        model: the model; it is not modified, and its weights are not copied in memory.
        path: file of the model, to be written.
        data: file of the weights, to be written.
        location: name of the file of the weights, as the model is to state it.
        names: the initializers to keep there, if they are stored as bytes; those that are outside
            already go there as well.

    Raises:
        ModelError: a file that weights lie in has been cut short.
        OSError: a file cannot be read or written.
    """
    with data.open("wb") as stream:
        light = without_weights(model)
        for tensor in model.graph.initializer:
            kept = light.graph.initializer.add()
            inside = tensor.name not in names or not tensor.HasField("raw_data")
            if inside and not uses_external_data(tensor):
                kept.CopyFrom(tensor)
                continue
            _describe(tensor, kept)
            offset = math.ceil(stream.tell() / _ALIGNMENT) * _ALIGNMENT
            stream.seek(offset)
            _write(tensor, stream)
            _point(kept, location, offset, size(tensor))
        stream.truncate(stream.tell())
    path.write_bytes(light.SerializeToString())


def too_large(model: onnx.ModelProto) -> bool:
    """Whether a model does not fit into one file.

    Protobuf cannot tell the size of such a model, so its weights are counted.
    """
    inside = (tensor for tensor in model.graph.initializer if not uses_external_data(tensor))
    return sum(map(size, inside)) > _LARGEST_MODEL


def large_names(model: onnx.ModelProto) -> set[str]:
    """Return the names of the initializers that are worth a file of their own."""
    return {tensor.name for tensor in model.graph.initializer if size(tensor) >= _LARGE}


def stand_in(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model to be checked: what is large or outside is an input of the same type."""
    light = without_weights(model)
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if size(tensor) < _LARGE and not uses_external_data(tensor):
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in listed:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def apart(
    model: onnx.ModelProto,
) -> tuple[Separated, tempfile.TemporaryDirectory[str] | None]:
    """Separate a model from its weights, for a session that reads external data from ``ROOT``.

    Of a model that is too large, these go to a file first: from memory, protobuf would give them
    out as a copy and the runtime would make another; of a file it maps what it needs.

    Returns:
        The model, and a folder that has to exist as long as the session, if it was needed.
    """
    if not too_large(model):
        return separate(model), None
    folder = tempfile.TemporaryDirectory(prefix="fskd-onnx-")
    path, data = Path(folder.name) / "model", Path(folder.name).resolve() / "weights"
    save(model, path, data, data.relative_to(ROOT).as_posix(), large_names(model))
    return separate(onnx.load(path, format="protobuf", load_external_data=False)), folder


def size(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a tensor stores outside, or in one piece inside."""
    if not uses_external_data(tensor):
        return len(tensor.raw_data)
    info = ExternalDataInfo(tensor)
    to_end = file_of(tensor).stat().st_size - (info.offset or 0)
    return int(info.length or to_end)


def file_of(tensor: onnx.TensorProto) -> Path:
    """Return the file that a tensor outside lies in."""
    return ROOT / str(ExternalDataInfo(tensor).location)


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph holds, in nodes and their bodies as well."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        yield from (tensor for body in (attribute.g, *attribute.graphs) for tensor in tensors(body))


def _read_by_passes(graph: onnx.GraphProto) -> set[str]:
    """Return the names of what a pass may read: parameters, and what they may be computed from."""
    constant = {tensor.name for tensor in graph.initializer}
    read = {tensor.name for tensor in tensors(graph)} - constant
    for node in graph.node:
        inputs = [name for name in node.input if name]
        folds = node.op_type not in NEVER_FOLDED and all(name in constant for name in inputs)
        if folds:
            constant.update(node.output)
        if folds or node.op_type in (*LINEAR_OPERATORS, *SCALES, "BatchNormalization"):
            read.update(inputs)
    return read


def _point(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """State where a tensor lies."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _describe(tensor: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy name, type, shape and remarks, not the values."""
    target.name, target.data_type, target.doc_string = (
        tensor.name,
        tensor.data_type,
        tensor.doc_string,
    )
    target.dims.extend(tensor.dims)
    target.metadata_props.extend(tensor.metadata_props)


def _write(tensor: onnx.TensorProto, stream: BinaryIO) -> None:
    """Append a tensor's values to a file; of one that is outside, piece by piece.

    Zeros are skipped over, so that a file with holes stays one.
    """
    if not uses_external_data(tensor):
        stream.write(tensor.raw_data)
        return
    file, left = file_of(tensor), size(tensor)
    with file.open("rb") as source:
        source.seek(ExternalDataInfo(tensor).offset or 0)
        while left and (piece := source.read(min(left, _CHUNK))):
            if np.frombuffer(piece, np.uint8).any():
                stream.write(piece)
            else:
                stream.seek(len(piece), os.SEEK_CUR)
            left -= len(piece)
    if left:
        raise ModelError(f"{file}: is shorter than the weights in it; copy the model again")
