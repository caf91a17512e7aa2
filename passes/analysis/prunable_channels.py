"""Which channels of a network may go, and which of them go together: its channel units.

A unit is a set of channels that are chosen together: those of one linear node, and of all others
that have to keep the same ones. In a plain chain each node has a unit of its own; all nodes that
write to a residual stream have one, a depthwise convolution has that of its input, and so have the
gate of a squeeze-and-excitation block and what it scales. What a Concat puts behind one another
stays in several units::

    x ─▶ Conv a ─▶ Relu ─┬─▶ Conv b ─▶ Relu ─▶ Conv c ─▶ + ─▶ Conv d ─▶ y
                         └─────────────────────────────▶ ┘
    unit a: written by a and c, read by b and d
    unit b: written by b, read by c
    unit d: none can go, for an output of the network carries them

What has to hold of those that stay is found by ``fskd_onnx.passes.analysis.pruning_constraints``;
``fskd_onnx.passes.prune_channels`` takes the others away.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.labels import Indices, Labels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.propagation import ChannelFlow, propagate
from fskd_onnx.passes.analysis.pruning_constraints import (
    Constraints,
    find_constraints,
    input_channels,
    input_count,
)

__all__ = ["ChannelUnit", "PrunableChannels", "find_channel_units"]


class PrunableChannels:
    """The channels of a canonical graph, in units.

    Attributes:
        linears: the linear nodes of the graph, by name.
        flow: their channels, and the tensors that carry them.
        units: every channel of every linear node is in one of them.
    """

    def __init__(self, graph: gs.Graph) -> None:
        """Find the units of a graph."""
        views = [view for view in find_linear(graph) if isinstance(view, Linear)]
        self.linears = {view.name: view for view in views}
        self.flow = propagate(graph, views)
        constraints = find_constraints(graph, views, self.flow)
        self._unit, self._member = _members(self.flow, constraints)
        self.units = self._describe(constraints)

    def kept(self, choice: Mapping[str, Collection[int]]) -> NDArray[np.bool_]:
        """Return which channels stay.

        Args:
            choice: by the name of a unit, its channels that stay; all where it is not named.

        Returns:
            A mark for each channel of the network, and one more for what is no channel, which
            stays: so the number -1 is that of the last mark.
        """
        marks = np.ones(self.flow.starts[-1] + 1, bool)
        for index, unit in enumerate(self.units):
            if unit.name in choice:
                own = np.flatnonzero(self._unit == index)
                marks[own] = np.isin(self._member[own], [*choice[unit.name]])
        return marks

    def inputs(self, linear: Linear) -> list[tuple[str, int] | None]:
        """Return what each input channel of a linear node is: a unit, and which of its channels.

        None stands for what is no channel of a linear node. Of a flattened tensor, each position
        of a channel is an input.
        """
        read = input_channels(self.flow, linear)
        if read is None:
            return [None] * input_count(linear)
        names = [unit.name for unit in self.units]
        return [
            None if channel < 0 else (names[self._unit[channel]], int(self._member[channel]))
            for channel in read.tolist()
        ]

    def _describe(self, constraints: Constraints) -> tuple[ChannelUnit, ...]:
        count = int(self._unit.max(initial=-1)) + 1
        names: list[str] = [""] * count
        members: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
        readers: list[list[str]] = [[] for _ in range(count)]
        for linear in self.linears.values():
            own = self.flow.of_block(linear.output.name)
            index = int(self._unit[own[0]])
            names[index] = names[index] or linear.name
            members[index][linear.name] = tuple(self._member[own].tolist())
            for read in self._units_of(self.flow.labels.get(linear.input.name)):
                readers[read].append(linear.name)
        widths = [int(self._member[self._unit == i].max()) + 1 for i in range(count)]
        groups, reasons = self._runs(constraints, widths)
        parts = self._parts(groups, widths)
        return tuple(
            ChannelUnit(
                names[i],
                tuple(members[i]),
                tuple(readers[i]),
                widths[i],
                groups[i] if not reasons.get(i) else 1,
                reasons.get(i, ""),
                members[i],
                parts[i] if not reasons.get(i) else (),
            )
            for i in range(count)
        )

    def _units_of(self, labels: Labels | None) -> list[int]:
        if labels is None:
            return []
        channels = np.unique(labels.channels)
        return [int(unit) for unit in np.unique(self._unit[channels[channels >= 0]])]

    def _parts(self, groups: list[int], widths: list[int]) -> list[tuple[tuple[int, ...], ...]]:
        """Return the sets of channels of each unit that nodes write or read alone."""
        found: list[set[tuple[int, ...]]] = [set() for _ in widths]
        sets = [self.flow.of_block(linear.output.name) for linear in self.linears.values()]
        carried = {id(labels): labels for labels in self.flow.labels.values()}.values()
        for channels in (*sets, *(labels.channels for labels in carried)):
            known = channels[channels >= 0]
            if len(known) < channels.size or not len(known):
                continue  # what is no channel stays
            units, counts = np.unique(self._unit[known], return_counts=True)
            index = int(units[counts.argmax()])
            part = np.unique(self._member[known[self._unit[known] == index]])
            run = widths[index] // groups[index]
            whole_run = np.bincount(part // run).max() == run
            if not whole_run:
                found[index].add(tuple(part.tolist()))
        return [tuple(sorted(parts)) for parts in found]

    def _runs(
        self, constraints: Constraints, widths: list[int]
    ) -> tuple[list[int], dict[int, str]]:
        """Return the number of runs of each unit, and the reasons of those that have one."""
        reasons: dict[int, str] = {}
        for channels, why in constraints.held:
            for index in np.unique(self._unit[channels[channels >= 0]]).tolist():
                reasons.setdefault(index, why)
        lengths = list(widths)
        for channels, name in constraints.runs:
            known = channels[channels >= 0]
            units = np.unique(self._unit[known]).tolist()
            length = None
            if len(units) == 1 and len(known) == channels.size:
                length = _run_length(self._member[channels])
            for index in units:
                if length is not None:
                    lengths[index] = math.gcd(lengths[index], length)
                else:
                    why = (
                        f"the groups of '{name}' are not runs of channels that are chosen together"
                    )
                    reasons.setdefault(index, why)
        for index, (length, width) in enumerate(zip(lengths, widths, strict=True)):
            if width == 1:
                reasons.setdefault(index, "there is one only, or none can go without all others")
            elif length == 1:
                reasons.setdefault(index, "groups of convolutions leave one in each run of them")
        return [w // n for w, n in zip(widths, lengths, strict=True)], reasons


def find_channel_units(graph: gs.Graph) -> tuple[ChannelUnit, ...]:
    """Find the units of a canonical graph, in the order of the nodes that open them.

    Every channel of every linear node is in one of them; one of which nothing can go has a reason.
    """
    return PrunableChannels(graph).units


def _members(flow: ChannelFlow, constraints: Constraints) -> tuple[Indices, Indices]:
    """Return the unit of each channel, and which of the unit's channels it is."""
    count, blocks = flow.starts[-1], len(flow.starts) - 1
    ends = [np.stack(tie) for tie in constraints.ties]
    classes = _components(count, np.concatenate([np.empty((2, 0), np.intp), *ends], axis=1))
    block = np.repeat(np.arange(blocks), np.diff(flow.starts))
    # A class joins the blocks that it has channels of.
    first = np.unique(classes, return_index=True)[1]
    unit = _components(blocks, np.stack([block[first[classes]], block]))[block]
    member = np.empty(count, np.intp)
    order = np.argsort(unit, kind="stable")
    starts = np.searchsorted(unit[order], np.arange(unit.max(initial=-1) + 2))
    for begin, end in pairwise(starts):
        own = order[begin:end]
        member[own] = _by_appearance(classes[own])
    return unit, member


