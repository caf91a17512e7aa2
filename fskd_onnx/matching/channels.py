"""Teacher x student -> block pairs and channel pairs, or the reason why there is none.

Which block stands for which is found first (``fskd_onnx.matching.pairing``). Channels are then
matched block by block in the order of the student's nodes: which of the teacher's inputs a block
kept follows from the channels of earlier blocks (``fskd_onnx.matching.kept_inputs``), and its own
channels from comparing its rows of weights with the teacher's rows, cut down to these inputs
(``fskd_onnx.matching.row_matching``). A layer that was pruned on both sides is thus an exact slice
again. Where its own weights do not tell, another block of the same residual stream may, and else
activations have to (``channels_from_moments``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.linalg.moments import Moments
from fskd_onnx.matching.kept_inputs import KeptInputs
from fskd_onnx.matching.pairing import Partner, Similarity, pair_blocks
from fskd_onnx.matching.row_matching import Channels, assign, channels_from_weights
from fskd_onnx.matching.shared_blocks import SharedBlocks
from fskd_onnx.passes.analysis.coupled_channels import CoupledChannels
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.passes.analysis.propagation import propagate
from fskd_onnx.results import BlockPair, Evidence, Matching

__all__ = [
    "BlockPair",
    "Channels",
    "Matching",
    "channels_from_moments",
    "match_channels",
    "match_models",
    "uncertain",
]

# Below this a student's channel has no counterpart among the teacher's activations.
_ACTIVATIONS_AGREE = 0.2


def match_models(
    teacher: gs.Graph,
    student: gs.Graph,
    given: Mapping[str, Partner] | None = None,
    similarity: Similarity | None = None,
) -> Matching:
    """Pair the blocks of two canonical graphs and find the channels that the student kept.

    Args:
        teacher: the original network.
        student: the compressed network.
        given: pairs that are not to be questioned, by the name of the student's node.
        similarity: of activations, see ``fskd_onnx.matching.pairing.pair_blocks``.
    """
    return match_channels(teacher, student, pair_blocks(teacher, student, given, similarity))


def match_channels(
    teacher: gs.Graph,
    student: gs.Graph,
    partners: Sequence[Partner],
    known: Mapping[str, tuple[Channels, float]] | None = None,
) -> Matching:
    """Find the channels that the blocks of a student kept.

    Args:
        teacher: the original network, canonical.
        student: the compressed network, canonical.
        partners: of each of its linear nodes.
        known: channels that activations have decided, with their confidence, by the name of the
            student's node.
    """
    shared = SharedBlocks(student, teacher)
    alone = shared.refused
    while True:
        pairs = _match(teacher, student, partners, known or {}, alone)
        more = shared.why_left_alone(pairs)
        if not more:
            return Matching(tuple(shared.complete(pairs)))
        alone = alone | more


def _match(
    teacher: gs.Graph,
    student: gs.Graph,
    partners: Sequence[Partner],
    known: Mapping[str, tuple[Channels, float]],
    alone: Mapping[str, str],
) -> list[BlockPair]:
    """Match channels once; nodes that are left alone have their reason."""
    blocks = _Blocks(teacher, student, partners, known, alone)
    pairs = blocks.match({})
    if any(pair.channels is None and not pair.reason for pair in pairs):
        # Blocks of one residual stream carry the same channels, whichever of them was matched.
        of_spaces = {
            space: _SpaceChannels(np.array(pair.channels), pair.teacher_width)
            for pair in reversed(pairs)
            if pair.channels is not None and pair.teacher_width is not None
            if (space := blocks.space(pair.student)) is not None
        }
        pairs = blocks.match(of_spaces)
    return pairs


def channels_from_moments(moments: Moments) -> tuple[Channels, float]:
    """Find the teacher channel of each student channel from the correlation of their activations.

    Args:
        moments: of one group, with all channels of the teacher's block as targets.

    Returns:
        (n,) channels, each taken once, and the correlation of the least certain one.
    """
    return assign(moments.correlation()[0])


def uncertain(confidence: float) -> bool:
    """Whether activations say too little to align a block by them."""
    return confidence < _ACTIVATIONS_AGREE


@dataclass(frozen=True)
class _SpaceChannels:
    """The teacher's channels that a space of the student carries, out of how many."""

    channels: Channels
    teacher_width: int


