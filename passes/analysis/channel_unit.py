"""A unit of channels: which stay and which go is one choice for all of them.

The channels of a unit are numbered 0, 1, ...; ``members`` says which of them each channel of a
writer is. Mostly it is the one of the same number. Several channels of one writer are one of the
unit where none can go without the others: in front of a channel shuffle or of a DepthToSpace,
behind a depthwise convolution that makes several channels of each, in a gated linear unit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ChannelUnit:
    """Channels that are chosen together.

    Attributes:
        name: of the first linear node, in the order of the graph, that writes them.
        writers: names of the linear nodes whose outputs they are.
        readers: names of the linear nodes that read any of them. One that filters each of them on
            its own (depthwise) is a reader and a writer.
        width: how many there are to choose from.
        groups: they are as many runs of equal length, of each of which equally many have to stay; 1
            where any may stay.
        reason: why none of them can go; empty where some can.
        members: by writer, for each of its channels, which of the unit's it is.
        parts: sets of the unit's channels, of each of which one at least has to stay; those that
            ``groups`` does not see to.
    """

    name: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    groups: int
    reason: str
    members: Mapping[str, tuple[int, ...]] = field(repr=False)
    parts: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    @property
    def run(self) -> int:
        """Length of the runs of which equally many have to stay."""
        return self.width // self.groups

    def best(self, scores: NDArray[np.floating], count: int) -> tuple[int, ...]:
        """Return the channels with the highest scores that can be the ones that stay, ascending.

        Args:
            scores: (width,).
            count: how many; taken for the next number that is allowed, of those below it where
                there is one.
        """
        scores = np.asarray(scores)
        needed = np.zeros(self.width, bool)
        for part in self.parts:
            if not needed[[*part]].any():
                needed[max(part, key=lambda channel: scores[channel])] = True
        by_run = needed.reshape(self.groups, -1)
        each = max(1, count // self.groups, int(by_run.sum(axis=1).max()))
        order = np.lexsort((-scores.reshape(self.groups, -1), ~by_run))[:, :each]
        kept = order + np.arange(self.groups)[:, np.newaxis] * self.run
        return tuple(np.sort(kept.reshape(-1)).tolist())

    def why_not(self, kept: Collection[int]) -> str:
        """Return why these channels cannot be the ones that stay, or nothing.

        Args:
            kept: of ``range(width)``, ascending.
        """
        if list(kept) != sorted(set(kept)) or not set(kept) <= set(range(self.width)):
            return f"they are not numbers of 0..{self.width - 1}, ascending"
        if not kept:
            return "one at least has to stay"
        if len(kept) == self.width:
            return ""
        if self.reason:
            return f"none of them can go: {self.reason}"
        counts = np.bincount(np.array([*kept]) // self.run, minlength=self.groups)
        if len(set(counts.tolist())) > 1:
            return f"as many have to stay of each {self.run} in a row"
        for part in self.parts:
            if not set(part) & set(kept):
                some = ", ".join(map(str, part[:5])) + (", ..." if len(part) > 5 else "")
                return f"one at least of {some} has to stay, for a node takes these alone"
        return ""

    def rows(self, writer: str, kept: Collection[int]) -> tuple[int, ...]:
        """Return the channels of a writer that stay, ascending.

        Args:
            writer: one of the ``writers``.
            kept: the unit's channels that stay.
        """
        stay = set(kept)
        return tuple(row for row, member in enumerate(self.members[writer]) if member in stay)
