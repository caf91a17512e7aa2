"""Decomposed blocks between graphs and linear algebra: nodes to factors, and back.

A block that is several nodes is one node of the graph that is fitted, with the composed kernel. Its
factors (``linalg.factorization``) are those of its nodes, and its solution is weights for them.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.linalg.factor_fit import fit_factors
from fskd_onnx.linalg.factor_step import Target
from fskd_onnx.linalg.factorization import Factor, Factorization
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.windows import Window


class DecomposedBlocks:
    """The decomposed blocks of a student, and what has become of their factors.

    Attributes:
        factors: new weights of the nodes of blocks that were changed, by the nodes' names.
    """

    def __init__(self, blocks: Mapping[str, FactoredBlock]) -> None:
        """Begin with the factors that the blocks have.

        Args:
            blocks: by the name of the node that each is in the graph that is fitted.
        """
        self.factors: dict[str, AffineMap] = {}
        self._blocks = dict(blocks)
        self._current = {name: factorization_of(block) for name, block in blocks.items()}

    def copy(self) -> DecomposedBlocks:
        """Return the same blocks, to become other ones."""
        copied = copy.copy(self)
        copied._current, copied.factors = dict(self._current), dict(self.factors)
        return copied

    @property
    def views(self) -> dict[str, Linear]:
        """Return the nodes of all blocks, by name."""
        return {linear.name: linear for b in self._blocks.values() for linear in b.factors}

    def get(self, name: str) -> Factorization | None:
        """Return the factors of a block as they are now; None of a block of one node."""
        return self._current.get(name)

    def representable(self, weights: Mapping[str, AffineMap]) -> dict[str, AffineMap]:
        """Return weights to start from: of decomposed blocks, those that are nearest to these."""
        found = dict(weights)
        for name in self._blocks.keys() & weights.keys():
            kernel = weights[name].matrix[0]
            identity = Target(np.eye(kernel.shape[1]), kernel, float(np.sum(kernel**2)))
            nearest = fit_factors(self._current[name], identity, lambda right: right)
            self.take(name, nearest, weights[name].shift)
            found[name] = AffineMap(nearest.kernel[np.newaxis], weights[name].shift)
        return found

    def take(self, name: str, factors: Factorization, shift: NDArray[np.float64]) -> list[str]:
        """Take new factors for a block.

        Args:
            name: of the block.
            factors: the factors.
            shift: (1, n) what the block is to add to each channel.

        Returns:
            Its other nodes that have new weights.
        """
        block, before = self._blocks[name], self.factors
        new = weights_of(block, factors, shift.reshape(-1))
        self._current[name], self.factors = factors, {**before, **new}
        return [
            linear.name
            for linear in block.factors
            if linear.name != name
            and not new[linear.name].equals(before.get(linear.name, linear.affine))
        ]

    def with_added_nodes(self) -> set[str]:
        """Return the blocks that an Add is put behind a node of, for its bias."""
        return {
            name
            for name, block in self._blocks.items()
            for linear in block.factors
            if linear.bias_slot is None
            and linear.name in self.factors
            and self.factors[linear.name].shift.any()
        }


def factorization_of(block: FactoredBlock) -> Factorization:
    """Return the factors of a block, over the patches of its composed kernel."""
    steps = block.window.dilations
    return Factorization(
        chains=tuple(
            tuple(
                _factor(linear, strides, steps)
                for linear, strides in zip(chain, _strides(chain), strict=True)
            )
            for chain in block.chains
        ),
        starts=tuple(_start(window, block.window) for window in block.windows),
        window=block.window.taps,
    )


def weights_of(
    block: FactoredBlock, factors: Factorization, shift: NDArray[np.float64]
) -> dict[str, AffineMap]:
    """Return the weights of each node of a block, by its name.

    The biases of inner nodes stay; that of a last node makes up for what has become of them.

    Args:
        block: the nodes.
        factors: their new weights.
        shift: (n,) what the block is to add to each channel.
    """
    matrices = {
        linear.name: factor.matrix
        for chain, new in zip(block.chains, factors.chains, strict=True)
        for linear, factor in zip(chain, new, strict=True)
    }
    ends = [chain[-1] for chain in block.chains]
    last = next((end for end in ends if end.bias_constant is not None), ends[0]).name
    biases = block.biases
    biases[last] = biases[last] + shift - block.shift_of(biases, matrices)
    return {
        linear.name: AffineMap(matrices[linear.name], biases[linear.name].reshape(linear.shape[:2]))
        for linear in block.factors
    }


def _factor(linear: Linear, strides: tuple[int, ...], steps: tuple[int, ...]) -> Factor:
    """Return the factor of a node.

    Args:
        linear: the node.
        strides: of all nodes in front of it, together.
        steps: between taps of the composed kernel.
    """
    window = Window.of(linear)
    assert window is not None  # else it were no part of a block
    # Along an axis of one tap the step is any.
    moves = [
        dilation * stride // step if taps > 1 else 0
        for dilation, stride, step, taps in zip(
            window.dilations, strides, steps, window.taps, strict=True
        )
    ]
    taps = list(itertools.product(*map(range, window.taps)))
    offsets = np.array(taps, np.intp).reshape(len(taps), len(moves)) * np.array(moves, np.intp)
    groups, n, p = linear.shape
    inputs = p // math.prod(window.taps)
    empty = Factor(np.zeros((groups * n, groups * inputs, len(taps))), offsets, groups)
    return empty.with_matrix(linear.matrix)


def _strides(chain: tuple[Linear, ...]) -> list[tuple[int, ...]]:
    """Return what the nodes in front of each make of a step, along each axis."""
    found = [(1,) * len(chain[0].kernel_shape)]
    for linear in chain[:-1]:
        window = Window.of(linear)
        own = found[-1] if window is None else window.strides
        found.append(tuple(a * b for a, b in zip(found[-1], own, strict=True)))
    return found


def _start(window: Window, whole: Window) -> tuple[int, ...]:
    """Return where the patch of a chain begins in that of the block."""
    axes = zip(whole.begin, window.begin, whole.dilations, strict=True)
    return tuple((front - own) // step for front, own, step in axes)
