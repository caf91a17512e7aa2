"""External data: weights in files beside the model.

A model of more than 2 GB does not fit into one protobuf, so its weights lie in files of their own.
Weights that a pass may read, and small ones, are loaded. Large ones that only the runtime needs
(the table of an embedding) stay where they are, and the runtime maps them into memory::

    model.onnx --> ModelProto --> passes --> ModelProto --> session <-- maps -- model.data
                                                 |
                                                 +--> fused.onnx, fused.onnx.data <-- copied

In memory, the location of a tensor that stays outside is relative to ``ROOT``, wherever its model
came from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import google.protobuf.message
import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from fskd_onnx.errors import ModelError
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.operators import find_operator
from fskd_onnx.passes.separate_weights import Separated, separate, without_weights
from fskd_onnx.serialization.input_files import check_regular, open_regular, read_model
from fskd_onnx.serialization.temporary import TemporaryFolder
from fskd_onnx.serialization.tensor_check import stated_range

ROOT = Path(Path.cwd().anchor)
"""Folder that locations of external tensors are relative to, in memory."""

# In bytes. Protobuf writes 2 GB; the difference is for all that is not a weight.
_LARGEST_FILE = 2**31 - 2**26
# In bytes; smaller tensors are not worth a file.
_LARGE_TENSOR = 2**24
# Offsets at which every system can map a file.
_ALIGNMENT = 2**16
_PIECE = 2**24


def load(path: Path) -> onnx.ModelProto:
    """Read a model, and those of its weights that are small or that a pass may read.

    Args:
        path: file of the model.

    Returns:
        The model; its other weights stay in their files.

    Raises:
        ModelError: a tensor is in a file that is too short, or not beside the model, or the model
            says what cannot be of its place there.
        OSError: a file is missing or cannot be read.
    """
    model = read_model(path)
    outside = [tensor for tensor in all_tensors(model.graph) if uses_external_data(tensor)]
    read = _read_by_passes(model.graph) if outside else set()
    for tensor in outside:
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        file = _file_beside(path, tensor.name, location)
        shown = str(path.parent / location)
        there = check_regular(file, shown).st_size
        offset, length = stated_range(tensor, str(path), shown, there)
        if length < _LARGE_TENSOR or tensor.name in read or file.anchor != ROOT.anchor:
            with open_regular(file) as stream:
                stream.seek(offset)
                tensor.raw_data = _read(stream, length, f"{shown}: '{tensor.name}'")
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        else:
            _set_location(tensor, file.relative_to(ROOT).as_posix(), offset, length)
    return model


def _read(stream: BinaryIO, length: int, name: str) -> bytes:
    try:
        return stream.read(length)
    except (MemoryError, OverflowError) as error:
        raise ModelError(
            f"{name} takes {length} bytes, more than the machine has memory for"
        ) from error


def _file_beside(model: Path, tensor: str, location: str) -> Path:
    """Return the file that a model keeps a tensor in, with no symbolic link on the way.

    Caches of model hubs keep model and data as links to files of other names: the location counts
    from the folder of the model as it was named, and where there is no such file, from the folder
    that the model itself lies in. ONNX and ONNX Runtime refuse links, so the file itself is what
    they get. A location alone, without a link, never leads out of the folder.

    Raises:
        ModelError: the location leads out of the folder, or there is no such file.
    """
    inside = Path(os.path.normpath(location))
    if inside.is_absolute() or inside.drive or ".." in inside.parts:
        raise ModelError(
            f"{model}: keeps '{tensor}' in '{location}', which is not in its own folder; move the "
            "file there and save the model with that location"
        )
    named = Path(os.path.abspath(model)).parent  # noqa: PTH100
    for folder in (named, model.resolve().parent):
        # What is no regular file is refused by its name where it is opened.
        file = os.fspath(folder / inside)
        if os.path.exists(file) and not os.path.isdir(file):  # noqa: PTH110, PTH112, any text goes
            return Path(file).resolve()
    raise ModelError(
        f"{model}: keeps '{tensor}' in '{location}', and there is no such file beside it; copy it "
        "there, or export the model again"
    )


def save(
    model: onnx.ModelProto, path: Path, data: Path, location: Callable[[], str], names: set[str]
) -> None:
    """Write a model with some of its weights in a file beside it.

    Args:
        model: the model; it is not modified, and its weights are not copied in memory.
        path: file of the model, to be written.
        data: file of the weights, to be written first.
        location: gives the name of the file of the weights, as the model states it, once that is
            written.
        names: initializers to keep there, if they are stored as bytes; those that are external
            already go there as well.

    Raises:
        ModelError: a file of weights is shorter than the weights in it.
        OSError: a file cannot be read or written.
    """
    light = without_weights(model)
    moved: list[tuple[onnx.TensorProto, int, int]] = []
    with data.open("wb") as stream:
        for tensor in model.graph.initializer:
            kept = light.graph.initializer.add()
            inside = tensor.name not in names or not tensor.HasField("raw_data")
            if inside and not uses_external_data(tensor):
                kept.CopyFrom(tensor)
                continue
            _copy_description(tensor, kept)
            offset = math.ceil(stream.tell() / _ALIGNMENT) * _ALIGNMENT
            stream.seek(offset)
            _append_values(tensor, stream)
            moved.append((kept, offset, stored_size(tensor)))
        stream.truncate(stream.tell())
    name = location()
    for kept, offset, size in moved:
        _set_location(kept, name, offset, size)
    path.write_bytes(light.SerializeToString())


def weight_files(path: Path) -> list[Path]:
    """Return the files in which a model keeps weights; none of a file that is no model."""
    try:
        model = read_model(path)
    except (OSError, ModelError, google.protobuf.message.DecodeError):
        return []
    tensors = filter(uses_external_data, all_tensors(model.graph))
    stated = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
    names = {name for name in stated if name and "\0" not in name}
    return [path.parent / name for name in sorted(names)]


def exceeds_one_file(model: onnx.ModelProto) -> bool:
    """Return whether a model does not fit into one file, by the size of its weights.

    Protobuf cannot tell the size of such a model.
    """
    inside = (tensor for tensor in model.graph.initializer if not uses_external_data(tensor))
    return sum(map(stored_size, inside)) > _LARGEST_FILE


def large_initializers(model: onnx.ModelProto) -> set[str]:
    """Return the names of the initializers that are worth a file."""
    return {
        tensor.name for tensor in model.graph.initializer if stored_size(tensor) >= _LARGE_TENSOR
    }


def model_to_check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that checks alike: large and external tensors are inputs of the same type.

    So are sparse ones, in full: nodes read them so, and shape inference takes them for no tensors.
    """
    light = without_weights(model)
    del light.graph.sparse_initializer[:]
    listed = {value.name for value in model.graph.input}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(s.values.name, s.values.data_type, s.dims)
        for s in model.graph.sparse_initializer
        if s.values.name not in listed
    )
    for tensor in model.graph.initializer:
        if stored_size(tensor) < _LARGE_TENSOR and not uses_external_data(tensor):
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in listed:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def separate_for_session(
    model: onnx.ModelProto,
) -> tuple[Separated, TemporaryFolder | None]:
    """Separate a model from its weights, for a session that reads external data from ``ROOT``.

    Weights of a model that exceeds one file go to a temporary file first. From memory, protobuf
    returns a copy of them and the runtime makes another; of a file the runtime maps what it needs.

    Args:
        model: the model; it is not modified.

    Returns:
        The model and its weights; and the folder of the temporary file, which must exist as long as
        the session, or None.

    Raises:
        ModelError: a file of weights is shorter than the weights in it.
        OSError: a file cannot be read or written.
    """
    if not exceeds_one_file(model):
        return separate(model), None
    folder = TemporaryFolder()
    path, data = folder.path / "model", folder.path.resolve() / "weights"
    location = data.relative_to(ROOT).as_posix()
    save(model, path, data, lambda: location, large_initializers(model))
    return separate(onnx.load(path, format="protobuf", load_external_data=False)), folder


