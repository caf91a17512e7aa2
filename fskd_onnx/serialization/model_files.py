"""Read, describe and write ONNX files; what is read is checked."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import google.protobuf.message
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import FskdError, ModelError
from fskd_onnx.passes.analysis.random_nodes import (
    bodies_of,
    find_random,
    find_training_dropouts,
)
from fskd_onnx.passes.errors import PassError
from fskd_onnx.serialization import external_data
from fskd_onnx.serialization.atomic_files import OutputFiles
from fskd_onnx.serialization.external_data import weight_files
from fskd_onnx.serialization.file_names import data_path, free_data_path, is_data_name
from fskd_onnx.serialization.input_files import read_model
from fskd_onnx.serialization.interface import check_interface
from fskd_onnx.serialization.model_check import check_texts, checked
from fskd_onnx.serialization.node_check import check_functions, check_linear_nodes
from fskd_onnx.serialization.onnx_errors import in_plain_words
from fskd_onnx.serialization.tensor_check import check_tensors

logger = logging.getLogger(__name__)

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)

ModelSource: TypeAlias = str | os.PathLike[str] | onnx.ModelProto
"""A model: a path, or the model itself."""


def source_name(source: ModelSource) -> str:
    """Return what to call a model in messages and reports."""
    if isinstance(source, onnx.ModelProto):
        return source.graph.name or "a model in memory"
    return os.fspath(source)


def check_sources(teacher: ModelSource, student: ModelSource) -> None:
    """Check that both models of a call are something that a model can be read from.

    Raises:
        ModelError: one is not.
    """
    check_source(teacher, "teacher")
    check_source(student, "student")


def check_source(source: ModelSource, role: str) -> None:
    """Check that a model of a call is something that a model can be read from.

    Args:
        source: of the model.
        role: what the model is in the call.

    Raises:
        ModelError: it is not.
    """
    path = source.__fspath__() if isinstance(source, os.PathLike) else source
    if not isinstance(path, str | onnx.ModelProto):
        raise ModelError(
            f"the {role} cannot be read from a {type(source).__name__}; give a path or an "
            "onnx.ModelProto"
        )


def load_model(source: ModelSource) -> onnx.ModelProto:
    """Read and check a model.

    Its external data is read as well, but for large weights that only the runtime needs, see
    ``fskd_onnx.serialization.external_data``.

    Args:
        source: a path, or a model, which is checked and not modified.

    Returns:
        The model; where it breaks the specification in a way that ONNX Runtime does not mind, a
        copy that is put right, see ``fskd_onnx.serialization.model_check``.

    Raises:
        ModelError: the file is missing, is no ONNX model, breaks the ONNX specification, or an
            output is random.
    """
    name = source_name(source)
    with errors_of(name):
        if isinstance(source, onnx.ModelProto):
            model = source
            _check_files(model, name)
        else:
            model = external_data.load(Path(source))
    with errors_of(name, model):
        if not model.HasField("graph"):
            raise ModelError(f"{name}: holds no graph; export the network again")
        check_texts(model)
        check_tensors(external_data.all_tensors(model.graph))
        check_functions(model)
        model = checked(model, name)
        check_interface(model, name)
        check_linear_nodes(model)
    _check_not_random(model, name)
    return model


@contextmanager
def errors_of(name: str, model: onnx.ModelProto | None = None) -> Iterator[None]:
    """Turn what libraries raise over a model in a ``with`` block into one sentence.

    Which of a dozen types protobuf, ONNX and NumPy raise over a malformed file says nothing to a
    user. Errors of this package pass, and those of its passes, which are no fault of the file.

    Args:
        name: what to call the model.
        model: the model, where it is read already.

    Raises:
        ModelError: of any other error.
    """
    try:
        yield
    except (FskdError, PassError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ModelError(
            f"{_culprit(error, name)}: there is no such file; check its name"
        ) from error
    except IsADirectoryError as error:
        raise ModelError(f"{_culprit(error, name)}: is a folder; give an ONNX file") from error
    except OSError as error:
        what = error.strerror or str(error)
        raise ModelError(f"{_culprit(error, name)}: cannot be read ({what})") from error
    except google.protobuf.message.DecodeError as error:
        raise ModelError(
            f"{name}: is not an ONNX file, or not all of one; copy it again, or export the network "
            "to ONNX"
        ) from error
    except Exception as error:
        what = in_plain_words(error, model)
        raise ModelError(f"{name}: is not a valid ONNX model: {what}; export it again") from error


def _culprit(error: OSError, name: str) -> str:
    """Return the file that an error is about: the model's, or one that it keeps weights in."""
    named = error.filename
    return os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else name


