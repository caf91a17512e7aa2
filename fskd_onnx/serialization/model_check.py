"""Models are checked as ONNX states it, and what ONNX Runtime does not mind is put right.

ONNX Runtime runs models that the checker of ONNX refuses. What they break is no part of what they
compute: shapes that a pruning tool left as they were in the teacher, nodes in another order, a list
that lacks an entry. Each of these is put right, with a note; all else is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx.checker import ValidationError
from onnx.external_data_helper import uses_external_data
from onnx.shape_inference import InferenceError

from fskd_onnx.passes.analysis.random_nodes import bodies_of
from fskd_onnx.passes.base import IR_OF_FREE_INITIALIZERS
from fskd_onnx.serialization.external_data import exceeds_one_file, model_to_check

logger = logging.getLogger(__name__)

# Domains whose operators ONNX Runtime knows without being told of them.
_OF_ONNX_RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


def check_texts(message: Message) -> None:
    """Check that all texts of a model, names among them, are UTF-8; others come as bytes.

    Raises:
        ValueError: one is not; a clause about the model.
    """
    for field, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if field.type == FieldDescriptor.TYPE_STRING:
            wrong = (
                value
                if isinstance(value, bytes)
                else next((text for text in values if isinstance(text, bytes)), None)
            )
            if wrong is not None:
                raise ValueError(f"its {field.name} {wrong!r} is no text in UTF-8")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in values:
                check_texts(part)


def checked(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Check a model; put right what ONNX Runtime does not mind.

    Args:
        model: any model; it is not modified.
        name: what to call it in a note.

    Returns:
        The model itself, or a copy of it that is put right.

    Raises:
        ValidationError: it breaks the ONNX specification.
        InferenceError: its shapes or types contradict each other.
    """
    try:
        _check(model)
    except (ValidationError, InferenceError):
        repaired = onnx.ModelProto()
        repaired.CopyFrom(model)
        notes = _put_lists_right(repaired)
        if not _inferable(repaired):
            notes += _drop_stale_shapes(repaired)
        if not _inferable(repaired):
            notes += _drop_all_shapes(repaired)
        _check(repaired)
        for note in notes:
            logger.warning("%s: %s", name, note)
        return repaired
    return model