def stored_size(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a tensor stores in a file, or as ``raw_data`` in the model."""
    if not uses_external_data(tensor):
        return len(tensor.raw_data)
    info = ExternalDataInfo(tensor)
    to_end = data_file(tensor).stat().st_size - (info.offset or 0)
    return int(info.length or to_end)


def data_file(tensor: onnx.TensorProto) -> Path:
    """Return the file that an external tensor lies in."""
    return ROOT / str(ExternalDataInfo(tensor).location)


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a graph holds, those of attributes and bodies included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for body in (attribute.g, *attribute.graphs):
            yield from all_tensors(body)


def _read_by_passes(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that a pass may read: parameters, and what they are computed from."""
    constant = {tensor.name for tensor in graph.initializer}
    read = {tensor.name for tensor in all_tensors(graph)} - constant
    for node in graph.node:
        inputs = [name for name in node.input if name]
        operator = find_operator(node.op_type, node.domain)
        folds = operator.folds and all(name in constant for name in inputs)
        if folds:
            constant.update(node.output)
        if folds or operator.scales or node.op_type in (*LINEAR_OPERATORS, "BatchNormalization"):
            read.update(inputs)
    return read


def _set_location(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor external: state the file, and the bytes in it."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _copy_description(tensor: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """Copy all of a tensor but its values."""
    target.name, target.data_type, target.doc_string = (
        tensor.name,
        tensor.data_type,
        tensor.doc_string,
    )
    target.dims.extend(tensor.dims)
    target.metadata_props.extend(tensor.metadata_props)


def _append_values(tensor: onnx.TensorProto, stream: BinaryIO) -> None:
    """Append a tensor's values to a file, those of an external one piece by piece.

    Pieces of zeros are skipped, so that holes of a sparse file stay holes.

    Raises:
        ModelError: the tensor's file is shorter than the tensor.
    """
    if not uses_external_data(tensor):
        stream.write(tensor.raw_data)
        return
    file, left = data_file(tensor), stored_size(tensor)
    with file.open("rb") as source:
        source.seek(ExternalDataInfo(tensor).offset or 0)
        while left and (piece := source.read(min(left, _PIECE))):
            if np.frombuffer(piece, np.uint8).any():
                stream.write(piece)
            else:
                stream.seek(len(piece), os.SEEK_CUR)
            left -= len(piece)
    if left:
        raise ModelError(f"{file}: is shorter than the weights in it; copy the model again")