def save_model(
    model: onnx.ModelProto, path: str | os.PathLike[str], like: ModelSource | None = None
) -> None:
    """Write a model, whole or not at all.

    Args:
        model: the model.
        path: the file that is to appear.
        like: the file that the model came from. Weights that this file keeps in external files go
            to one file beside ``path``, named after it. So do large weights of a model of more than
            2 GB. Where a file of that name holds other bytes it is left alone, and the new name
            has a part of a checksum in it.

    Raises:
        FskdError: the file cannot be written.
    """
    read = () if like is None or isinstance(like, onnx.ModelProto) else weight_files(Path(like))
    with OutputFiles(read) as files:
        stage_model(files, model, path, like)


def stage_model(
    files: OutputFiles,
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    like: ModelSource | None = None,
) -> None:
    """Write a model as one of several output files that appear together.

    Args:
        files: these.
        model: see `save_model`.
        path: likewise.
        like: likewise.

    Raises:
        FskdError: the file cannot be written.
    """
    path = Path(path)
    outside = set() if like is None or isinstance(like, onnx.ModelProto) else _kept_outside(like)
    if external_data.exceeds_one_file(model):
        outside |= external_data.large_initializers(model)
    replaced = [file for file in weight_files(path) if is_data_name(file.name, path)]
    if not any(t.name in outside or uses_external_data(t) for t in model.graph.initializer):
        onnx.save_model(model, files.stage(path), format="protobuf")
        _remove_afterwards(files, replaced)
        return
    # Weights first: they appear before the model that refers to them.
    data, temporary = files.stage(data_path(path)), files.stage(path)

    def location() -> str:
        place = free_data_path(path, data, replaced)
        if place.exists():  # with the same bytes
            files.discard(data)
        else:
            files.restage(data, place)
        _remove_afterwards(files, [old for old in replaced if old.name != place.name])
        return place.name

    external_data.save(model, temporary, data, location, outside)


def _remove_afterwards(files: OutputFiles, old: Sequence[Path]) -> None:
    """Remove the weights of a model that is replaced, once it is."""
    for path in old:
        files.remove_afterwards(path)


def count_parameters(model: onnx.ModelProto) -> int:
    """Return the number of floating-point numbers that a model carries, biases included.

    Exporters write them as initializers, Constant nodes, or ConstantOfShape nodes with a stored
    shape; all of these count, also in the bodies of control flow nodes.
    """
    return _count_in(model.graph)


def _count_in(graph: onnx.GraphProto) -> int:
    nodes = graph.node
    constants = [a for node in nodes if node.op_type == "Constant" for a in node.attribute]
    tensors = [*graph.initializer, *(constant.t for constant in constants)]
    count: int = sum(math.prod(t.dims) for t in tensors if t.data_type in _FLOATS)
    count += sum(len(c.floats) + int(c.name == "value_float") for c in constants)
    shapes = {t.name: t for t in graph.initializer}
    filled = [n for n in nodes if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    for node in filled:
        if all(attribute.t.data_type in _FLOATS for attribute in node.attribute):
            count += math.prod(numpy_helper.to_array(shapes[node.input[0]]).tolist())
    return count + sum(_count_in(body) for node in nodes for body in bodies_of(node))


def _check_not_random(model: onnx.ModelProto, name: str) -> None:
    """Check that a model gives the same outputs for the same samples; note what is in training.

    Raises:
        ModelError: it does not.
    """
    for node, reason in find_random(model):
        raise ModelError(
            f"{name}: the output of its node '{node}' is not the same each time ({reason}); export "
            "the network in inference mode, or make what is random an input"
        )
    dropouts = find_training_dropouts(model)
    if dropouts:
        listed = ", ".join(f"'{node}'" for node in dropouts)
        logger.warning(
            "%s: %s in training mode; all runs here are inference, but a session of the file "
            "drops values at random: export the network in inference mode",
            name,
            f"its Dropout {listed} is" if len(dropouts) == 1 else f"its Dropouts {listed} are",
        )


def _check_files(model: onnx.ModelProto, name: str) -> None:
    """Check that the files are there in which a model that came from none keeps weights.

    Raises:
        ModelError: they are not.
    """
    for tensor in external_data.all_tensors(model.graph):
        if uses_external_data(tensor) and not external_data.data_file(tensor).is_file():
            raise ModelError(
                f"{name}: keeps '{tensor.name}' in a file, and a model in memory does not say in "
                "which folder; give the path of the model, or load it with its external data"
            )


def _kept_outside(path: str | os.PathLike[str]) -> set[str]:
    """Return the names of the initializers that a file keeps in other files."""
    return {
        tensor.name for tensor in read_model(path).graph.initializer if uses_external_data(tensor)
    }
