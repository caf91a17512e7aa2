"""Decomposed blocks: linear nodes with nothing between them that are one linear node.

::

    x ─▶ Conv k x 1 ─▶ Conv 1 x k ─▶ y             a chain

    x ─┬─▶ depthwise ─▶ pointwise ─▶ + ─▶ y        a sum of chains of one input
       └─▶ depthwise ─▶ pointwise ──┘

One node with the composed kernel (``composed_kernels``) over the composed window (``windows``)
gives the same where padding between two of them is as much as zeros of the input are to the first,
and no bias comes in front of it. Weights that something else reads, and kernels that are to stay
sparse, are no factors; nor is a chain whose composed kernel has groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.composed_kernels import Kernel, compose
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.nodes import is_standard, sole_reader
from fskd_onnx.passes.analysis.windows import Window, common

Chain = tuple[Linear, ...]

# A kernel with so many zeros was pruned weight by weight.
_SPARSE = 0.5


@dataclass(frozen=True)
class FactoredBlock:
    """A sum of chains of linear nodes of one input, or one chain.

    Attributes:
        chains: the nodes of each, in the order of data.
        sums: the nodes that add, in the order of data.
        windows: what each chain sees around a position.
        window: what the block sees.
    """

    chains: tuple[Chain, ...]
    sums: tuple[gs.Node, ...]
    windows: tuple[Window, ...]
    window: Window

    @property
    def source(self) -> gs.Tensor:
        """Its input."""
        return self.chains[0][0].input

    @property
    def output(self) -> gs.Tensor:
        """The block output."""
        return self.sums[-1].outputs[0] if self.sums else self.chains[0][-1].output

    @property
    def factors(self) -> list[Linear]:
        """All linear nodes."""
        return [linear for chain in self.chains for linear in chain]

    @cached_property
    def kernel(self) -> Kernel:
        """The composed kernel, in float64, over the block's window."""
        kernels = [_double(compose([_kernel_of(v) for v in chain])) for chain in self.chains]
        if len(kernels) == 1:
            return kernels[0]
        groups = int(np.gcd.reduce([kernel.groups for kernel in kernels]))
        placed = [
            self.window.place(kernel.in_groups(groups), window)
            for kernel, window in zip(kernels, self.windows, strict=True)
        ]
        weights: NDArray[np.float64] = np.sum(placed, axis=0)
        return Kernel(weights, self.window.strides, self.window.dilations)

    @property
    def bias(self) -> NDArray[np.float64]:
        """What it adds to each channel, (n,), the biases of inner nodes included."""
        return self.shift_of(self.biases, self.weights)

    @property
    def weights(self) -> dict[str, NDArray[np.float64]]:
        """The weights of each factor as (groups, n, p), by its name."""
        return {linear.name: linear.matrix for linear in self.factors}

    @property
    def biases(self) -> dict[str, NDArray[np.float64]]:
        """The bias of each factor, by its name."""
        return {linear.name: linear.bias for linear in self.factors}

    def shift_of(
        self,
        biases: Mapping[str, NDArray[np.float64]],
        weights: Mapping[str, NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return what a block of this structure adds to each channel, (n,).

        Args:
            biases: of each factor, by its name.
            weights: of each factor, (groups, n, p), by its name.
        """
        total = np.zeros(self.chains[0][-1].width)
        for chain in self.chains:
            shift = np.zeros(chain[0].groups * _inputs(chain[0]))
            for linear in chain:
                # No padding is in between where a shift comes in: each tap sees the same.
                matrix = weights[linear.name]
                taps = matrix.reshape(*matrix.shape[:2], _inputs(linear), -1).sum(axis=3)
                moved = np.einsum("gnm,gm->gn", taps, shift.reshape(linear.groups, -1))
                shift = moved.reshape(-1) + biases[linear.name]
            total += shift
        return total


def chain_of(linears: Sequence[Linear]) -> FactoredBlock | None:
    """Return nodes that follow each other as a block; None where they are not one linear node."""
    chain, windows = tuple(linears), [Window.of(linear) for linear in linears]
    if len({linear.is_convolution for linear in chain}) != 1 or not all(map(_is_factor, chain)):
        return None
    if any(one.output is not other.input for one, other in itertools.pairwise(chain)):
        return None
    if len(chain) > 1 and math.gcd(*(linear.groups for linear in chain)) > 1:
        return None
    whole = windows[0]
    for linear, in_front, window in zip(chain[1:], chain, windows[1:], strict=False):
        if whole is None or window is None or linear.dtype != in_front.dtype:
            return None
        if window.is_padded and any(node.bias.any() for node in chain[: chain.index(linear)]):
            return None
        whole = window.behind(whole)
    return None if whole is None else FactoredBlock((chain,), (), (whole,), whole)


def find_chains(
    graph: gs.Graph, linears: Sequence[Linear], in_bodies: Collection[int]
) -> dict[str, FactoredBlock]:
    """Return, by the name of the last node, the longest chain that ends at each, two at least."""
    writer = {id(linear.output): linear for linear in linears}
    found: dict[str, FactoredBlock] = {}
    for linear in linears:
        chain: list[Linear] = [linear]
        block = None
        while (previous := writer.get(id(chain[0].input))) is not None:
            if sole_reader(graph, previous.output, in_bodies) is not chain[0].node:
                break
            longer = chain_of([previous, *chain])
            if longer is None:
                break
            chain, block = [previous, *chain], longer
        if block is not None:
            found[linear.name] = block
    return found


def read_block(linears: Sequence[Linear], source: str, output: str) -> FactoredBlock | None:
    """Return what stands between two tensors of a graph as a block.

    Args:
        linears: all linear nodes of the graph.
        source: name of the input.
        output: name of the block output.

    Returns:
        None where it is a single node, or anything else.
    """
    of_tensor = {id(linear.output): linear for linear in linears}
    ends = [linear.output for linear in linears if linear.output.name == output]
    ends += [
        tensor for linear in linears for tensor in _behind(linear.output) if tensor.name == output
    ]
    if not ends:
        return None
    tensors, sums = [ends[0]], list[gs.Node]()
    chains: list[FactoredBlock] = []
    while tensors:
        tensor = tensors.pop(0)
        chain: list[Linear] = []
        while (linear := of_tensor.get(id(tensor))) is not None:
            chain.insert(0, linear)
            tensor = linear.input
            if tensor.name == source:
                break
        if chain:
            block = chain_of(chain)
            if block is None or tensor.name != source:
                return None
            chains.append(block)
            continue
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or not is_standard(node, "Add", "Sum"):
            return None
        sums.insert(0, node)
        tensors = [*node.inputs, *tensors]
    window = common([chain.window for chain in chains])
    if window is None or len(chains) * max(len(c.factors) for c in chains) == 1:
        return None
    return FactoredBlock(
        tuple(chain.chains[0] for chain in chains),
        tuple(sums),
        tuple(chain.window for chain in chains),
        window,
    )


def _behind(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    """Yield the sums that a tensor is a term of, directly or through other sums."""
    for node in tensor.outputs:
        if is_standard(node, "Add", "Sum"):
            yield node.outputs[0]
            yield from _behind(node.outputs[0])


def _is_factor(linear: Linear) -> bool:
    alone = linear.shared_with is None and Kernel.of(linear) is not None
    return alone and float(np.mean(linear.native == 0)) < _SPARSE


def _kernel_of(linear: Linear) -> Kernel:
    kernel = Kernel.of(linear)
    assert kernel is not None  # `_is_factor` has looked
    return _double(kernel)


def _double(kernel: Kernel) -> Kernel:
    return replace(kernel, weights=kernel.weights.astype(np.float64))


def _inputs(linear: Linear) -> int:
    """Return the number of inputs of each group."""
    return linear.shape[2] // int(np.prod(linear.kernel_shape, dtype=int))
