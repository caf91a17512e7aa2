"""What a network costs at any levels of its choice units.

The cost is a sum over linear nodes. A node's depends on the unit of the channels that it writes, on
those that it reads, on whether it is a chain, and on whether its block is there at all; all other
nodes cost what they cost in the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.candidates import Candidates, Level
from fskd_onnx.compression.choice import CostTerm
from fskd_onnx.compression.costs import NetworkCosts, NodeCost, WidthCost
from fskd_onnx.compression.factor_ranks import chain_costs
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, full_rank
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock
from fskd_onnx.passes.analysis.shapes import Shape, infer_shapes


@dataclass(frozen=True)
class NodeState:
    """What a linear node is at some levels.

    Attributes:
        inputs: number of channels that it reads.
        outputs: number of channels that it writes.
        form: of the chain that it is; None for one node.
        rank: of the chain.
    """

    inputs: int
    outputs: int
    form: Form | None = None
    rank: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelledNode:
    """What the cost of a node depends on.

    Attributes:
        linear: the node.
        cost: by its numbers of channels.
        extents: of the positions of its input and of its output.
        levels: of the units that its cost depends on, by number.
        writes: its unit of width, by number, and how many rows it has at each of the unit's levels.
        reads: how many inputs it has of each unit that it reads, likewise.
        fixed: inputs that are of no unit.
        owns: whether its weights, and its bias, are counted as its own: of nodes that share some,
            the first one's are.
        factors: number of the unit that it is as a node that may be factorized.
        blocks: numbers of the residual blocks that it is part of.
    """

    linear: Linear
    cost: WidthCost
    extents: tuple[tuple[int, ...], tuple[int, ...]] | None
    levels: Mapping[int, tuple[Level, ...]]
    writes: tuple[int, tuple[int, ...]] | None
    reads: Mapping[int, tuple[int, ...]]
    fixed: int
    owns: tuple[bool, bool]
    factors: int | None
    blocks: tuple[int, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """Return the units that its cost depends on."""
        return tuple(self.levels)

    @property
    def whole(self) -> NodeCost:
        """Return the cost in the teacher."""
        return self._own(self.cost.cost(), self.cost.outputs)

    def state(self, numbers: Mapping[int, int]) -> NodeState | None:
        """Return what the node is at these levels of its units; None where it is gone."""
        if any(self.levels[block][numbers[block]].method for block in self.blocks):
            return None
        outputs = self.cost.outputs
        if self.writes is not None:
            unit, rows = self.writes
            outputs = rows[numbers[unit]]
        inputs = self.fixed + sum(counts[numbers[unit]] for unit, counts in self.reads.items())
        chosen = None if self.factors is None else self.levels[self.factors][numbers[self.factors]]
        if chosen is None or not chosen.method or self.extents is None:
            return NodeState(inputs, outputs)
        form = Form(chosen.method)
        if not fits(form, LinearShape(outputs, inputs, self.linear.kernel_shape), chosen.after):
            return NodeState(inputs, outputs)
        return NodeState(inputs, outputs, form, chosen.after)

    def cost_of(self, state: NodeState | None) -> NodeCost:
        """Return the cost of the node in a state."""
        if state is None:
            return NodeCost(0, 0)
        if state.form is None or self.extents is None:
            whole = self.cost.cost(state.inputs, state.outputs)
            return self._own(whole, state.outputs)
        shape = LinearShape(state.outputs, state.inputs, self.linear.kernel_shape)
        chain = chain_costs(state.form, shape, state.rank, *self.extents)
        # A sample may have more positions than the axes of positions say: several rows of a batch,
        # or rows of a matrix on the axis in front of the samples.
        rows = self.cost.positions / math.prod(self.extents[1])
        bias = state.outputs if self.cost.has_bias else 0
        found = NodeCost(round(rows * chain.multiply_adds), chain.parameters + bias)
        return self._own(found, state.outputs)

    def _own(self, cost: NodeCost, outputs: int) -> NodeCost:
        """Return a cost without the parameters that are another node's."""
        bias = outputs if self.cost.has_bias else 0
        weights, own_bias = self.owns
        return NodeCost(cost.macs, weights * (cost.parameters - bias) + own_bias * bias)


def fits(form: Form, shape: LinearShape, rank: Sequence[int]) -> bool:
    """Whether a chain of a rank is of any use for a kernel of a shape."""
    return all(r < f for r, f in zip(rank, full_rank(form, shape), strict=True))


