"""Teacher x student -> block pairs and channel pairs, or the reason why there is none.

Which block stands for which is found first (``fskd_onnx.matching.pairing``). Channels are then
matched block by block in the order of the student's nodes: which of the teacher's inputs a block
kept follows from the channels of earlier blocks (``fskd_onnx.matching.kept_inputs``), and its own
channels from comparing its rows of weights with the teacher's rows, cut down to these inputs
(``fskd_onnx.matching.row_matching``). A layer that was pruned on both sides is thus an exact slice
again. Where its inputs are not known, rows and inputs of an exact slice are found together
(``fskd_onnx.matching.exact_slices``).

Where its own weights leave a doubt, all blocks of its residual stream count together, and the
blocks that read its channels, if these are exact slices. A block that is as wide as the teacher's
then has the teacher's channels in the teacher's order; of any other, activations have to tell
(``fskd_onnx.matching.channel_correlation``), or it is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.matching.assignment import Assignment, Channels
from fskd_onnx.matching.exact_slices import Slice, find_slice
from fskd_onnx.matching.kept_inputs import KeptInputs
from fskd_onnx.matching.pairing import Partner, Similarity, pair_blocks
from fskd_onnx.matching.row_matching import (
    LIMIT,
    RowEvidence,
    compare_rows,
    confidence_of,
    copies_of,
)
from fskd_onnx.matching.shared_blocks import SharedBlocks
from fskd_onnx.passes.analysis.coupled_channels import CoupledChannels
from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from fskd_onnx.passes.analysis.propagation import propagate
from fskd_onnx.results import BlockPair, Evidence, Matching

__all__ = [
    "BlockPair",
    "Channels",
    "Matching",
    "match_channels",
    "match_models",
]

# Of a block that is matched by another one, even beyond doubt, nothing of its own was seen.
_SURE_BY_OTHERS = 0.5
# What one block says of another may say more of a third one.
_MOST_ROUNDS = 4


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
    pairs = blocks.match()
    for _ in range(_MOST_ROUNDS):
        if not blocks.learn():
            break
        pairs = blocks.match()
    return pairs


@dataclass(frozen=True)
class _Found:
    """The channels of a block.

    Attributes:
        channels: (width,) the teacher's; None where activations have to tell.
        evidence: what they were found by.
        confidence: see ``BlockPair``.
    """

    channels: Channels | None
    evidence: Evidence
    confidence: float

    @property
    def is_guess(self) -> bool:
        """Whether neither weights nor activations nor a map told of this very block."""
        return self.evidence in (Evidence.WIDTH, Evidence.STREAM) or self.channels is None


@dataclass(frozen=True)
class _Compared:
    """What the weights of a block say, given the inputs that it kept."""

    inputs: Channels | None
    rows: RowEvidence | None
    exact: Slice | None


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
        self._linears = {view.name: view for view in self._views if isinstance(view, Linear)}
        self._flows = (
            propagate(teacher, self._teacher.values()),
            propagate(student, self._linears.values()),
        )
        self._spaces = CoupledChannels(self._flows[1])
        self._spaces.couple_uses(list(self._linears.values()))
        self._teacher_spaces = CoupledChannels(self._flows[0])
        self._teacher_spaces.couple_uses(list(self._teacher.values()))
        carried = (self._spaces.carried(output.name) for output in student.outputs)
        self._of_outputs = frozenset[int]().union(*carried)
        outputs = [linear.output.name for linear in self._linears.values()]
        self._blocks_in = Counter(map(self._spaces.of_block, outputs))
        self._kept = KeptInputs(*self._flows)
        self._compared: dict[str, _Compared] = {}
        self._found: dict[str, _Found] = {}
        # What other blocks say: those that read the channels, those of the same stream.
        self._of_readers: dict[str, Channels] = {}
        self._of_stream: dict[str, tuple[Channels, float]] = {}

    def match(self) -> list[BlockPair]:
        """Match channels, block by block in the order of nodes."""
        self._kept = KeptInputs(*self._flows)
        self._found = {}
        return [self._match(view) for view in self._views]

    def learn(self) -> bool:
        """Collect what blocks say about others; return whether that changes any."""
        streams: dict[tuple[int, int], list[str]] = {}
        for name in self._found:
            view, teacher = self._linears[name], self._partner(name)
            told = self._kept.of_readers(view, teacher)
            if told is not None:
                self._of_readers[name] = told
            streams.setdefault(self._stream(view, teacher), []).append(name)
        for names in streams.values():
            agreed = self._agreed(names)
            if agreed is not None:
                self._of_stream |= dict.fromkeys(names, agreed)
        return any(self._changes(name) for name, found in self._found.items() if found.is_guess)

    def _stream(self, view: Linear, teacher: Linear) -> tuple[int, int]:
        """Return the channel spaces, of both networks, that a block and its partner write to."""
        space = self._spaces.of_block(view.output.name)
        return space, self._teacher_spaces.of_block(teacher.output.name)

    def _agreed(self, names: Sequence[str]) -> tuple[Channels, float] | None:
        """Return the channels that blocks of one stream agree on, or that they tell together."""
        found = [self._found[name] for name in names]
        told = [f.channels for f in found if f.channels is not None and not f.is_guess]
        told += [self._of_readers[name] for name in names if name in self._of_readers]
        if told:
            agree = all(np.array_equal(channels, told[0]) for channels in told)
            return (told[0], _SURE_BY_OTHERS) if agree else None
        rows = [self._compared[name].rows for name in names if name in self._compared]
        doubtful = [part for part in rows if part is not None and part.cost is not None]
        if len(doubtful) < 2:
            return None
        best = reduce(RowEvidence.__add__, doubtful).best()
        return None if best.margin < LIMIT else (best.columns, confidence_of(best.margin))

    def _changes(self, name: str) -> bool:
        """Whether what others say of a block is not what it was taken for."""
        told = self._told_by_others(name)
        return told is not None and not _same(told.channels, self._found[name].channels)

    def _told_by_others(self, name: str) -> _Found | None:
        if name in self._of_readers:
            return _Found(self._of_readers[name], Evidence.WEIGHTS, 1.0)
        if name in self._of_stream:
            channels, confidence = self._of_stream[name]
            return _Found(channels, Evidence.STREAM, confidence)
        return None

    def _partner(self, name: str) -> Linear:
        return self._teacher[str(self._partners[name].teacher)]

    def _match(self, view: Linear | Refusal) -> BlockPair:
        if isinstance(view, Refusal):
            return _alone(view.name, str(view.node.op), view.reason)
        partner = self._partners[view.name]
        found, reason = None, partner.reason
        if partner.teacher is not None:
            teacher = self._teacher[partner.teacher]
            if view.width > teacher.width:
                reason = f"it is wider than the teacher's '{teacher.name}'"
            else:
                found = self._found[view.name] = self._channels(view, teacher, partner)
                if found.channels is not None:
                    self._kept.add(view, teacher, found.channels)
        if view.name in self._alone:
            # Its channels are followed all the same.
            return _alone(view.name, view.op, self._alone[view.name])
        if found is None:
            return _alone(view.name, view.op, reason)
        channels = found.channels
        return BlockPair(
            student=view.name,
            op=view.op,
            teacher=partner.teacher,
            channels=None if channels is None else tuple(int(channel) for channel in channels),
            teacher_width=teacher.width,
            evidence=found.evidence,
            confidence=min(found.confidence, partner.confidence),
            reason="",
            paired_by=partner.evidence,
        )

    def _channels(self, view: Linear, teacher: Linear, partner: Partner) -> _Found:
        """Return the channels of a block, what they were found by, and how certain they are."""
        if partner.channels is not None:
            return _Found(np.array(partner.channels), Evidence.MAP, 1.0)
        if view.name in self._known:
            channels, confidence = self._known[view.name]
            return _Found(channels, Evidence.ACTIVATIONS, confidence)
        best = self._from_weights(view, teacher)
        is_sure = best is not None and best.margin >= LIMIT
        same = np.arange(view.width) if view.width == teacher.width else None
        if self._has_order_of_outputs(view, teacher):
            agrees = best is not None and is_sure and _same(best.columns, same)
            return _Found(same, Evidence.WEIGHTS if agrees else Evidence.OUTPUT, 1.0)
        if best is not None and is_sure:
            return _Found(best.columns, Evidence.WEIGHTS, confidence_of(best.margin))
        told = self._told_by_others(view.name)
        if told is not None and (told.confidence == 1 or not _same(told.channels, same)):
            return told
        if same is not None and (
            best is None or (best.columns == same)[best.margins >= LIMIT].all()
        ):
            return _Found(same, Evidence.WIDTH, 0.5)
        return _Found(None, Evidence.ACTIVATIONS, 0.0)

    def _has_order_of_outputs(self, view: Linear, teacher: Linear) -> bool:
        """Whether a block gives all channels of an output, on whose order its readers count."""
        space = self._spaces.of_block(view.output.name)
        return view.width == teacher.width and space in self._of_outputs

    def _from_weights(self, view: Linear, teacher: Linear) -> Assignment | None:
        """Return what the weights of a block say, and note what they say of its inputs."""
        compared = self._compare(view, teacher)
        if compared.exact is not None:
            channels = compared.exact.channels
            self._kept.add_inputs(view, teacher, compared.exact.inputs)
            return RowEvidence(channels).best()
        if compared.rows is None:
            return None
        best = compared.rows.best()
        if best.margin < LIMIT and self._blocks_in[self._spaces.of_block(view.output.name)] == 1:
            # Which of several equal rows it is makes no difference to any other block.
            return compared.rows.best(copies_of(teacher))
        return best

    def _compare(self, view: Linear, teacher: Linear) -> _Compared:
        """Compare the weights of a block with its partner's, anew only for other inputs."""
        inputs = self._kept.inputs(view, teacher)
        before = self._compared.get(view.name)
        if before is None or not _same(before.inputs, inputs):
            in_doubt = not self._has_order_of_outputs(view, teacher)
            rows = compare_rows(view, teacher, inputs, with_noise=in_doubt)
            exact = None if rows is not None and rows.is_exact else find_slice(view, teacher)
            before = self._compared[view.name] = _Compared(inputs, rows, exact)
        return before


def _same(one: Channels | None, other: Channels | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _last_node(view: Linear | Refusal) -> gs.Node:
    return view.output.inputs[0] if isinstance(view, Linear) else view.node


def _alone(name: str, op: str, reason: str) -> BlockPair:
    return BlockPair(name, op, None, None, None, Evidence.NONE, 0.0, reason)
