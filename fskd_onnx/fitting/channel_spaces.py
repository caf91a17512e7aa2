"""Which channels of a student may be chosen anew, and the teacher's weights in its shape.

A space is a set of coupled channels (``passes.analysis.coupled_channels``). Its extent is its
number of channels in the student and in the teacher. A space is free where every block that reads
it can be refitted to other channels, and where both networks agree on what its blocks are, and on
which of them use the same weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.fitting.adapters import is_sparse
from fskd_onnx.matching.channels import Channels
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.coupled_channels import find_coupled_channels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.propagation import is_depthwise
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.passes.analysis.windows import Window
from fskd_onnx.results import Matching


@dataclass(frozen=True)
class LinearPair:
    """A linear node of the student with its teacher's."""

    student: Linear
    teacher: Linear


@dataclass(frozen=True)
class Extent:
    """Number of channels of a space, in the student and in the teacher."""

    student: int
    teacher: int


class ChannelSpaces:
    """The channel spaces of a student whose blocks are paired with its teacher's.

    Attributes:
        blocks: the pairs, by the name of the student's node.
        extents: of each space that a block opens.
    """

    def __init__(self, student: gs.Graph, teacher: gs.Graph, matching: Matching) -> None:
        """Find the spaces, their extents, and which of them are free.

        Args:
            student: the compressed network, canonical.
            teacher: the original network, canonical.
            matching: the blocks' pairs.
        """
        self.blocks = _pair_up(student, teacher, matching)
        self._coupled = find_coupled_channels(
            student, {name: block.student for name, block in self.blocks.items()}
        )
        found: defaultdict[int, set[Extent]] = defaultdict(set)
        for block in self.blocks.values():
            space = self.output(block)
            if space is not None:
                found[space].add(Extent(block.student.width, block.teacher.width))
        self.extents = {
            space: max(extents, key=lambda e: e.teacher) for space, extents in found.items()
        }
        for uses in find_uses([block.student for block in self.blocks.values()]).values():
            # Channels of different weights have nothing in common but their number.
            if len({id(self.blocks[use.name].teacher.weight) for use in uses}) > 1:
                for use in uses:
                    self._coupled.fix(use.input.name)
                    self._coupled.fix(use.output.name)
        for block in self.blocks.values():
            space = self.output(block)
            for tensor in self._fixed_tensors(block, found[space] if space is not None else set()):
                self._coupled.fix(tensor)

    def free(self, space: int) -> bool:
        """Whether the channels of a space may be chosen anew."""
        return self._coupled.free(space)

    def inputs(self, block: LinearPair) -> tuple[int, ...] | None:
        """Return the spaces that a block reads, in order; None where that cannot be told."""
        return self._coupled.layout(block.student.input.name)

    def output(self, block: LinearPair) -> int | None:
        """Return the space of a block's output, where it is a single one."""
        layout = self._coupled.layout(block.student.output.name)
        return layout[0] if layout is not None and len(layout) == 1 else None

    def repeat(self, block: LinearPair) -> int | None:
        """Return how many inputs of a block each channel of its source gives (flattened: several).

        None where that is not the same for all channels and in both networks.
        """
        layout = self.inputs(block)
        if layout is None or any(space not in self.extents for space in layout):
            return None
        counts = [_inputs(block.student), _inputs(block.teacher)]
        widths = [
            sum(self.extents[space].student for space in layout),
            sum(self.extents[space].teacher for space in layout),
        ]
        repeats = {divmod(count, width) for count, width in zip(counts, widths, strict=True)}
        repeat, rest = repeats.pop()
        return None if repeats or rest else repeat

    def sliced(
        self, block: LinearPair, outputs: Channels, carried: Mapping[int, Channels]
    ) -> AffineMap | None:
        """Return the teacher's weights in the shape of the student's block.

        Args:
            block: the block.
            outputs: the teacher's channels that it gives.
            carried: the teacher's channels that each space carries.

        Returns:
            None where it cannot be told which inputs of the teacher the student's are.
        """
        student, teacher = block.student, block.teacher
        bias = teacher.bias[outputs]
        if is_depthwise(student) and is_depthwise(teacher):
            return AffineMap(teacher.matrix[outputs], bias[:, np.newaxis])
        if teacher.groups > 1 or student.groups > 1:
            return None
        taps = math.prod(student.kernel_shape)
        matrix = teacher.matrix[0].reshape(teacher.width, -1, taps)[outputs]
        layout = self.inputs(block)
        if layout is None:
            inputs: NDArray[np.intp] = np.arange(matrix.shape[1])
        else:
            repeat = self.repeat(block)
            if repeat is None or any(space not in carried for space in layout):
                return None
            starts = np.cumsum([0, *(self.extents[space].teacher for space in layout)])
            channels = np.concatenate(
                [start + carried[space] for start, space in zip(starts, layout, strict=False)]
            )
            inputs = (channels[:, np.newaxis] * repeat + np.arange(repeat)).reshape(-1)
        if len(inputs) != _inputs(student):
            return None
        return AffineMap(matrix[:, inputs].reshape(1, len(outputs), -1), bias[np.newaxis])

    def _fixed_tensors(self, block: LinearPair, extents: set[Extent]) -> list[str]:
        """Return the tensors of a block whose channels cannot be chosen.

        Args:
            block: the block.
            extents: all that blocks say of the space of its output.
        """
        student, teacher = block.student, block.teacher
        shapes = {
            (b.operator.convolves, b.operator.transposed, b.groups > 1, b.kernel_shape)
            for b in (student, teacher)
        }
        # The teacher's weights would fill the zeros of a sparse kernel.
        if len(extents) != 1 or len(shapes) != 1 or is_sparse(student.native):
            return [student.output.name, student.input.name]
        if not is_depthwise(student) and self.repeat(block) is None:
            return [student.input.name]
        return []


def teacher_kernels(
    student: gs.Graph, teacher: gs.Graph, matching: Matching, blocks: Collection[str]
) -> dict[str, AffineMap]:
    """Return the teacher's weights of some blocks, with the channels that the student kept.

    Args:
        student: the compressed network, canonical.
        teacher: the original network, canonical.
        matching: the blocks' pairs and channels.
        blocks: names of the student's nodes.

    Returns:
        By name, where the teacher's node moves over positions in the same way and all channels are
        known.
    """
    if not blocks:
        return {}
    spaces = ChannelSpaces(student, teacher, matching)
    carried = {
        space: np.array(pair.channels)
        for pair in matching.usable
        if pair.channels is not None
        and (space := spaces.output(spaces.blocks[pair.student])) is not None
    }
    found = {}
    for pair in matching.usable:
        block = spaces.blocks[pair.student]
        alike = Window.of(block.student) == Window.of(block.teacher)
        if pair.student in blocks and pair.channels is not None and alike:
            weights = spaces.sliced(block, np.array(pair.channels), carried)
            if weights is not None:
                found[pair.student] = weights
    return found


def _pair_up(student: gs.Graph, teacher: gs.Graph, matching: Matching) -> dict[str, LinearPair]:
    mine = {view.name: view for view in find_linear(student) if isinstance(view, Linear)}
    theirs = {view.output.name: view for view in find_linear(teacher) if isinstance(view, Linear)}
    return {
        pair.student: LinearPair(mine[pair.student], theirs[str(pair.teacher)])
        for pair in matching.usable
    }


def _inputs(linear: Linear) -> int:
    """Return the number of inputs of each group, positions of a kernel not counted."""
    return linear.shape[2] // math.prod(linear.kernel_shape)
