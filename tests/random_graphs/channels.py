"""Channels of a teacher, which of them a student keeps, and the tensors that carry them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]


class Layout(Enum):
    """Where samples (N), channels (C) and positions (P, T) are."""

    VECTOR = auto()
    """[N, C]"""
    SPATIAL = auto()
    """[N, C, P...]"""
    TOKENS = auto()
    """[N, T, C]"""
    TIME_FIRST = auto()
    """[T, N, C]"""
    CONSTANT = auto()
    """[1, C], the same for all samples"""


@dataclass(frozen=True)
class Tensor:
    """An activation of the network that is written.

    Attributes:
        name: in the graph.
        layout: of its axes.
        ids: the channel of each of the teacher's positions; what is coupled has one id.
        kept: the teacher's position of each channel that is there, in this order.
        extents: of its positions.
        pieces: where a student's channels may be cut: 0 anywhere, 2 into halves, 1 nowhere.
    """

    name: str
    layout: Layout
    ids: Ints
    kept: Ints
    extents: tuple[int, ...] = ()
    pieces: int = 0

    @property
    def width(self) -> int:
        """Number of channels that are there."""
        return len(self.kept)

    @property
    def axis(self) -> int:
        """Axis that counts channels."""
        return 1 if self.layout in (Layout.VECTOR, Layout.SPATIAL) else 2

    def can_be_cut(self, pieces: int) -> bool:
        """Whether equal pieces of the teacher's channels are pieces of the student's."""
        return len(self.ids) % pieces == 0 and len(self.ids) > pieces and self.pieces in (0, pieces)

    def named(self, name: str, extents: tuple[int, ...] | None = None) -> Tensor:
        """Give another tensor of the same channels."""
        return replace(self, name=name, extents=self.extents if extents is None else extents)


@dataclass
class Channels:
    """Ids of all channels, and what has to hold of those that are kept.

    Attributes:
        count: number of ids.
        fixed: ids that no student goes without.
        equal: sets of groups of which as many have to stay each, at least one.
    """

    count: int = 0
    fixed: set[int] = field(default_factory=set)
    equal: list[list[Ints]] = field(default_factory=list)

    def fresh(self, width: int) -> Ints:
        """Give new ids."""
        self.count += width
        return np.arange(self.count - width, self.count)

    def ordered(self) -> set[int]:
        """Give the ids whose order matters."""
        return self.fixed | {int(i) for groups in self.equal for ids in groups for i in ids}

    def draw_kept(self, rng: np.random.Generator, spaces: Sequence[Ints]) -> set[int]:
        """Draw the ids that stay, from each of some sets of ids at least one."""
        for share in (rng.uniform(0.4, 0.9), 0.7, 0.85):
            keep = rng.random(self.count) < share
            keep[list(self.fixed)] = True
            for ids in spaces:
                keep[rng.choice(ids)] = True
            if self._made_equal(keep, rng):
                return set(np.flatnonzero(keep).tolist())
        return set(range(self.count))

    def _made_equal(self, keep: NDArray[np.bool_], rng: np.random.Generator) -> bool:
        """Take channels away until all groups are equal; tell whether all of it was possible."""
        for _ in range(20):
            before = keep.copy()
            for groups in self.equal:
                least = min(int(keep[ids].sum()) for ids in groups)
                for ids in groups:
                    there = rng.permutation(ids[keep[ids]])
                    keep[there[least:]] = False
            if (before == keep).all():
                return bool(keep[list(self.fixed)].all()) and all(
                    keep[ids].any() for groups in self.equal for ids in groups
                )
        return False
