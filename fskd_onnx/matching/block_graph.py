"""The linear nodes of a network and what stands around them: what pairing compares besides weights.

Nothing here depends on names, or on the order in which a file lists its nodes::

    x ─▶ Conv ─▶ BN ─▶ Relu ─▶ Conv ─┬─▶ Add ─▶     one: its input is the network's, an activation
          (one)               (other)└─▶ Concat ─▶  reads its output; other: a sum and a Concat do

Operators that only move values about or scale channels (Identity, Reshape, BatchNormalization, a
Mul by a constant) are looked through: exporters and optimizers disagree on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.matching.surroundings import COMMUTE, Downstream, Path, Upstream
from fskd_onnx.passes.analysis.composed_kernels import handed_on, next_in_chain
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.passes.analysis.nodes import is_standard, nodes_in_bodies
from fskd_onnx.passes.analysis.segments import reads
from fskd_onnx.passes.analysis.shapes import infer_shapes
from fskd_onnx.passes.branch_sums import BranchSum, find_sums

T = TypeVar("T")


@dataclass(frozen=True)
class BlockSignature:
    """Where in a network a linear node stands, as far as partners have to agree on it.

    Attributes:
        convolves: whether it is a convolution.
        inputs: positions of the network's inputs that it depends on.
        outputs: positions of the network's outputs that depend on it.
        extent: of the block output without samples and channels; None where that is not known.
            A matrix whose positions are folded into the samples has none.
    """

    convolves: bool
    inputs: frozenset[int]
    outputs: frozenset[int]
    extent: tuple[int | None, ...] | None

    def agrees(self, other: BlockSignature) -> bool:
        """Whether nodes at both may be partners."""
        if self.convolves != other.convolves:
            return False
        if self.inputs != other.inputs or self.outputs != other.outputs:
            return False
        if self.extent is None or other.extent is None:
            return True
        if not self.convolves and () in (self.extent, other.extent):
            return True  # a matrix may see its positions as samples, behind a Reshape
        return len(self.extent) == len(other.extent) and all(
            a == b or a is None or b is None for a, b in zip(self.extent, other.extent, strict=True)
        )


@dataclass(frozen=True)
class BlockContext:
    """A linear node and its surroundings.

    Attributes:
        linear: the node.
        input_kinds: of the nearest nodes that its input comes from: "input", "linear",
            "activation", "sum", ...
        output_kinds: of the nearest nodes that read its output; "output" for the network's.
        end_kinds: the same behind the sum of branches of one input that it is one of, if any; else
            those of its output.
        activations: operators of the activations among the nearest nodes that read its output.
        operand_paths: the ways from its output to the next linear nodes: which of the operands it
            is, where their order counts (Concat, a product of activations, ...).
        joined: how it goes on, one reader after another, up to where it is an operand whose order
            does not count: the operators, and a number of the last one; None where it does not.
        input_field: its receptive field along each axis, in positions of the network's input.
        output_field: the receptive field of the network's output, or of a global pool, in
            positions of its output.
        signature: what has to agree with a partner's.
        summed_with: names of the nodes whose outputs are added to its own, branches of the same
            input; None where it is no such branch. A branch whose input alone is added has none.
        end_of_chain: where another linear node alone reads its output, or a sum that it is a term
            of, with nothing between them: the kinds that read the output of the last node of such a
            chain. Else empty.
        chain_length: nodes of the longest such chain through it.
        chain_terms: how many nodes of such a chain are terms of a sum that the next one reads.
        read_by: the block output of the next node of that chain, None where there is none.
        alternatives: the same node with what stands around it where residual blocks of its network
            are left out; none where that is not looked at.
    """

    linear: Linear
    input_kinds: frozenset[str]
    output_kinds: frozenset[str]
    end_kinds: frozenset[str]
    activations: frozenset[str]
    operand_paths: frozenset[Path]
    joined: tuple[tuple[str, ...], int] | None
    input_field: tuple[float, ...]
    output_field: tuple[float, ...]
    signature: BlockSignature
    summed_with: tuple[str, ...] | None = None
    end_of_chain: frozenset[str] = frozenset()
    chain_length: int = 1
    chain_terms: int = 0
    read_by: str | None = None
    alternatives: tuple[BlockContext, ...] = ()

    @property
    def is_inner(self) -> bool:
        """Whether linear nodes alone read its output, or the sum of branches that it is one of.

        What is looked through may be in between.
        """
        return self.end_kinds == {"linear"}

    @cached_property
    def op(self) -> str:
        """Operator of the node."""
        return self.linear.op

    @cached_property
    def width(self) -> int:
        """Number of its output channels."""
        return self.linear.width

    @cached_property
    def kernel_shape(self) -> tuple[int, ...]:
        """Spatial extent of its kernel."""
        return self.linear.kernel_shape

    @cached_property
    def grouping(self) -> str:
        """How its channels are connected: "dense", "grouped" or "depthwise"."""
        if self.linear.groups == 1:
            return "dense"
        return "depthwise" if self.linear.groups == self.width else "grouped"


@dataclass(frozen=True)
class BlockGraph:
    """The linear nodes of a network.

    Attributes:
        blocks: in a topological order.
        before: (n, n) whether the first's output reaches the second's input.
        chained: which block alone reads the output of each, with nothing between them.
    """

    blocks: tuple[BlockContext, ...]
    before: NDArray[np.bool_]
    chained: Mapping[int, int]


def find_block_graph(graph: gs.Graph) -> BlockGraph:
    """Look at a canonical graph, its nodes in a topological order."""
    listed = find_linear(graph)
    views = [view for view in listed if isinstance(view, Linear)]
    refused = {id(view.node) for view in listed if isinstance(view, Refusal)}
    up, down = Upstream(graph, views), Downstream(graph, views, refused)
    shapes = infer_shapes(graph)
    sum_of = {id(view.output): s for s in find_sums(graph, views) for view in s.linears}
    numbers = {id(node): number for number, node in enumerate(graph.nodes)}
    blocks = [
        BlockContext(
            linear=view,
            input_kinds=up.kinds[id(view.input)],
            output_kinds=down.kinds[id(view.output)],
            end_kinds=down.kinds[
                id(sum_of[id(view.output)].output if id(view.output) in sum_of else view.output)
            ],
            activations=down.activations[id(view.output)],
            summed_with=_summed_with(view, sum_of.get(id(view.output))),
            operand_paths=down.paths[id(view.output)],
            joined=_joined(view.output, numbers),
            input_field=up.fields[id(view.output)].size,
            output_field=down.fields[id(view.output)].size,
            signature=BlockSignature(
                convolves=view.is_convolution,
                inputs=up.ends[id(view.input)],
                outputs=down.ends[id(view.output)],
                extent=None
                if (shape := shapes.get(view.output.name)) is None
                else view.spatial_shape(shape),
            ),
        )
        for view in views
    ]
    chained = next_in_chain(graph, views)
    behind_sums = _behind_sums(graph, views)
    next_of = {**behind_sums, **chained}
    lengths = _longest(next_of, [1] * len(views))
    terms = _longest(next_of, [int(n in behind_sums) for n in range(len(views))])
    for number in sorted(next_of, reverse=True):
        end = blocks[next_of[number]]
        kinds = end.end_of_chain or end.output_kinds
        blocks[number] = replace(
            blocks[number], end_of_chain=kinds, read_by=str(end.linear.output.name)
        )
    blocks = [
        replace(block, chain_length=length, chain_terms=count)
        for block, length, count in zip(blocks, lengths, terms, strict=True)
    ]
    before = np.zeros((len(views), len(views)), dtype=bool)
    for number, view in enumerate(views):
        before[list(up.linears[id(view.input)]), number] = True
    return BlockGraph(tuple(blocks), before, chained)


def _longest(next_of: Mapping[int, int], weights: Sequence[int]) -> list[int]:
    """Return the weight of the heaviest chain through each node.

    Args:
        next_of: the node behind each one in a chain, by number, which is the larger one.
        weights: of the nodes.
    """
    found = list(weights)
    for number in sorted(next_of):
        behind = next_of[number]
        found[behind] = max(found[behind], found[number] + weights[behind])
    for number in sorted(next_of, reverse=True):
        found[number] = found[next_of[number]]
    return found


def _behind_sums(graph: gs.Graph, views: Sequence[Linear]) -> dict[int, int]:
    """Return, by number, which linear node alone reads the sum that each one's output is in."""
    in_bodies = nodes_in_bodies(graph)
    number_of = {id(view.node): number for number, view in enumerate(views)}
    found = {}
    for own, view in enumerate(views):
        is_summed = False
        tensor, reader = handed_on(graph, view, view.output, in_bodies)
        while reader is not None and is_standard(reader, "Add", "Sum"):
            is_summed = True
            tensor, reader = handed_on(graph, view, reader.outputs[0], in_bodies)
        number = number_of.get(id(reader))
        if is_summed and number is not None and views[number].input is tensor:
            found[own] = number
    return found


def _summed_with(view: Linear, branches: BranchSum | None) -> tuple[str, ...] | None:
    if branches is None:
        return None
    return tuple(other.name for other in branches.linears if other.node is not view.node)


def _joined(tensor: gs.Tensor, numbers: Mapping[int, int]) -> tuple[tuple[str, ...], int] | None:
    operators = []
    while len(tensor.outputs) == 1 and len(tensor.outputs[0].outputs) == 1:
        (node,) = tensor.outputs
        operators.append(str(node.op))
        if len(list(reads(node))) > 1:
            is_join = is_standard(node, *COMMUTE) and id(node) in numbers
            return (tuple(operators), numbers[id(node)]) if is_join else None
        (tensor,) = node.outputs
    return None
