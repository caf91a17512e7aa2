"""Append the nodes that gather columns, so that only a sample of positions leaves the device.

A column is one position of one sample: what a tensor holds there in all of its channels, or the
patch of the tensor that a convolution sees from there. Columns of one tensor become a matrix::

    tensor (N, channels, positions...)  ──▶ gather, mask ──▶ take count ──▶ (rows, columns)

    rows      channels x taps, those of a channel behind one another, as in a weight matrix
    columns   samples x positions, those of a sample behind one another

Which positions are gathered, and of how many samples, is fed in each run (``gather_feeds``). So one
graph serves all tensors of a rank and an element type, whatever their extents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.errors import PreconditionError

COLUMNS = "columns"
"""Name of the output."""

# Shape takes a range of axes from 15 on; nothing used here has changed since.
_OLDEST_OPSET = 15

_COUNT, _INDEX, _INSIDE = "columns/count", "columns/index", "columns/inside"
_SPLIT, _MERGED = "columns/split", "columns/merged"


def gather_feeds(
    shape: Sequence[int],
    channels_last: bool,
    count: int,
    index: NDArray[np.intp],
    inside: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Return what to feed to the inputs that ``GatherColumns`` adds: which columns, in one run.

    Args:
        shape: of the tensor.
        channels_last: whether its channels are on the last axis, not on axis 1.
        count: only the first ``count`` samples are gathered (a padded batch holds more).
        index: (taps, k) flat positions, the same for all samples.
        inside: (taps, k) whether there is such a position; a column holds zero where there is none.
            For a pass with ``masked`` only.
    """
    taps, k = index.shape
    channels = shape[-1] if channels_last else shape[1]
    chosen: dict[str, NDArray[np.generic]] = {
        _COUNT: np.array([count], dtype=np.int64),
        _INDEX: index.reshape(-1).astype(np.int64),
        _SPLIT: np.array([count, channels, taps, k], dtype=np.int64),
        _MERGED: np.array([channels * taps, count * k], dtype=np.int64),
    }
    return chosen if inside is None else chosen | {_INSIDE: inside.reshape(-1)}


@dataclass(frozen=True)
class GatherColumns(Pass):
    """Append the nodes that gather columns of one tensor; ``COLUMNS`` becomes an output.

    Attributes:
        tensor: name of an input of the graph, or of what one of its nodes makes.
        channels_last: whether its channels are on the last axis, not on axis 1.
        masked: whether some of the gathered positions are outside of the tensor.
        dtype: element type of the columns.
    """

    tensor: str
    channels_last: bool
    masked: bool
    dtype: np.dtype[Any]

    def requires(self, graph: gs.Graph) -> None:
        """Check for the tensor, and for an opset that has the operators in the form used."""
        if graph.opset < _OLDEST_OPSET:
            msg = (
                f"columns are gathered in opset {_OLDEST_OPSET} or later; "
                f"the graph '{graph.name}' has {graph.opset}"
            )
            raise PreconditionError(msg)
        if self.tensor not in _tensors(graph):
            msg = f"the graph '{graph.name}' has no tensor '{self.tensor}' to gather columns of"
            raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Append in place, with the columns as an output and the indices as inputs of the graph."""
        build = _Builder(graph)
        tensor = _tensors(graph)[self.tensor]
        count, index = build.input(_COUNT, np.int64), build.input(_INDEX, np.int64)
        if self.channels_last:
            width = build.node("Shape", [tensor], start=-1)
            shape = build.node("Concat", [build.ints(0, -1), width], axis=0)
            x = build.node("Gather", [build.node("Reshape", [tensor, shape]), index], axis=1)
            x = build.node("Transpose", [x], perm=[0, 2, 1])
        else:
            flat = build.node("Reshape", [tensor, build.ints(0, 0, -1)])
            x = build.node("Gather", [flat, index], axis=2)
        x = build.node("Cast", [x], to=self.dtype.type)
        if self.masked:
            inside = build.node("Cast", [build.input(_INSIDE, np.bool_)], to=self.dtype.type)
            x = build.node("Mul", [x, inside])
        x = build.node("Slice", [x, build.ints(0), count, build.ints(0)])
        x = build.node("Reshape", [x, build.input(_SPLIT, np.int64)])
        x = build.node("Transpose", [x], perm=[1, 2, 0, 3])
        x = build.node("Reshape", [x, build.input(_MERGED, np.int64)])
        x.name, x.dtype = COLUMNS, self.dtype
        graph.outputs.append(x)
        return [f"columns of '{self.tensor}' gathered"]


def _tensors(graph: gs.Graph) -> dict[str, gs.Tensor]:
    made = {t.name: t for node in graph.nodes for t in node.outputs}
    return made | {t.name: t for t in graph.inputs}


@dataclass
class _Builder:
    """Appends nodes and names their tensors."""

    graph: gs.Graph
    made: int = 0

    def input(self, name: str, dtype: type) -> gs.Variable:
        self.graph.inputs.append(gs.Variable(name, dtype, [None]))
        return self.graph.inputs[-1]

    def ints(self, *values: int) -> gs.Constant:
        self.made += 1
        return gs.Constant(f"columns/constant/{self.made}", np.array(values, dtype=np.int64))

    def node(self, op: str, inputs: list[gs.Tensor], **attrs: object) -> gs.Variable:
        self.made += 1
        output = gs.Variable(f"columns/{op}/{self.made}")
        self.graph.nodes.append(gs.Node(op, output.name, attrs, inputs, [output]))
        return output