def _check(model: onnx.ModelProto) -> None:
    """Check a model, and its types and shapes, without those of its weights that are large."""
    for sparse in model.graph.sparse_initializer:
        onnx.checker.check_sparse_tensor(sparse)
    onnx.checker.check_model(_light(model), full_check=True)


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what is checked of a model: the checker reads neither files nor sparse tensors."""
    graph = model.graph
    whole = not any(map(uses_external_data, graph.initializer)) and not graph.sparse_initializer
    return model if whole and not exceeds_one_file(model) else model_to_check(model)


def _inferable(model: onnx.ModelProto) -> bool:
    try:
        _check(model)
    except InferenceError:
        return False
    except ValidationError:
        return True  # said by the check that follows
    return True


def _put_lists_right(model: onnx.ModelProto) -> list[str]:
    """Name the graph, list what it lacks, sort its nodes; return a note on each."""
    notes, graph = [], model.graph
    if not graph.name:
        graph.name = "graph"
        notes.append("its graph has no name, and is called 'graph'")
    known = {opset.domain for opset in model.opset_import}
    known |= {function.domain for function in model.functions}
    for domain in dict.fromkeys(node.domain for node in _all_nodes(graph)):
        if domain in _OF_ONNX_RUNTIME and domain not in known:
            model.opset_import.add(domain=domain, version=1)
            notes.append(f"it imports no operators of '{domain}'; version 1 was added")
    twice = _drop_equal_initializers(graph)
    if twice:
        notes.append(f"it holds the initializer '{twice[0]}' more than once; one was kept")
    if model.ir_version < IR_OF_FREE_INITIALIZERS:
        inputs = {value.name for value in graph.input}
        unlisted = [t for t in graph.initializer if t.name not in inputs]
        graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in unlisted
        )
        if unlisted:
            notes.append(
                f"its initializer '{unlisted[0].name}' is not an input of the graph, as its version"
                " of the format asks for, and became one"
            )
    if _sort(graph):
        notes.append("its nodes are not in topological order, and were sorted")
    return notes


def _drop_equal_initializers(graph: onnx.GraphProto) -> list[str]:
    """Keep one of each initializer that is there twice with the same values; return their names."""
    first: dict[str, onnx.TensorProto] = {}
    dropped = [t for t in graph.initializer if first.setdefault(t.name, t) is not t]
    if any(tensor != first[tensor.name] for tensor in dropped):
        return []
    for index in reversed(range(len(graph.initializer))):
        if first[graph.initializer[index].name] is not graph.initializer[index]:
            del graph.initializer[index]
    return [tensor.name for tensor in first.values()] if dropped else []


def _drop_stale_shapes(model: onnx.ModelProto) -> list[str]:
    """Drop the value_info, and correct the outputs, that contradict what follows from the inputs.

    Returns:
        A note where there were any.
    """
    blank = model_to_check(model)  # a copy
    _drop_value_info(blank.graph)
    for output in blank.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(blank, data_prop=True).graph
    except InferenceError:
        return []
    known = {v.name: v.type for v in (*graph.input, *graph.value_info, *graph.output)}
    stale = [v for v in model.graph.value_info if _contradicts(v.type, known.get(v.name))]
    notes = [_note_on([value.name for value in stale])] if stale else []
    fresh = [v for v in model.graph.value_info if v.name not in {value.name for value in stale}]
    del model.graph.value_info[:]
    model.graph.value_info.extend(fresh)
    for output in model.graph.output:
        true, stated = known.get(output.name, output.type), output.type
        same_kind = stated.tensor_type.elem_type == true.tensor_type.elem_type
        if same_kind and _contradicts(stated, true):
            stated.CopyFrom(_merged(stated, true))
            notes.append(f"the shape that it states of its output '{output.name}' is corrected")
    return notes


def _drop_all_shapes(model: onnx.ModelProto) -> list[str]:
    """Drop all value_info, that of bodies too; return a note where there was some."""
    names = _drop_value_info(model.graph)
    return [_note_on(names)] if names else []


def _note_on(names: Sequence[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"its value_info of {listed} does not describe these tensors, and was dropped"


def _drop_value_info(graph: onnx.GraphProto) -> list[str]:
    names = [value.name for value in graph.value_info]
    del graph.value_info[:]
    for node in graph.node:
        for body in bodies_of(node):
            names += _drop_value_info(body)
    return names


def _contradicts(stated: onnx.TypeProto, true: onnx.TypeProto | None) -> bool:
    """Whether a type is another one than what was inferred, where both say something."""
    if true is None or not (stated.HasField("tensor_type") and true.HasField("tensor_type")):
        return False
    one, other = stated.tensor_type, true.tensor_type
    if one.elem_type and other.elem_type and one.elem_type != other.elem_type:
        return True
    if not (one.HasField("shape") and other.HasField("shape")):
        return False
    if len(one.shape.dim) != len(other.shape.dim):
        return True
    return any(
        a.HasField("dim_value") and b.HasField("dim_value") and a.dim_value != b.dim_value
        for a, b in zip(one.shape.dim, other.shape.dim, strict=True)
    )


def _merged(stated: onnx.TypeProto, true: onnx.TypeProto) -> onnx.TypeProto:
    """Return a type with the extents that were inferred, and the stated ones where none was."""
    merged = onnx.TypeProto()
    merged.CopyFrom(true)
    dims = merged.tensor_type.shape.dim
    if len(dims) == len(stated.tensor_type.shape.dim):
        for dim, own in zip(dims, stated.tensor_type.shape.dim, strict=True):
            if not dim.HasField("dim_value"):
                dim.CopyFrom(own)
    return merged


def _sort(graph: onnx.GraphProto) -> bool:
    """Bring nodes into topological order, those of bodies too; return whether that changed it.

    Nodes keep their order as far as it is topological.
    """
    changed = [_sort(body) for node in graph.node for body in bodies_of(node)]
    order = list(_topological([(set(node.output), set(_reads(node))) for node in graph.node]))
    if order == sorted(order):
        return any(changed)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)
    return True


def _topological(nodes: Sequence[tuple[set[str], set[str]]]) -> Iterator[int]:
    """Yield the numbers of nodes, (written, read) each, so that what is read is written before."""
    writer: Mapping[str, int] = {
        name: index for index, (written, _) in enumerate(nodes) for name in written if name
    }
    needed = [sorted({writer[name] for name in read if name in writer}) for _, read in nodes]
    state = [0] * len(nodes)  # 1: waits for what it reads, 2: done
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            waits = [other for other in needed[index] if state[other] == 0]
            if state[index] == 0 and waits:
                state[index] = 1
                stack += reversed(waits)
                continue
            stack.pop()
            if state[index] != 2:
                state[index] = 2
                yield index


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for body in bodies_of(node):
        yield from (output.name for output in body.output)
        for inner in body.node:
            yield from _reads(inner)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in bodies_of(node):
            yield from _all_nodes(body)
