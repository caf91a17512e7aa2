"""Teacher x student -> block pairs and channel pairs, or the reason why there is none.

Which block stands for which is found first (``fskd_onnx.matching.pairing``). Channels are then
followed through the student in the order of its nodes: which of the teacher's channels a tensor
carries is known for the inputs (all of them), stays the same through whatever works channel by
channel, and is found anew at each linear node by comparing its rows with the teacher's rows, cut
down to the channels that the node's input carries (``fskd_onnx.matching.row_matching``). A layer
that was pruned on both sides is thus an exact slice again. Where its own weights do not say it,
another block of the same residual stream may, and else activations have to
(``channels_from_moments``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.linalg.moments import Moments
from fskd_onnx.matching.pairing import Partner, Similarity, pair_blocks
from fskd_onnx.matching.row_matching import Channels, KeptChannels, assign, channels_from_weights
from fskd_onnx.passes.analysis.coupled_channels import CoupledChannels, find_coupled_channels
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.results import BlockPair, Matching

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

_MERGES = {"Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Mean"}
_PERMUTES_CHANNELS = {"Transpose", "Gather", "Slice", "Split", "DepthToSpace", "SpaceToDepth"}


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
    blocks = _Blocks(teacher, student, partners, known or {})
    pairs = blocks.follow({})
    if any(pair.channels is None and not pair.reason for pair in pairs):
        # Blocks of one stream carry the same channels, whichever of them tells which.
        told = {
            space: KeptChannels(np.array(pair.channels), pair.teacher_width)
            for pair in reversed(pairs)
            if pair.channels is not None and pair.teacher_width is not None
            for space in blocks.space(pair.student)
        }
        pairs = blocks.follow(told)
    return Matching(tuple(pairs))


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


class _Blocks:
    """The student's blocks with their partners, and channels on their way through it."""

    def __init__(
        self,
        teacher: gs.Graph,
        student: gs.Graph,
        partners: Sequence[Partner],
        known: Mapping[str, tuple[Channels, float]],
    ) -> None:
        self._nodes = student.nodes
        self._views = find_linear(student)
        self._teacher = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
        self._partners = {partner.student: partner for partner in partners}
        self._known = known
        linears = {v.name: v for v in self._views if isinstance(v, Linear)}
        self._spaces: CoupledChannels = find_coupled_channels(student, linears)
        self._outputs = {name: view.output.name for name, view in linears.items()}
        layouts = [self._spaces.layout(output.name) for output in student.outputs]
        self._given_out = {space for layout in layouts if layout for space in layout}

    def space(self, name: str) -> tuple[int, ...]:
        """Return the channel space that a block writes to, if it writes to one."""
        layout = self._spaces.layout(self._outputs[name]) if name in self._outputs else None
        return layout if layout is not None and len(layout) == 1 else ()

    def follow(self, told: Mapping[int, KeptChannels]) -> list[BlockPair]:
        """Follow the channels from node to node.

        Args:
            told: channels of some spaces, for blocks whose own weights do not tell.
        """
        views = {id(_last_node(view)): view for view in self._views}
        kept: dict[int, KeptChannels] = {}
        pairs = []
        for node in self._nodes:
            view = views.get(id(node))
            if view is None:
                carried = _carry(node, kept)
            else:
                pair = self._match(view, kept, told)
                pairs.append(pair)
                carried = None
                if pair.channels is not None and pair.teacher_width is not None:
                    carried = KeptChannels(np.array(pair.channels), pair.teacher_width)
            if carried is not None:
                kept |= {id(tensor): carried for tensor in node.outputs}
        return pairs

    def _match(
        self,
        view: Linear | Refusal,
        kept: Mapping[int, KeptChannels],
        told: Mapping[int, KeptChannels],
    ) -> BlockPair:
        if isinstance(view, Refusal):
            return _alone(view.name, str(view.node.op), view.reason)
        if view.shared_with is not None:
            reason = f"its weights are also those of '{view.shared_with}'"
            return _alone(view.name, view.op, reason)
        partner = self._partners[view.name]
        if partner.teacher is None:
            return _alone(view.name, view.op, partner.reason)
        teacher = self._teacher[partner.teacher]
        if view.width > teacher.width:
            reason = f"it is wider than the teacher's '{teacher.name}'"
            return _alone(view.name, view.op, reason)
        channels, evidence, confidence = self._channels(view, teacher, partner, kept, told)
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
        kept: Mapping[int, KeptChannels],
        told: Mapping[int, KeptChannels],
    ) -> tuple[Channels | None, str, float]:
        """Return the channels of a block, what tells them, and how certain they are."""
        if partner.channels is not None:
            return np.array(partner.channels), "map", 1.0
        if view.name in self._known:
            channels, confidence = self._known[view.name]
            return channels, "activations", confidence
        found = channels_from_weights(view, teacher, kept.get(id(view.input)))
        spaces = self.space(view.name)
        same = np.arange(view.width) if view.width == teacher.width else None
        if same is not None and self._given_out & set(spaces):
            # Whoever reads the network's output counts on its order.
            told_by = "output" if found is None or (found[0] != same).any() else "weights"
            return same, told_by, 1.0
        if found is not None:
            return found[0], "weights", found[1]
        if same is not None:
            return same, "width", 0.5
        for space in spaces:
            of_stream = told.get(space)
            if of_stream is not None and of_stream.total == teacher.width:
                return of_stream.channels, "stream", 0.5
        return None, "activations", 0.0


def _last_node(view: Linear | Refusal) -> gs.Node:
    return view.output.inputs[0] if isinstance(view, Linear) else view.node


def _alone(name: str, op: str, reason: str) -> BlockPair:
    return BlockPair(name, op, None, None, None, "", 0.0, reason)


def _carry(node: gs.Node, kept: Mapping[int, KeptChannels]) -> KeptChannels | None:
    """Return the teacher channels that the outputs of a node carry, where its inputs tell."""
    inputs = [kept.get(id(t)) for t in node.inputs if not isinstance(t, gs.Constant)]
    if not inputs or node.op in _PERMUTES_CHANNELS:
        return None
    if node.op == "Concat":
        return _concatenate(node, inputs)
    if node.op in _MERGES:
        # A gate of one channel (squeeze-and-excitation) carries as many as what it scales.
        return max(filter(None, inputs), key=lambda carried: carried.total, default=None)
    return inputs[0]


def _concatenate(node: gs.Node, inputs: list[KeptChannels | None]) -> KeptChannels | None:
    if node.attrs.get("axis") != 1 or any(carried is None for carried in inputs):
        return None
    parts, total = [], 0
    for carried in filter(None, inputs):
        parts.append(total + carried.channels)
        total += carried.total
    return KeptChannels(np.concatenate(parts), total)
