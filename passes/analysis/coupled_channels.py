"""Which tensors of a network must carry the same channels: its channel spaces.

The channels of a linear node are a space. Spaces are merged where their channels have to be the
same one by one: in the Add of a residual stream, in front of and behind a depthwise convolution,
in front of all nodes that use the same weights, and behind them. A space is *fixed* where its
channels cannot be chosen anew: an output of the network carries them, they pass through what cannot
follow, a linear node that is not refitted reads them, or one that reads some of them only. How
channels get from node to node is found by ``fskd_onnx.passes.analysis.propagation``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.labels import Labels
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.propagation import ChannelFlow, propagate
from fskd_onnx.passes.analysis.shared_weights import find_uses

Layout = tuple[int, ...]


class CoupledChannels:
    """The channel spaces of a network, numbered."""

    def __init__(self, flow: ChannelFlow) -> None:
        """Merge the spaces of channels that are tied, and fix those that cannot be chosen."""
        self._flow = flow
        self._starts = np.array(flow.starts)
        self._parents = list(range(len(flow.blocks)))
        self._fixed: set[int] = set()
        self._layouts: dict[int, Layout | None] = {}
        for one, other in flow.ties:
            self._merge(one, other)
        for labels in {id(labels): labels for labels in flow.fixed}.values():
            self._fixed |= self._spaces(labels)

    def layout(self, tensor: str) -> Layout | None:
        """Return the spaces that a tensor carries, each as a whole and one behind another.

        A flattened tensor carries each channel several times in a row. None where a tensor carries
        anything else, or nothing that can be told.
        """
        labels = self._flow.labels.get(tensor)
        spaces = None if labels is None else self._whole_spaces(labels)
        return None if spaces is None else tuple(map(self.root, spaces))

    def carried(self, tensor: str) -> set[int]:
        """Return the spaces that a tensor carries any channels of."""
        labels = self._flow.labels.get(tensor)
        return set() if labels is None else set(map(self.root, self._spaces(labels)))

    def of_block(self, output: str) -> int:
        """Return the space of a block, by the name of its output."""
        return self.root(self._flow.blocks[output])

    def free(self, space: int) -> bool:
        """Whether other channels may be chosen for a space."""
        return self.root(space) not in {self.root(fixed) for fixed in self._fixed}

    def fix(self, tensor: str) -> None:
        """Fix all spaces that a tensor carries channels of."""
        self._fixed |= self.carried(tensor)

    def couple(self, one: str, other: str) -> None:
        """Let two tensors carry the same channels: what nodes of the same weights read, or give."""
        labels = self._flow.labels.get(one), self._flow.labels.get(other)
        if labels[0] is not None and labels[1] is not None:
            self._merge(labels[0], labels[1])
        else:
            self.fix(one)
            self.fix(other)

    def couple_uses(self, linears: Sequence[Linear]) -> None:
        """Let nodes of the same weights give the same channels."""
        for first, *others in find_uses(linears).values():
            for use in others:
                self.couple(first.output.name, use.output.name)

    def reads_whole_spaces(self, linear: Linear) -> bool:
        """Whether a linear node reads spaces as wholes, or nothing that can be told."""
        labels = self._flow.labels.get(linear.input.name)
        if labels is None:
            return True
        axis = linear.channel_axis % labels.rank
        return labels.axes == {axis} and self._whole_spaces(labels) is not None

    def root(self, space: int) -> int:
        """Return the space that stands for all that were merged with a space."""
        while self._parents[space] != space:
            space = self._parents[space]
        return space

    def _merge(self, one: Labels, other: Labels) -> None:
        layouts = self._whole_spaces(one), self._whole_spaces(other)
        widths = [None if spaces is None else self._widths(spaces) for spaces in layouts]
        if None in widths or widths[0] != widths[1]:
            self._fixed |= self._spaces(one) | self._spaces(other)
            return
        for pair in zip(*(spaces for spaces in layouts if spaces is not None), strict=True):
            low, high = sorted(map(self.root, pair))
            self._parents[high] = low

    def _widths(self, spaces: Layout) -> list[int]:
        return [int(self._starts[space + 1] - self._starts[space]) for space in spaces]

    def _spaces(self, labels: Labels) -> set[int]:
        """Return the spaces of some channels."""
        known = labels.channels[labels.channels >= 0]
        return set(np.unique(np.searchsorted(self._starts, known, "right") - 1).tolist())

    def _whole_spaces(self, labels: Labels) -> Layout | None:
        if id(labels) not in self._layouts:  # labels live as long as the flow
            self._layouts[id(labels)] = self._read(labels)
        return self._layouts[id(labels)]

    def _read(self, labels: Labels) -> Layout | None:
        if len(labels.axes) != 1:
            return None
        channels, positions = labels.channels.reshape(-1), labels.positions.reshape(-1)
        repeat = int(positions.max(initial=0)) + 1
        in_order = channels[::repeat]
        if not np.array_equal(np.repeat(in_order, repeat), channels) or not np.array_equal(
            np.tile(np.arange(repeat), len(in_order)), positions
        ):
            return None
        spaces = []
        while len(in_order):
            space = int(np.searchsorted(self._starts, in_order[0], "right")) - 1
            whole = np.arange(*self._starts[space : space + 2]) if space >= 0 else in_order[:0]
            if not len(whole) or not np.array_equal(in_order[: len(whole)], whole):
                return None
            spaces.append(space)
            in_order = in_order[len(whole) :]
        return tuple(spaces)


def find_coupled_channels(graph: gs.Graph, refitted: Mapping[str, Linear]) -> CoupledChannels:
    """Find the channel spaces of a canonical graph.

    Args:
        graph: the network.
        refitted: the linear nodes that can follow a new choice of channels, by their name.
    """
    spaces = CoupledChannels(propagate(graph, refitted.values()))
    for linear in refitted.values():
        if not spaces.reads_whole_spaces(linear):
            spaces.fix(linear.input.name)
    linears = list(refitted.values())
    spaces.couple_uses(linears)
    uses = find_uses(linears)
    for linear in linears:
        if linear.name in uses:
            spaces.couple(uses[linear.name][0].input.name, linear.input.name)
        else:
            spaces.fix(linear.input.name)
            spaces.fix(linear.output.name)
    return spaces
