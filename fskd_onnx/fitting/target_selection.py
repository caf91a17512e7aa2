"""Choose the teacher channels that a narrower student carries, instead of taking those it kept.

With adapters that refit whole kernels, a student is only a shape: any subset of the teacher's
channels can be its target, and every reader is refitted to it. The best subset is the one from
which all of the teacher's channels, as their readers see them, are best reconstructed linearly
(``fitting.greedy_choice``). The student then starts from the teacher's weights, sliced to the
chosen channels, and is fitted like any other: no channel has to be matched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.fitting.adapters import is_sparse
from fskd_onnx.fitting.channel_spaces import ChannelSpaces, LinearPair
from fskd_onnx.fitting.greedy_choice import choose_channels
from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.propagation import is_depthwise
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.results import Evidence, Matching


@dataclass(frozen=True)
class Selection:
    """A student as a shape: new targets for its blocks, and weights to start from.

    Attributes:
        matching: with the chosen channels.
        weights: the teacher's, sliced to the chosen channels, by the name of the student's node.
    """

    matching: Matching
    weights: dict[str, AffineMap]


class TargetSelection:
    """The choice of the channels of every space that is free to carry any.

    Attributes:
        readers: the teacher's blocks of which it has to be known what they read; none where there
            is nothing to choose.
    """

    def __init__(self, student: gs.Graph, teacher: gs.Graph, matching: Matching) -> None:
        """Find the spaces.

        Args:
            student: the compressed network, canonical.
            teacher: the original network, canonical.
            matching: the blocks' pairs; where a space is not free, its channels stay as they were
                kept.
        """
        self._spaces = spaces = ChannelSpaces(student, teacher, matching)
        self._matching = matching
        blocks = [block for block in spaces.blocks.values() if not is_depthwise(block.student)]
        read = {space for block in blocks for space in spaces.inputs(block) or ()}
        self._widths = {
            space: extent.student
            for space, extent in spaces.extents.items()
            if space in read and spaces.free(space) and extent.student < extent.teacher
        }
        widths = set(self._widths)
        self._blocks = [block for block in blocks if set(spaces.inputs(block) or ()) & widths]
        self.readers = [block.teacher for block in self._blocks]

    def choose(self, grams: Mapping[str, Array]) -> Selection | None:
        """Choose; return None where there is nothing to choose.

        Args:
            grams: centred Gram matrices of what the readers read, by the tensor's name, see
                ``fitting.input_grams``.
        """
        spaces, chosen = self._spaces, {}
        for space, width in self._widths.items():
            # Of readers of one tensor the part is the same one: they are eliminated together.
            part_of = cache(partial(_part, spaces, grams, space))
            evidence = [
                (part_of(block.teacher.input.name, *where), _weight(block, spaces, space, where))
                for block in self._blocks
                if block.teacher.input.name in grams and (where := _where(block, spaces, space))
            ]
            if evidence:  # else nothing is known of its channels, and they stay
                chosen[space] = choose_channels(evidence, width)
        return _reshape(spaces, chosen, self._matching) if chosen else None


_Where = tuple[int, int]
"""How many channels of a reader's input lie in front of a space, and how many inputs each gives."""


def _where(block: LinearPair, spaces: ChannelSpaces, space: int) -> _Where | None:
    """Return where a reader's input has the channels of a space; None where it has none."""
    layout = spaces.inputs(block) or ()
    if space not in layout:
        return None
    before = sum(spaces.extents[s].teacher for s in layout[: layout.index(space)])
    return before, spaces.repeat(block) or 1


def _part(
    spaces: ChannelSpaces,
    grams: Mapping[str, Array],
    space: int,
    name: str,
    before: int,
    repeat: int,
) -> Array:
    """Return R, for the channels of one space."""
    width = spaces.extents[space].teacher
    part = slice(before * repeat, (before + width) * repeat)
    # A flattened channel is several inputs; what is between different positions is not looked at.
    gram = grams[name][part, part].reshape(width, repeat, width, repeat)
    return np.asarray(np.einsum("irjr->ij", gram))


def _weight(block: LinearPair, spaces: ChannelSpaces, space: int, where: _Where) -> Array:
    """Return H of one reader, for the channels of one space."""
    before, repeat = where
    width = spaces.extents[space].teacher
    part = slice(before * repeat, (before + width) * repeat)
    taps = math.prod(block.teacher.kernel_shape)
    weights = block.teacher.matrix[0].reshape(block.teacher.width, -1, taps)[:, part]
    m = weights.reshape(block.teacher.width, width, repeat, taps).transpose(1, 0, 2, 3)
    flat = m.reshape(width, -1)
    return np.asarray(flat @ flat.T)


def _reshape(
    spaces: ChannelSpaces, chosen: Mapping[int, Channels], matching: Matching
) -> Selection:
    """Slice the teacher's weights to the student's shape, and say so in the matching."""
    carried = dict(chosen)
    for pair in matching.usable:
        space = spaces.output(spaces.blocks[pair.student])
        if pair.channels is not None and space is not None and space not in chosen:
            carried[space] = np.array(pair.channels)
    pairs, weights = [], {}
    for pair in matching.pairs:
        block = spaces.blocks.get(pair.student)
        if block is None:
            pairs.append(pair)
            continue
        space = spaces.output(block)
        if space is not None and space in chosen:
            channels = tuple(int(channel) for channel in chosen[space])
            pair = replace(pair, channels=channels, evidence=Evidence.SELECTED, confidence=1.0)
        pairs.append(pair)
        if pair.channels is not None and not is_sparse(block.student.native):
            sliced = spaces.sliced(block, np.array(pair.channels), carried)
            if sliced is not None:
                weights[pair.student] = sliced
    for uses in find_uses([block.student for block in spaces.blocks.values()]).values():
        # Nodes that use the same weights start from the same ones, or from their own.
        found = [weights.get(use.name) for use in uses]
        if not all(found[0] and one and found[0].equals(one) for one in found):
            for use in uses:
                weights.pop(use.name, None)
    return Selection(Matching(tuple(pairs)), weights)
