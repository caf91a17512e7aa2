"""What every pass is: a small class that rewrites one graph and says whether it did.

A pass has two entrances. ``apply`` works in place on an onnx-graphsurgeon graph, so that several
passes can follow each other without a round trip through protobuf. Calling the pass works on a
``ModelProto`` and returns a new one: the given model is never modified, and everything that the
pass did not touch survives as it was, including what a graphsurgeon export drops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableSequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

# Its warnings (nodes that share a name, an absent package for colours) ask nothing of our user.
G_LOGGER.severity = G_LOGGER.ERROR

# Before this version of the format, every initializer had to be an input of the graph as well.
IR_OF_FREE_INITIALIZERS = 4


@dataclass(frozen=True)
class PassResult:
    """What a pass returns.

    Attributes:
        model: the rewritten model.
        changed: whether anything differs from the model that was given.
        notes: one sentence for each thing done or refused.
    """

    model: onnx.ModelProto
    changed: bool
    notes: tuple[str, ...]


class Pass(ABC):
    """A graph rewrite with a contract; a subclass states it in four parts.

    1. Its docstring says what is rewritten, what the function of the network becomes (the algebra
       stands in the module's docstring) and which nodes stay as they are.
    2. ``requires`` raises ``PreconditionError`` before anything is changed.
    3. ``apply`` rewrites in place and returns one note per change. Nothing changed, no note; so a
       second run returns none.
    4. ``ensures`` raises ``PostconditionError`` if a promise is broken, which is a defect.

    What is to be rewritten, and with what, are fields of a frozen dataclass; no state is kept
    between calls. Questions about a graph are answered by ``passes/analysis``, steps of rewriting
    by ``passes/edit.py`` and ``passes/write_weights.py``. A pass has a module and tests of its own
    and is exported by ``fskd_onnx.passes``::

        class RemoveIdentity(Pass):
            '''Let readers of an Identity read its input. The function stays.

            An Identity stays whose output is one of the graph's.
            '''

            def apply(self, graph: gs.Graph) -> list[str]:
                found = [n for n in graph.nodes if is_standard(n, "Identity")]
                gone = [n for n in found if not is_output(graph, n.outputs[0])]
                notes = [f"'{node_name(n)}' removed" for n in gone]
                for node in gone:
                    replace_reads(node.outputs[0], node.inputs[0])
                remove(graph, *gone)
                return notes

        result = RemoveIdentity()(model)        # model in, model out
        notes = RemoveIdentity().run(graph)     # in place
    """

    def requires(self, graph: gs.Graph) -> None:
        """Raise ``PreconditionError`` where ``apply`` would have to guess."""

    @abstractmethod
    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite the graph in place; return one note per change, none if nothing changed."""

    def ensures(self, graph: gs.Graph) -> None:
        """Raise ``PostconditionError`` if the rewritten graph is not what was promised."""

    def run(self, graph: gs.Graph) -> list[str]:
        """Check, rewrite in place, check again; return the notes of ``apply``."""
        self.requires(graph)
        notes = self.apply(graph)
        self.ensures(graph)
        return notes

    def __call__(self, model: onnx.ModelProto) -> PassResult:
        """Run on a copy of the model.

        Raises:
            PreconditionError: the model is not what the pass requires.
            PostconditionError: the pass is defective.
        """
        graph = gs.import_onnx(model)
        notes = self.run(graph)
        if not notes:
            return PassResult(model, changed=False, notes=())
        return PassResult(export(graph, like=model), changed=True, notes=tuple(notes))


def export(graph: gs.Graph, like: onnx.ModelProto) -> onnx.ModelProto:
    """Export a rewritten graph with everything of its origin that the rewrite did not touch.

    A graphsurgeon export alone loses metadata, doc strings, quantization annotations, inputs that
    have an initializer, and attributes of kinds that it does not know. So the original is the
    default here, field by field, and the graph only supplies what differs.

    An initializer that is a graph input too (old files list them all) counts as the constant that
    it is by default: it keeps its input as long as a node reads it.

    Args:
        graph: the rewritten graph, imported from ``like``.
        like: the model that the graph came from.

    Returns:
        A new model; ``like`` is not modified.
    """
    model = onnx.ModelProto()
    _copy_fields(like, model, except_for={"graph"})
    rebuilt = {"node", "initializer", "input", "value_info", "quantization_annotation"}
    _copy_fields(like.graph, model.graph, except_for=rebuilt)

    origins = {key: node for node in like.graph.node for key in _identities(node)}
    for node in graph.nodes:
        model.graph.node.append(_export_node(node, origins))

    tensors = graph.tensors()
    constants = {t.name: t for t in tensors.values() if isinstance(t, gs.Constant)}
    for tensor in like.graph.sparse_initializer:
        constants.pop(tensor.values.name, None)  # no pass rewrites these
    dropped = set(_names_read(like.graph)) - set(_names_read(model.graph))
    given = {tensor.name for tensor in like.graph.initializer}
    for tensor in like.graph.initializer:
        if tensor.name not in dropped:
            constant = constants.get(tensor.name)
            now = tensor if constant is None else OnnxExporter.export_tensor_proto(constant)
            model.graph.initializer.append(tensor if same_values(now, tensor) else now)
    new = [OnnxExporter.export_tensor_proto(t) for t in constants.values() if t.name not in given]
    model.graph.initializer.extend(new)
    model.graph.input.extend(
        _restated(value, tensors.get(value.name) if value.name in given else None)
        for value in like.graph.input
        if value.name not in dropped & given
    )
    if like.ir_version < IR_OF_FREE_INITIALIZERS:
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in new
        )

    alive = {name for node in model.graph.node for name in node.output}
    alive |= {tensor.name for tensor in model.graph.initializer}
    alive |= {value.name for value in model.graph.input}
    model.graph.value_info.extend(
        _restated(value, tensors.get(value.name))
        for value in like.graph.value_info
        if value.name in alive
    )
    model.graph.quantization_annotation.extend(
        a for a in like.graph.quantization_annotation if a.tensor_name in alive
    )
    return model


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto,
    target: onnx.ModelProto | onnx.GraphProto,
    except_for: set[str],
) -> None:
    for field, value in source.ListFields():
        if field.name in except_for:
            continue
        if isinstance(value, MutableSequence):
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _restated(value: onnx.ValueInfoProto, tensor: gs.Tensor | None) -> onnx.ValueInfoProto:
    """Return the type of a tensor with the extents that a pass has given it."""
    dims = value.type.tensor_type.shape.dim
    extents = [] if tensor is None or tensor.shape is None else list(tensor.shape)
    changed = [
        (axis, extent)
        for axis, (dim, extent) in enumerate(zip(dims, extents, strict=False))
        if isinstance(extent, int) and dim.HasField("dim_value") and dim.dim_value != extent
    ]
    if not changed:
        return value
    restated = onnx.ValueInfoProto()
    restated.CopyFrom(value)
    for axis, extent in changed:
        restated.type.tensor_type.shape.dim[axis].dim_value = extent
    return restated


