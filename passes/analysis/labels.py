"""Which channels a tensor carries: a label for every element along its channel axes.

A label is the number of a channel, out of all channels of all blocks of a network, and a position,
which tells apart the elements that come from one channel where axes were flattened::

    Conv ─▶ (N, 3, 2, 2)   channels 7 8 9                    axis 1
    Flatten ─▶ (N, 12)     channels 7 7 7 7 8 8 8 8 9 9 9 9  axis 1
                           positions 0 1 2 3 0 1 2 3 0 1 2 3

Operators that move elements move their labels, by the same arithmetic of indices. Labels have the
rank of their tensor, and the extent 1 along axes where they do not differ. A method returns None
where it cannot be told where the labels go: never a wrong label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.shapes import Shape

Indices = NDArray[np.intp]

UNKNOWN = -1
"""The number of a channel that is not known, or of what is no channel of a block."""

# Labels that differ along positions (DepthToSpace) are followed up to here.
_MOST_LABELS = 2**22
# Stand for extents that are not known, of two shapes; no product of others is a multiple of one.
_PRIMES = (2**61 - 1, 2**89 - 1)


@dataclass(frozen=True)
class Labels:
    """The labels of a tensor, see the module's docstring.

    Attributes:
        channels: numbers of channels.
        positions: of the same shape.
        axes: along which the labels may differ.
    """

    channels: Indices
    positions: Indices
    axes: frozenset[int]

    @staticmethod
    def along(numbers: Indices, rank: int, axis: int) -> Labels:
        """Label the channels along one axis of a tensor."""
        channels = numbers.reshape([-1 if a == axis else 1 for a in range(rank)])
        return Labels(channels, np.zeros_like(channels), frozenset({axis}))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, 1 along axes where labels do not differ."""
        return self.channels.shape

    @property
    def rank(self) -> int:
        """Number of axes of the tensor."""
        return self.channels.ndim

    def of_rank(self, rank: int) -> Labels:
        """Add axes in front, as broadcasting does."""
        more = rank - self.rank
        if more <= 0:
            return self
        axes = frozenset(axis + more for axis in self.axes)
        return self._map(lambda part: part.reshape((1,) * more + part.shape), axes)

    def transposed(self, order: Sequence[int]) -> Labels:
        """Put axes into another order."""
        axes = frozenset(new for new, old in enumerate(order) if old in self.axes)
        return self._map(lambda part: part.transpose(order), axes)

    def taken(self, axis: int, indices: Indices) -> Labels:
        """Take elements along an axis; all if their labels do not differ along it."""
        if axis not in self.axes:
            return self
        return self._map(lambda part: part.take(indices, axis), self.axes)

    def padded(self, axis: int, front: int, behind: int) -> Labels:
        """Add elements of no channel at both ends of an axis; negative numbers take some away."""
        if axis not in self.axes:
            return self
        extent = self.shape[axis]
        kept = self.taken(axis, np.arange(max(0, -front), extent - max(0, -behind)))
        widths = [(0, 0)] * self.rank
        widths[axis] = max(0, front), max(0, behind)
        return Labels(
            np.pad(kept.channels, widths, constant_values=UNKNOWN),
            np.pad(kept.positions, widths),
            self.axes,
        )

    def with_axes(self, axes: Collection[int]) -> Labels:
        """Insert axes of extent 1, at places in the result."""
        rest = [axis for axis in range(self.rank + len(axes)) if axis not in axes]
        moved = frozenset(rest[axis] for axis in self.axes)
        return self._map(lambda part: np.expand_dims(part, tuple(axes)), moved)

    def without_axes(self, axes: Collection[int]) -> Labels | None:
        """Remove axes; None if labels differ along them."""
        if self.axes & set(axes):
            return None
        return self._removed(axes)

    def at_single(self, axis: int) -> Labels:
        """Remove an axis of extent 1, be it that labels may differ along it."""
        return Labels(self.channels, self.positions, self.axes - {axis})._removed([axis])

    def reshaped(self, old: Shape, new: Shape, same: int = 0) -> Labels | None:
        """Give the tensor another shape.

        Args:
            old: its shape.
            new: the new one.
            same: how many of the first axes are known to stay, even if their extents are not known.
        """
        old, new = _resolved(old, new), _resolved(new, old)
        while same < min(len(old), len(new)) and old[same] == new[same] is not None:
            same += 1
        if all(axis < same for axis in self.axes):
            kept = (*self.shape[:same], *[1] * (len(new) - same))
            return self._map(lambda part: part.reshape(kept), self.axes)
        labels: Labels | None = self
        shape, axes = list(self.shape[:same]), [axis for axis in self.axes if axis < same]
        for before, after in _groups(old, new, same):
            if not self.axes & set(before):
                shape += [1] * len(after)
                continue
            kept = tuple(extent for axis in after if (extent := new[axis]) is not None)
            if len(kept) < len(after):
                return None
            extents = {axis: old[axis] for axis in before}
            labels = None if labels is None else labels._expanded(extents)
            shape += kept
            axes += after
        if labels is None or len(shape) < len(new):
            return None
        result = labels._map(lambda part: part.reshape(shape), frozenset(axes))
        return result if len(axes) == 1 else result._collapsed()

    def concatenated(self, others: Sequence[Labels], axis: int) -> Labels | None:
        """Append others along an axis; None unless all have the same labels' axes."""
        parts = [self, *others]
        if any(part.axes != self.axes for part in parts) or axis not in self.axes:
            return None
        shapes = {part.shape[:axis] + part.shape[axis + 1 :] for part in parts}
        if len(shapes) > 1:
            return None
        return Labels(
            np.concatenate([part.channels for part in parts], axis),
            np.concatenate([part.positions for part in parts], axis),
            self.axes,
        )

    def along_axis(self, axis: int, extent: int) -> Indices | None:
        """Return channels and positions of each element of an axis, (2, extent, labels of each).

        None if the extent is another, or labels do not differ along this axis.
        """
        if axis not in self.axes or self.shape[axis] != extent:
            return None
        first = [axis, *(a for a in range(self.rank) if a != axis)]
        parts = (self.channels, self.positions)
        return np.array([part.transpose(first).reshape(extent, -1) for part in parts])

    def _removed(self, axes: Collection[int]) -> Labels:
        rest = [axis for axis in range(self.rank) if axis not in axes]
        moved = frozenset(rest.index(axis) for axis in self.axes)
        return self._map(lambda part: part.squeeze(tuple(axes)), moved)

    def _expanded(self, extents: Mapping[int, int | None]) -> Labels | None:
        """Repeat labels along axes to their full extents, and count the positions."""
        shape = [extents.get(axis, extent) for axis, extent in enumerate(self.shape)]
        known = [extent for extent in shape if extent is not None]
        if len(known) < len(shape) or math.prod(known) > _MOST_LABELS:
            return None
        positions = self.positions
        for axis in extents.keys() - self.axes:
            along = [-1 if a == axis else 1 for a in range(self.rank)]
            positions = positions * known[axis] + np.arange(known[axis]).reshape(along)
        channels, positions = (np.broadcast_to(p, known) for p in (self.channels, positions))
        return Labels(channels, positions, self.axes)

    def _collapsed(self) -> Labels:
        """Drop axes along which the channel is the same everywhere."""
        labels = self
        for axis in sorted(self.axes):
            first = labels.channels.take([0], axis)
            if len(labels.axes) > 1 and (labels.channels == first).all():
                labels = Labels(first, labels.positions.take([0], axis), labels.axes - {axis})
        return labels

    def _map(self, change: Callable[[Indices], Indices], axes: frozenset[int]) -> Labels:
        return Labels(change(self.channels), change(self.positions), axes)


