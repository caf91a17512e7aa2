"""Blocks of several nodes that use the same weights: when they can be fitted together.

Each use has a partner of its own, be it one of the uses of a block of the teacher or a block by
itself. The same weights carry the same channels, so all uses have to agree on these; and all of
them are fitted at once, so the inputs of none may depend on the outputs of another. Where something
is missing, the whole block is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.analysis.segments import ancestors
from fskd_onnx.passes.analysis.shared_weights import find_uses, who_else_reads
from fskd_onnx.passes.fold_affine import affine_behind
from fskd_onnx.results import BlockPair, Evidence

# Of scales and shifts, which a student keeps with its channels.
_CLOSE = 1e-4

Reasons = dict[str, str]
"""Why nodes are left alone, by name."""


class SharedBlocks:
    """The blocks of a student that have several uses.

    Attributes:
        uses: of each, in the order of its nodes.
        refused: nodes whose weights are read by others that are no uses, with the reason.
    """

    def __init__(self, student: gs.Graph, teacher: gs.Graph) -> None:
        """Find them in a canonical graph, to be matched with that of the teacher."""
        self._graphs = student, teacher
        self._in_bodies = nodes_in_bodies(student), nodes_in_bodies(teacher)
        self._linears = {v.name: v for v in find_linear(student) if isinstance(v, Linear)}
        self._teacher = {v.output.name: v for v in find_linear(teacher) if isinstance(v, Linear)}
        views = list(self._linears.values())
        found = find_uses(views)
        self.uses = [uses for name, uses in found.items() if len(uses) > 1 and uses[0].name == name]
        self.refused: Reasons = {
            view.name: f"its weights {who_else_reads(view, views)}"
            for view in views
            if view.name not in found
        }

    def why_left_alone(self, pairs: Sequence[BlockPair]) -> Reasons:
        """Return the nodes of these pairs that cannot be fitted after all, each with the reason."""
        found = {pair.student: pair for pair in pairs}
        reasons = {
            pair.student: why
            for pair in pairs
            if pair.teacher is not None and (why := self._why_not_comparable(pair))
        }
        whole = []
        for uses in self.uses:
            of_uses = [found[use.name] for use in uses]
            if all(pair.reason for pair in of_uses):
                continue
            more = _disagreement(of_uses, reasons)
            reasons |= more
            if not more:
                whole.append(uses)
        return reasons | _why_not_in_one_pass(whole)

    def complete(self, pairs: Sequence[BlockPair]) -> list[BlockPair]:
        """Return pairs with what is known of all uses of their block.

        That is which use is the first, and the channels that another one was matched with.
        """
        first = {use.name: uses[0].name for uses in self.uses for use in uses}
        pairs = [replace(pair, first_use=first.get(pair.student, "")) for pair in pairs]
        known = {pair.student: pair for pair in pairs if pair.channels is not None}
        others = {
            use.name: known[other.name]
            for uses in self.uses
            for use in uses
            for other in reversed(uses)
            if other.name in known
        }
        return [
            pair
            if pair.channels is not None or pair.reason or pair.student not in others
            else replace(
                pair,
                channels=others[pair.student].channels,
                evidence=Evidence.STREAM,
                confidence=min(pair.confidence or 1.0, others[pair.student].confidence),
            )
            for pair in pairs
        ]

    def _why_not_comparable(self, pair: BlockPair) -> str:
        """Return how the outputs of two blocks differ that stand for each other; "" if they do not.

        An affine map per channel that differs from use to use stays behind weights that several
        nodes read, where it is folded into others.
        """
        views = self._linears[pair.student], self._teacher[str(pair.teacher)]
        if all(view.shared_with is None for view in views):
            return ""
        mine, theirs = map(affine_behind, self._graphs, views, self._in_bodies)
        if mine is None and theirs is None:
            return ""
        if mine is None or theirs is None:
            return "a scale or shift per channel follows it in one of the networks only"
        channels = pair.channels
        if channels is None and views[0].width == views[1].width:
            channels = tuple(range(views[0].width))
        if channels is not None and all(
            np.allclose(own, other[list(channels)], rtol=_CLOSE, atol=_CLOSE * np.abs(own).max())
            for own, other in ((mine.matrix, theirs.matrix), (mine.shift, theirs.shift))
        ):
            return ""
        return "the scale or shift per channel that follows it is not that of the teacher's"


def _disagreement(pairs: Sequence[BlockPair], reasons: Reasons) -> Reasons:
    """Return why the uses of a block cannot be fitted together; nothing where they can.

    Args:
        pairs: of the uses.
        reasons: why some of them are left alone, besides the reasons of the pairs.
    """
    own = {p.student: p.reason or reasons.get(p.student, "") for p in pairs}
    alone = next((name for name, reason in own.items() if reason), None)
    if alone is not None:
        why = f"which is left alone: {own[alone]}"
        return {name: _with(alone, why) for name, reason in own.items() if not reason}
    first = pairs[0]
    for other in pairs[1:]:
        why = ""
        if first.teacher_width != other.teacher_width:
            why = "and their partners have different widths"
        elif None not in (first.channels, other.channels) and first.channels != other.channels:
            why = "and they seem to have kept different channels of their partners"
        if why:
            return {p.student: _with((other if p is first else first).student, why) for p in pairs}
    return {}


def _why_not_in_one_pass(blocks: Sequence[tuple[Linear, ...]]) -> Reasons:
    """Return the uses of blocks that would have to be fitted before themselves."""
    ends = {id(use.node): block for block, uses in enumerate(blocks) for use in uses}
    needed = {
        block: {ends[id(n)] for n in ancestors([use.input for use in uses]) if id(n) in ends}
        for block, uses in enumerate(blocks)
    }
    reasons: Reasons = {}
    while circle := next((found for block in needed if (found := _circle(block, needed))), None):
        block, *others = circle
        names = [use.name for use in blocks[block]]
        why = "and one of them depends on what the other gives"
        if others:
            why = f"and '{blocks[others[0]][0].name}' both depends on them and they on it"
        for name in names:
            other = next(one for one in names if one != name)
            reasons[name] = _with(other, f"{why}, so that they cannot be fitted in one pass")
        del needed[block]
    return reasons


def _circle(block: int, needed: Mapping[int, set[int]]) -> list[int]:
    """Return blocks by which one depends on itself, that one first; none where it does not."""
    pending = [[block]]
    seen: set[int] = set()
    while pending:
        path = pending.pop()
        for one in sorted(needed.get(path[-1], ())):
            if one == block:
                return path
            if one in needed and one not in seen:
                seen.add(one)
                pending.append([*path, one])
    return []


def _with(other: str, why: str) -> str:
    return f"its weights are also those of '{other}', {why}"