def _identities(node: onnx.NodeProto) -> Iterator[tuple[str, ...]]:
    """Yield what tells a node from others while it is rewritten: what it writes, what it reads.

    Its name alone does not, since names are optional and may repeat.
    """
    yield "writes", node.op_type, node.name, *node.output[:1]
    yield "reads", node.op_type, node.name, *node.input[:2]


def _export_node(
    node: gs.Node, origins: Mapping[tuple[str, ...], onnx.NodeProto]
) -> onnx.NodeProto:
    """Return a node as it is now, with what no pass changes taken from its origin."""
    written = onnx.helper.make_node(
        node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], node.name
    )
    found = (origins.get(key) for key in _identities(written))
    origin = next((candidate for candidate in found if candidate is not None), None)
    if origin is None or not _has_whole_numbers_of(node, origin):
        new: onnx.NodeProto = OnnxExporter.export_node(node)
        return new
    restored = onnx.NodeProto()
    restored.CopyFrom(origin)
    restored.input[:] = written.input
    restored.output[:] = written.output
    # The only attributes that a pass rewrites in place are Gemm's alpha and beta.
    for attribute in restored.attribute:
        if attribute.type == onnx.AttributeProto.FLOAT and not attribute.ref_attr_name:
            attribute.f = node.attrs[attribute.name]
    return restored


def _has_whole_numbers_of(node: gs.Node, origin: onnx.NodeProto) -> bool:
    """Whether a node has strides, pads and the like of its origin; else it is a new one."""
    kinds = {
        onnx.AttributeProto.INT: "i",
        onnx.AttributeProto.INTS: "ints",
        onnx.AttributeProto.FLOAT: "f",
    }
    stated = {a.name: a for a in origin.attribute if a.type in kinds and not a.ref_attr_name}
    if not stated.keys() <= node.attrs.keys():
        return False
    if node.attrs.keys() - {attribute.name for attribute in origin.attribute}:
        return False
    return all(
        np.array_equal(node.attrs[name], getattr(attribute, kinds[attribute.type]))
        for name, attribute in stated.items()
        if attribute.type != onnx.AttributeProto.FLOAT
    )


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of all tensors that nodes, bodies of control flow or outputs read."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _names_read(attribute.g)
            for body in attribute.graphs:
                yield from _names_read(body)


def same_values(now: onnx.TensorProto, before: onnx.TensorProto) -> bool:
    """Whether two tensors of a model hold the same, however they store it."""
    if now is before or now == before:
        return True
    if now.data_type != before.data_type or list(now.dims) != list(before.dims):
        return False
    if now.HasField("raw_data") and before.HasField("raw_data"):
        return now.raw_data == before.raw_data
    return numpy_helper.to_array(now).tobytes() == numpy_helper.to_array(before).tobytes()