def _resolved(shape: Shape, other: Shape) -> Shape:
    """Fill in the only unknown extent of a shape from another shape of as many elements."""
    known = math.prod(extent for extent in shape if extent is not None)
    if shape.count(None) != 1 or None in other or not known:
        return shape
    missing = math.prod(extent for extent in other if extent is not None) // known
    return tuple(missing if extent is None else extent for extent in shape)


def _groups(old: Shape, new: Shape, same: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest groups of axes that become groups of axes of the new shape.

    Those in front of axis ``same`` are left out. They are found from the first axis on, then from
    the last one back; what is left between, where extents are not known, is one group: the samples
    and positions of (N, T, C) are the rows of (M, C). Yields nothing where it cannot be told.
    """
    shapes = old[same:], new[same:]
    known = [math.prod(extent for extent in shape if extent is not None) for shape in shapes]
    unknown = [shape.count(None) for shape in shapes]
    least = min((extent for shape in shapes for extent in shape if extent is not None), default=1)
    one_extent = known[0] == known[1] and max(unknown) <= 1
    if least < 1 or (unknown == [0, 0] and not one_extent):
        return
    stand_ins = _PRIMES[:1] * 2 if one_extent else _PRIMES
    before, after = (
        [prime if extent is None else extent for extent in shape]
        for prime, shape in zip(stand_ins, shapes, strict=True)
    )
    whole = len(before), len(after)
    cuts = [(0, 0), *_cuts(before, after)]
    i, j = cuts[-1]
    if i == whole[0] or j == whole[1]:
        cuts[1:] = cuts[1:-1]  # what is left has the extent 1
    else:
        behind = _cuts(before[i:][::-1], after[j:][::-1])
        cuts += [(whole[0] - k, whole[1] - m) for k, m in behind][::-1]
    for (i, j), (k, m) in itertools.pairwise([*cuts, whole]):
        yield list(range(same + i, same + k)), list(range(same + j, same + m))


def _cuts(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield after how many axes of two shapes these have had as many elements, each the least."""
    i = j = 0
    sizes = [1, 1]
    while i < len(before) and j < len(after):
        i, j, sizes = i + 1, j + 1, [before[i], after[j]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1] and i < len(before):
                i, sizes[0] = i + 1, sizes[0] * before[i]
            elif sizes[1] < sizes[0] and j < len(after):
                j, sizes[1] = j + 1, sizes[1] * after[j]
            else:
                return
        yield i, j
