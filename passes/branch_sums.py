"""Sums of linear branches of one input: what RepVGG, MobileOne and YOLOv7 train and merge later.

::

         ┌─▶ Conv 3 x 3 ─────────▶ + ──▶ + ─▶ output
    x ───┼─▶ Conv 1 x 1 ───────────┘     │
         └─▶ (BatchNormalization) ───────┘

Convolutions of one input with equal strides add up to one, over a window that holds them all (Ding
et al. 2021, RepVGG). Along an axis, branch i sees the input from -pad_i to (k_i - 1) d_i - pad_i
around a position, so the window begins at the largest pad, every kernel is placed max(pad) - pad_i
from its start, and it ends, and is padded, as far as the widest reaches. All outputs have the same
extent where pads - (k - 1) d is the same for all. A shortcut of the input, be it scaled and shifted
per channel, is a 1 x 1 kernel of one value per channel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.composed_kernels import Kernel
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import is_standard, nodes_in_bodies, sole_reader
from fskd_onnx.passes.analysis.windows import Window, common
from fskd_onnx.passes.fold_affine import affine_of


@dataclass(frozen=True)
class BranchSum:
    """A sum of linear branches of one input.

    Attributes:
        source: the input.
        sums: the nodes that add, the last one last.
        linears: the linear nodes.
        shortcuts: maps per channel of the input itself.
        shortcut_nodes: the nodes that compute these.
        window: what the sum sees around a position.
    """

    source: gs.Tensor
    sums: tuple[gs.Node, ...]
    linears: tuple[Linear, ...]
    shortcuts: tuple[AffineMap, ...]
    shortcut_nodes: tuple[gs.Node, ...]
    window: Window

    @property
    def output(self) -> gs.Tensor:
        """The sum."""
        return self.sums[-1].outputs[0]

    @property
    def name(self) -> str:
        """Name of the sum."""
        return str(self.output.name)

    @property
    def largest(self) -> Linear:
        """The first of the branches with the most weights."""
        return max(self.linears, key=lambda linear: math.prod(linear.shape))

    @property
    def is_spanned(self) -> bool:
        """Whether the largest branch, whose weights are its own, can be any map that the sum is."""
        largest = self.largest
        groups = math.gcd(*(linear.groups for linear in self.linears))
        whole = Window.of(largest) == self.window and largest.groups == groups
        return whole and largest.shared_with is None

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel of the sum, in float64."""
        kernels = [(k, Window.of(v)) for v in self.linears if (k := Kernel.of(v)) is not None]
        groups = math.gcd(*(kernel.groups for kernel, _ in kernels))
        weights = sum(
            self.window.place(replace(k, weights=k.weights.astype(np.float64)).in_groups(groups), w)
            for k, w in kernels
            if w is not None
        )
        for shortcut in self.shortcuts:
            values = shortcut.matrix.reshape(-1, 1, 1, *(1 for _ in self.window.taps))
            point = self.window.point()
            weights += self.window.place(
                Kernel(values, point.strides, point.dilations).in_groups(groups), point
            )
        return Kernel(np.asarray(weights), self.window.strides, self.window.dilations)

    @property
    def bias(self) -> NDArray[np.float64]:
        """The bias of the sum, (channels,)."""
        parts = [linear.bias for linear in self.linears]
        parts += [shortcut.shift.reshape(-1) for shortcut in self.shortcuts]
        return np.asarray(np.sum(parts, axis=0))

    @property
    def nodes(self) -> list[gs.Node]:
        """All nodes whose place one linear node takes."""
        inner = [node for v in self.linears for node in (v.node, v.bias_node) if node is not None]
        return [*inner, *self.shortcut_nodes, *self.sums]


def find_sums(graph: gs.Graph, views: Iterable[Linear] | None = None) -> list[BranchSum]:
    """Find the sums of linear branches of a graph, each as large as it can be.

    Nothing else reads what is between its input and its output.

    Args:
        graph: its nodes in a topological order.
        views: its linear nodes, where they are known.
    """
    found = [v for v in find_linear(graph) if isinstance(v, Linear)] if views is None else views
    linears = {id(view.output): view for view in found}
    in_bodies = nodes_in_bodies(graph)
    sums: dict[int, BranchSum] = {}
    for node in graph.nodes:
        if is_standard(node, "Add", "Sum") and len(node.inputs) > 1:
            whole = _read_sum(graph, node, linears, sums, in_bodies)
            if whole is not None:
                for tensor in node.inputs:
                    if tensor is not whole.source:  # else it is a sum of its own, in front
                        sums.pop(id(tensor), None)
                sums[id(whole.output)] = whole
    return list(sums.values())


def _read_sum(
    graph: gs.Graph,
    node: gs.Node,
    linears: Mapping[int, Linear],
    sums: Mapping[int, BranchSum],
    in_bodies: Collection[int],
) -> BranchSum | None:
    """Read a node that adds as a sum of branches, if it is one."""
    own = [t for t in node.inputs if sole_reader(graph, t, in_bodies) is node]
    parts = [sums[id(t)] for t in own if id(t) in sums]
    branches = [linears[id(t)] for t in own if id(t) in linears]
    branches += [linear for part in parts for linear in part.linears]
    sources = {id(linear.input) for linear in branches}
    if len(sources) != 1:
        return None
    source, first = branches[0].input, branches[0]
    shortcuts = [shortcut for part in parts for shortcut in part.shortcuts]
    between = [other for part in parts for other in part.shortcut_nodes]
    for tensor in node.inputs:
        if id(tensor) in linears.keys() | sums.keys() and any(tensor is t for t in own):
            continue
        reads_source = tensor is source
        inner = None if reads_source or not any(tensor is t for t in own) else tensor.inputs
        shortcut = _shortcut(graph, source, inner[0] if inner else None, first)
        if shortcut is None or not (reads_source or inner):
            return None
        shortcuts.append(shortcut)
        between += inner or []
    windows = [Window.of(linear) for linear in branches]
    if len(branches) + len(shortcuts) < 2 or not _agree(branches, bool(shortcuts)):
        return None
    known = [window for window in windows if window is not None]
    window = common(known + [w.point() for w in known[:1] if shortcuts])
    if len(known) != len(windows) or window is None:
        return None
    adds = [add for part in parts for add in part.sums]
    return BranchSum(
        source, (*adds, node), tuple(branches), tuple(shortcuts), tuple(between), window
    )


def _shortcut(
    graph: gs.Graph, source: gs.Tensor, node: gs.Node | None, linear: Linear
) -> AffineMap | None:
    """Return what a node does to each channel of the input; without a node, nothing."""
    if node is None:
        return AffineMap.per_channel(np.ones(linear.width), np.zeros(linear.width))
    if len(node.outputs) != 1 or not any(tensor is source for tensor in node.inputs):
        return None
    rank = 1 if linear.channels_last else len(linear.kernel_shape) + 2
    return affine_of(graph, node, source, linear.width, rank, linear.channel_axis)


def _agree(branches: Sequence[Linear], with_shortcut: bool) -> bool:
    """Whether branches are of one kind, one type and one width, which a shortcut has as well."""
    kinds = {(v.is_convolution, len(v.kernel_shape), v.dtype, v.width) for v in branches}
    if len(kinds) != 1:
        return False
    reads = {v.groups * v.shape[2] // math.prod(v.kernel_shape) for v in branches}
    return len(reads) == 1 and (not with_shortcut or reads == {branches[0].width})