def _components(count: int, ends: Indices) -> Indices:
    """Number the connected components of a graph, in the order of their first nodes."""
    # SciPy before 1.12 reads indices of 32 bits only.
    graph = coo_array((np.ones(ends.shape[1], np.int8), ends.astype(np.int32)), (count, count))
    return _by_appearance(connected_components(graph, directed=False)[1])


def _by_appearance(values: NDArray[np.integer]) -> Indices:
    """Number equal values alike, in the order in which they come first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.intp)
    ranks[np.argsort(first)] = np.arange(len(first))
    numbers: Indices = ranks[inverse.reshape(-1)]
    return numbers


def _run_length(members: Indices) -> int | None:
    """Return the length of runs such that groups are equal if equally many of each run stay.

    Args:
        members: (groups, n) channels of a unit.

    Returns:
        0 where groups are equal whatever stays; None where no length does it.
    """
    groups = [np.unique(group, return_counts=True) for group in members]
    if all(np.array_equal(g, groups[0]) for g in groups[1:]):
        return 0
    sizes = {len(own) for own, _ in groups}
    times = {int(n) for _, counts in groups for n in counts}
    are_runs = all(own[-1] - own[0] + 1 == len(own) for own, _ in groups)
    if len(sizes) > 1 or len(times) > 1 or not are_runs:
        return None
    return math.gcd(*sizes, *(int(own[0]) for own, _ in groups))