class CostModel:
    """The cost of a network at levels of its units.

    Attributes:
        candidates: the units.
        nodes: the linear nodes, by name.
    """

    def __init__(
        self,
        graph: gs.Graph,
        costs: NetworkCosts,
        shapes: Mapping[str, Sequence[int]],
        channels: PrunableChannels,
        blocks: Sequence[ResidualBlock],
        candidates: Sequence[Candidates],
    ) -> None:
        """Find what each node depends on.

        Args:
            graph: the teacher.
            costs: of its nodes.
            shapes: of its inputs in a run.
            channels: its units of width.
            blocks: its residual blocks.
            candidates: all its units.
        """
        self.candidates = tuple(candidates)
        self._total = costs.total
        number = {(c.kind, c.unit): at for at, c in enumerate(candidates) if len(c.levels) > 1}
        writer = {name: unit for unit in channels.units for name in unit.writers}
        extents = infer_shapes(graph, shapes)
        self.nodes: dict[str, ModelledNode] = {}
        counted: set[int] = set()
        for name, cost in costs.by_width.items():
            linear, own = channels.linears[name], writer[name]
            read: dict[int, list[int]] = {}
            fixed = 0
            for entry in channels.inputs(linear):
                at = None if entry is None else number.get((UnitKind.WIDTH, entry[0]))
                if entry is None or at is None:
                    fixed += 1
                else:
                    read.setdefault(at, []).append(entry[1])
            reads = {at: _kept_of(candidates[at], members) for at, members in read.items()}
            wide = number.get((UnitKind.WIDTH, own.name))
            writes = wide if wide is None else (wide, _kept_of(candidates[wide], own.members[name]))
            factors = number.get((UnitKind.FACTORS, name))
            within = [block.name for block in blocks if name in block.linears]
            gone = tuple(number[key] for b in within if (key := (UnitKind.BLOCK, b)) in number)
            alone = [unit for unit in (wide, factors) if unit is not None]
            self.nodes[name] = ModelledNode(
                linear=linear,
                cost=cost,
                extents=_extents(linear, extents),
                levels={unit: candidates[unit].levels for unit in (*alone, *reads, *gone)},
                writes=writes,
                reads=reads,
                fixed=fixed,
                owns=(id(linear.weight) not in counted, id(linear.bias_constant) not in counted),
                factors=factors,
                blocks=gone,
            )
            counted |= {id(linear.weight), id(linear.bias_constant)}

    def node(self, name: str, levels: Sequence[int]) -> NodeCost:
        """Return what a node costs, at a level of each unit."""
        node = self.nodes[name]
        return node.cost_of(node.state({unit: levels[unit] for unit in node.units}))

    def total(self, levels: Sequence[int]) -> NodeCost:
        """Return what the network costs."""
        found = self._total
        for name, node in self.nodes.items():
            new, old = self.node(name, levels), node.whole
            found += NodeCost(new.macs - old.macs, new.parameters - old.parameters)
        return found

    def terms(self, measure: Measure) -> list[CostTerm]:
        """Return a cost of the nodes that depend on levels as terms of these.

        Args:
            measure: the cost of a node in a state.
        """
        return [
            CostTerm(node.units, _TermCost(node, measure))
            for node in self.nodes.values()
            if node.units
        ]


Measure = Callable[[ModelledNode, NodeState | None], float]
"""What a node costs in a state; None stands for a node that is gone."""


def multiply_adds(node: ModelledNode, state: NodeState | None) -> float:
    """Return the multiply-adds of a node."""
    return float(node.cost_of(state).macs)


def parameters(node: ModelledNode, state: NodeState | None) -> float:
    """Return the parameters of a node."""
    return float(node.cost_of(state).parameters)


def fitted_parameters(node: ModelledNode, state: NodeState | None) -> float:
    """Return the parameters of a node once it is fitted: it has a bias then, with or without one.

    Where nodes share weights, each of them may get one.
    """
    added = 0 if state is None or node.cost.has_bias else state.outputs
    return parameters(node, state) + added


@dataclass(frozen=True)
class _TermCost:
    """The cost of a node as a function of the numbers of its units' levels."""

    node: ModelledNode
    measure: Measure

    def __call__(self, numbers: Sequence[int]) -> float:
        at = dict(zip(self.node.units, numbers, strict=True))
        return self.measure(self.node, self.node.state(at))


def _kept_of(unit: Candidates, channels: Sequence[int]) -> tuple[int, ...]:
    """Return how many of some channels of a unit stay, at each of its levels."""
    counts = np.bincount(channels, minlength=unit.levels[0].after[0])
    # Where it is not said which channels stay, as many of each part as of all of them.
    return tuple(
        round(counts.mean() * level.after[0])
        if level.kept is None
        else int(counts[list(level.kept)].sum())
        for level in unit.levels
    )


def _extents(
    linear: Linear, shapes: Mapping[str, Shape]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the extents of the positions of a node's input and output; None if any is open."""
    found = []
    for tensor in (linear.input, linear.node.outputs[0]):
        shape = shapes.get(tensor.name)
        if shape is None:
            return None
        spatial = linear.spatial_shape([-1 if extent is None else extent for extent in shape])
        if any(extent < 0 for extent in spatial):
            return None
        found.append(tuple(spatial))
    return found[0], found[1]
