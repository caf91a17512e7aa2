"""How the samples of a batch lie in a tensor, found by comparing two runs that share samples.

A tensor of a batch of N samples holds them along one axis, as one row each or as several::

    (N, 5, 6)      axis 0, one row                    (5, N, 6)      axis 1, one row
    (N * 16, 5)    axis 0, 16 rows, sample by sample  (16 * N, 5)    the same, interleaved

Shapes of two runs say which axes are possible; the values of samples that both runs have in common
say which of them it is. The second run has these samples in another place and beside others. So
whatever mixes samples does not pass, nor does what looks like an axis of samples by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Squared difference of what should be the same values, relative to how much samples differ.
_SAME = 1e-3
# Where scales of activations are taken from the batch, values depend on what else is in it.
_SAME_IF_QUANTIZED = 0.1
# Rounding in another order, in units of the type's epsilon.
_ROUNDING = 32
# What is looked at to see how much samples differ.
_MOST_COMPARED = 4


@dataclass(frozen=True)
class SampleAxis:
    """Where the samples lie in a tensor.

    Attributes:
        axis: along which axis.
        rows: how many rows on this axis belong to a sample.
        interleaved: whether the rows of a sample are as far apart as there are samples; else they
            stand one behind another.
    """

    axis: int = 0
    rows: int = 1
    interleaved: bool = False

    @property
    def is_first(self) -> bool:
        """Whether samples follow each other along the first axis, with all of their rows."""
        return self.axis == 0 and not self.interleaved

    def first(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor with the rows of one sample after the other along its first axis."""
        moved = np.moveaxis(tensor, self.axis, 0) if tensor.ndim else tensor.reshape(1)
        if not self.interleaved:
            return moved
        apart = moved.reshape(self.rows, -1, *moved.shape[1:])
        return apart.swapaxes(0, 1).reshape(moved.shape)

    def by_sample(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor as (samples, ...), the rows of a sample on an axis of their own."""
        first = self.first(tensor)
        return first if self.rows == 1 else first.reshape(-1, self.rows, *first.shape[1:])


class Failing(Enum):
    """Why a tensor does not hold a batch sample by sample."""

    CONSTANT = "it is the same for all samples"
    ROWS_FROM_DATA = "the number of its rows depends on the data"
    MIXED = "it does not keep the samples of a batch apart"
    NO_NUMBERS = "it holds no numbers"


FoundAxis: TypeAlias = SampleAxis | Failing
"""Where the samples lie, or why they do not."""


@dataclass(frozen=True)
class Runs:
    """Two runs of one network, by the samples that are in them.

    Attributes:
        first: the samples of the first run.
        second: those of the second run, some of them the same.
        same: squared difference, relative to that of samples, up to which values are the same.
        differ: whether the samples of the second run are not all equal to those of the first.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    same: float
    differ: bool = True

    @staticmethod
    def plan(
        first: Sequence[int],
        others: Sequence[int],
        inputs: Sequence[NDArray[Any]],
        fixed: bool,
        operators: Collection[str],
    ) -> Runs:
        """Plan a second run beside a first one.

        Args:
            first: samples of the first run.
            others: further samples, for where the first run has but one.
            inputs: of all these samples, stacked along a first axis.
            fixed: whether the second run has to have as many samples as the first.
            operators: of the network.
        """
        size, a = len(first), first[0]
        place = _differing(inputs)
        available = [*first, *others]
        b = available[place or min(1, len(available) - 1)]
        if size == 1:
            second = [b] if fixed else [b, a]
        elif fixed:
            # Others than the first run, or a sum over the batch would be the same.
            second = np.resize([b, b, a] if b in first else [b, a], size).tolist()
        else:
            second = [b, a] if size != 2 else [b, b, a]
        scaled_by_batch = any(op.startswith("Dynamic") for op in operators)
        same = _SAME_IF_QUANTIZED if scaled_by_batch else _SAME
        return Runs(tuple(first), tuple(second), same, place is not None)

    def compare(self, one: NDArray[Any], other: NDArray[Any]) -> FoundAxis:
        """Return where the samples lie in a tensor.

        Args:
            one: the tensor in the first run.
            other: in the second one.
        """
        p, q = len(self.first), len(self.second)
        if one.dtype.kind not in "biufV" or other.dtype.kind not in "biufV":
            return Failing.NO_NUMBERS
        same_shape = one.shape == other.shape
        if 0 in (one.size, other.size) or (p == q and not same_shape):
            return Failing.ROWS_FROM_DATA
        unchanged = same_shape and _distance(one, other) <= _rounding(one)
        if p == q == 1:
            if unchanged and self.differ:
                return Failing.CONSTANT
            return SampleAxis(rows=one.shape[0] if one.ndim else 1)
        if unchanged and (p != q or self.differ):
            return Failing.CONSTANT
        for axis in self._candidates(one.shape, other.shape):
            if self._fits(axis, one, other):
                return axis
        proportional = one.size * q == other.size * p
        return Failing.MIXED if same_shape or proportional else Failing.ROWS_FROM_DATA

    def tells(self, found: FoundAxis) -> bool:
        """Whether both runs were seen to give the same values for the samples that both have."""
        return isinstance(found, SampleAxis) and (len(self.first), len(self.second)) != (1, 1)

    def _candidates(self, one: Sequence[int], other: Sequence[int]) -> Iterator[SampleAxis]:
        """Yield the axes whose extents follow the samples, the most usual first."""
        p, q = len(self.first), len(self.second)
        for axis, (size, again) in enumerate(zip(one, other, strict=False)):
            rows = size // p
            rest = [*one[:axis], *one[axis + 1 :]] == [*other[:axis], *other[axis + 1 :]]
            if len(one) == len(other) and rest and (rows * p, rows * q) == (size, again):
                yield SampleAxis(axis, rows)
                if rows > 1:
                    yield SampleAxis(axis, rows, interleaved=True)

    def _fits(self, axis: SampleAxis, one: NDArray[Any], other: NDArray[Any]) -> bool:
        """Whether the samples that both runs have in common have the same values in both."""
        parts = [axis.by_sample(tensor) for tensor in (one, other)]
        pairs = [
            (i, j)
            for j, sample in enumerate(self.second)
            for i in [self.first.index(sample) if sample in self.first else -1]
            if i >= 0
        ]
        mine = parts[0][[i for i, _ in pairs]]
        compared = np.concatenate([part[:_MOST_COMPARED] for part in parts])
        spread = _numbers(compared)
        spread = spread - spread.mean(axis=0)
        limit = self.same * float(np.sum(spread**2)) / len(spread) * len(pairs)
        limit += _rounding(mine)
        return _distance(mine, parts[1][[j for _, j in pairs]]) <= limit


def _differing(inputs: Sequence[NDArray[Any]]) -> int | None:
    """Return the place of a sample that differs from the first; None where none does."""
    for place in range(1, len(inputs[0])):
        for array in inputs:
            if not np.array_equal(array[0], array[place], equal_nan=array.dtype.kind == "f"):
                return place
    return None


def _numbers(array: NDArray[Any]) -> NDArray[np.float64]:
    # What is not finite in both is equal; infinite in one shows as a number that is large.
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.sum((_numbers(one) - _numbers(other)) ** 2))


def _rounding(array: NDArray[Any]) -> float:
    """Return the squared difference that rounding may make."""
    if array.dtype.kind not in "fV":
        return 0.0
    epsilon = float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 2.0**-8
    return (_ROUNDING * epsilon) ** 2 * float(np.sum(_numbers(array) ** 2))