class _Blocks:
    """The student's blocks with their partners, and the channels of both networks."""

    def __init__(
        self,
        teacher: gs.Graph,
        student: gs.Graph,
        partners: Sequence[Partner],
        known: Mapping[str, tuple[Channels, float]],
        alone: Mapping[str, str],
    ) -> None:
        order = {id(node): number for number, node in enumerate(student.nodes)}
        self._views = sorted(find_linear(student), key=lambda view: order[id(_last_node(view))])
        self._teacher = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
        self._partners = {partner.student: partner for partner in partners}
        self._known = known
        self._alone = alone
        linears = {view.name: view for view in self._views if isinstance(view, Linear)}
        self._flows = (
            propagate(teacher, self._teacher.values()),
            propagate(student, linears.values()),
        )
        self._spaces = CoupledChannels(self._flows[1])
        self._spaces.couple_uses(list(linears.values()))
        self._outputs = {name: view.output.name for name, view in linears.items()}
        carried = (self._spaces.carried(output.name) for output in student.outputs)
        self._of_outputs = frozenset[int]().union(*carried)

    def space(self, name: str) -> int | None:
        """Return the channel space that a block writes to; None for a block that is no linear."""
        return self._spaces.of_block(self._outputs[name]) if name in self._outputs else None

    def match(self, of_spaces: Mapping[int, _SpaceChannels]) -> list[BlockPair]:
        """Match channels, block by block in the order of nodes.

        Args:
            of_spaces: channels of some spaces, for blocks whose own weights do not tell.
        """
        kept = KeptInputs(*self._flows)
        pairs = []
        for view in self._views:
            pair = self._match(view, kept, of_spaces)
            pairs.append(pair)
            if isinstance(view, Linear) and pair.teacher is not None and pair.channels is not None:
                kept.add(view, self._teacher[pair.teacher], np.array(pair.channels))
        return pairs

    def _match(
        self, view: Linear | Refusal, kept: KeptInputs, of_spaces: Mapping[int, _SpaceChannels]
    ) -> BlockPair:
        if isinstance(view, Refusal):
            return _alone(view.name, str(view.node.op), view.reason)
        if view.name in self._alone:
            return _alone(view.name, view.op, self._alone[view.name])
        partner = self._partners[view.name]
        if partner.teacher is None:
            return _alone(view.name, view.op, partner.reason)
        teacher = self._teacher[partner.teacher]
        if view.width > teacher.width:
            reason = f"it is wider than the teacher's '{teacher.name}'"
            return _alone(view.name, view.op, reason)
        channels, evidence, confidence = self._channels(view, teacher, partner, kept, of_spaces)
        return BlockPair(
            student=view.name,
            op=view.op,
            teacher=partner.teacher,
            channels=None if channels is None else tuple(int(channel) for channel in channels),
            teacher_width=teacher.width,
            evidence=evidence,
            confidence=min(confidence, partner.confidence),
            reason="",
            paired_by=partner.evidence,
        )

    def _channels(
        self,
        view: Linear,
        teacher: Linear,
        partner: Partner,
        kept: KeptInputs,
        of_spaces: Mapping[int, _SpaceChannels],
    ) -> tuple[Channels | None, Evidence, float]:
        """Return the channels of a block, what they were found by, and how certain they are."""
        if partner.channels is not None:
            return np.array(partner.channels), Evidence.MAP, 1.0
        if view.name in self._known:
            channels, confidence = self._known[view.name]
            return channels, Evidence.ACTIVATIONS, confidence
        found = channels_from_weights(view, teacher, kept.inputs(view, teacher))
        space = self._spaces.of_block(view.output.name)
        same = np.arange(view.width) if view.width == teacher.width else None
        if same is not None and space in self._of_outputs:
            # Whoever reads the network's output counts on its order.
            agrees = found is not None and np.array_equal(found[0], same)
            return same, Evidence.WEIGHTS if agrees else Evidence.OUTPUT, 1.0
        if found is not None:
            return found[0], Evidence.WEIGHTS, found[1]
        if same is not None:
            return same, Evidence.WIDTH, 0.5
        of_space = of_spaces.get(space)
        if of_space is not None and of_space.teacher_width == teacher.width:
            return of_space.channels, Evidence.STREAM, 0.5
        return None, Evidence.ACTIVATIONS, 0.0


def _last_node(view: Linear | Refusal) -> gs.Node:
    return view.output.inputs[0] if isinstance(view, Linear) else view.node


def _alone(name: str, op: str, reason: str) -> BlockPair:
    return BlockPair(name, op, None, None, None, Evidence.NONE, 0.0, reason)
