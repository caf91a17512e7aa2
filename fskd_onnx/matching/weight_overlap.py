"""How much of a student's weights is a slice of a teacher's, before it is known which slice.

Two ways to see it, on some rows of the student's weights, each of which claims another row of the
teacher's:

* Where both read as many inputs, whole rows are compared: the largest cosine among the teacher's
  rows, above the second largest, and above what the largest of n random cosines in p dimensions
  comes to, about sqrt(2 ln n / p). That survives noise and fine-tuning, and a factor per row. What
  is no row but a mixture of them, as a singular vector is, is as near to one as to others.
* Where inputs were pruned as well, single kernels are looked up among all of the teacher's, by a
  key that a factor leaves as it is (of a 1x1 kernel, by its value). A key may be found anywhere by
  chance, but the kernels of one row are all found in one row of the teacher only if they come from
  there: what counts is the fraction that the best row has, above what chance gives the best of all.
  The keys of all of the student's samples are known ahead, so a filter drops most of the teacher's
  keys, and only the rest is sorted.

A composed kernel of low rank stands for all rows of a kernel at once, and the fewer directions it
has, the nearer its rows are to each other. Its cosines count above chance alone, each with the row
that an assignment gives it (``approximation``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fskd_onnx.passes.analysis.composed_kernels import Kernel
from fskd_onnx.passes.analysis.linear import Linear

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Of the student: enough to tell chance from descent, and soon looked up.
_ROWS = 8
_KERNELS = 32
# Enough for a claim: of so many mixtures, several are nearest to the same row.
ROWS_THAT_CLAIM = 32
# Folded in float32 or in float64, a BatchNormalization gives weights that differ by this many
# units in the last place.
_ULPS = 8
# Quantized weights have few values; one that is everywhere says nothing.
_MOST_HITS = 64
# What chance explains up to here says too little.
_CHANCE = 0.6
# Rows whose cosine differs from 1 by less are the same row twice.
_SAME = 1e-6
# Keys that share all but the last bits fall into one bucket, and few of the buckets are marked.
_BITS_OF_A_BUCKET = 6
_BUCKETS_PER_KEY = 32


@dataclass(frozen=True)
class KernelWeights:
    """The weights of a linear node, to be compared with others.

    Attributes:
        kernel_shape: spatial extent of the kernel.
        rows: (channels, inputs of a group, taps).
    """

    kernel_shape: tuple[int, ...]
    rows: Floats

    @staticmethod
    def of(linear: Linear) -> KernelWeights:
        """Read the weights of a node."""
        shape = linear.kernel_shape
        rows = linear.native.reshape(linear.width, -1, math.prod(shape))
        return KernelWeights(shape, rows.astype(np.float32, copy=False))

    @staticmethod
    def composed(kernel: Kernel) -> KernelWeights:
        """Return the weights of several nodes in a row."""
        return KernelWeights(kernel.kernel_shape, kernel.rows.astype(np.float32, copy=False))

    @cached_property
    def sample(self) -> KernelWeights:
        """A few rows and inputs, spread evenly."""
        channels, inputs = (
            np.unique(np.linspace(0, extent - 1, wanted).astype(np.intp))
            for extent, wanted in zip(self.rows.shape[:2], (_ROWS, _KERNELS), strict=True)
        )
        return KernelWeights(self.kernel_shape, self.rows[channels][:, inputs])

    @cached_property
    def directions(self) -> Floats:
        """The rows at unit length, (channels, inputs * taps); zeros stay zeros."""
        return _directions(self.rows)

    @cached_property
    def few_directions(self) -> Floats:
        """Those of some rows, spread evenly."""
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, ROWS_THAT_CLAIM).astype(np.intp))
        return _directions(self.rows[chosen])

    @cached_property
    def numbers(self) -> Floats:
        """What tells kernels apart, (channels, inputs): the largest weight at unit length.

        Of a kernel of a single weight, the weight itself.
        """
        if self.rows.shape[2] == 1:
            return np.ascontiguousarray(self.rows[..., 0])
        lengths = np.sqrt(np.einsum("ijk,ijk->ij", self.rows, self.rows))
        return _divide(_peaks(self.rows), lengths)

    @cached_property
    def keys(self) -> Integers:
        """A key of each kernel, (channels, inputs), see ``_keys``."""
        return _keys(self.numbers)


class KeyFilter:
    """Selects the numbers whose keys may be near any key in the samples of a student's nodes."""

    def __init__(self, students: Iterable[KernelWeights]) -> None:
        """Mark the buckets that the keys of their samples fall into."""
        asked = (student.sample.keys.reshape(-1) for student in students)
        keys = np.concatenate([np.empty(0, np.int64), *asked])
        # A bucket is wider than what counts as near, so both ends of that are enough.
        near = keys[:, np.newaxis] + np.array([-_ULPS, _ULPS])
        bits = np.where(near < 0, -near - 2**31, near).astype(np.int32)
        self._mask = 2 ** math.ceil(math.log2(_BUCKETS_PER_KEY * max(len(keys), 1))) - 1
        self._marked = np.zeros(self._mask + 1, bool)
        self._marked[self._buckets(bits)] = True

    def __call__(self, numbers: Floats) -> NDArray[np.intp]:
        """Return the positions of the numbers, of one axis, that are selected."""
        return np.flatnonzero(self._marked.take(self._buckets(numbers.view(np.int32))))

    def _buckets(self, bits: NDArray[np.int32]) -> NDArray[np.int32]:
        buckets = bits >> _BITS_OF_A_BUCKET
        buckets &= self._mask
        return buckets


@dataclass(frozen=True)
class KernelIndex:
    """The weights of a teacher's node, indexed by keys.

    Attributes:
        weights: the weights.
        key_filter: selects the keys that are worth indexing.
    """

    weights: KernelWeights
    key_filter: KeyFilter

    @cached_property
    def rows(self) -> int:
        """Number of rows up to the last that is not dead, but at least one."""
        numbers = self.weights.numbers
        alive = (row for row in reversed(range(len(numbers))) if numbers[row].any())
        return next(alive, 0) + 1

    @cached_property
    def index(self) -> Integers:
        """Keys and the rows they are found in, as one sorted number each; zeros are left out."""
        numbers = self.weights.numbers.reshape(-1)
        positions = self.key_filter(numbers)
        keys = _keys(numbers[positions])
        rows = positions // self.weights.rows.shape[1]
        return np.sort(((keys << 32) | rows)[keys != 0])


def overlap(student: KernelWeights, teacher: KernelIndex) -> float:
    """Return how much of a student's weights is found in a teacher's, between 0 and 1.

    Nodes that cannot be compared have nothing in common.

    Args:
        student: one of those that the filter of the teacher's index was made for.
        teacher: the teacher's weights.
    """
    whole = teacher.weights
    (n, inputs, _), (n_all, inputs_all, _) = student.rows.shape, whole.rows.shape
    if student.kernel_shape != whole.kernel_shape or n > n_all or inputs > inputs_all:
        return 0.0
    chance = _chance(whole)
    if inputs == inputs_all and chance < _CHANCE:
        return _claimed(student.few_directions @ whole.directions.T, chance)
    return _found_in_one_row(student.sample.keys, teacher.index, teacher.rows)


def approximation(one: KernelWeights, other: KernelWeights) -> float:
    """Return how near a composed kernel is to another kernel, between 0 and 1.

    Args:
        one: the student's weights, or some rows of them.
        other: the teacher's.
    """
    (n, *reads), (n_all, *reads_all) = one.rows.shape, other.rows.shape
    chance = _chance(other)
    fits = one.kernel_shape == other.kernel_shape and reads == reads_all and n <= n_all
    if not fits or chance >= _CHANCE:
        return 0.0
    directions = one.few_directions[one.few_directions.any(axis=1)]
    if not len(directions):
        return 0.0
    cosines = directions @ other.directions.T
    nearest = cosines.max(axis=1)
    # An assignment, which takes its time, gives at most that.
    if nearest.mean() > chance:
        nearest = cosines[linear_sum_assignment(cosines, maximize=True)]
    return max(0.0, float((nearest.mean() - chance) / (1 - chance)))


def _chance(teacher: KernelWeights) -> float:
    """Return what the largest cosine of a random row with a teacher's rows comes to."""
    n, inputs, taps = teacher.rows.shape
    return math.sqrt(2 * math.log(max(n, 2)) / (inputs * taps))


def _claimed(cosines: Floats, chance: float) -> float:
    """Return how far the nearest rows stand out, each of them claimed once; the mean of all.

    Args:
        cosines: (rows of the student, rows of the teacher); zeros for a row of zeros.
        chance: what random rows reach.
    """
    each = np.arange(len(cosines))
    nearest = cosines.argmax(axis=1)
    best = cosines[each, nearest]
    rivals = cosines.copy()
    rivals[each, nearest] = -1.0
    second = np.maximum(rivals.max(axis=1), chance)
    margins = np.clip((best - second) / np.maximum(1 - second, _SAME), 0.0, 1.0)
    # The largest first, so that the first that claims a row is the one that has it.
    order = np.argsort(-margins, kind="stable")
    _, first = np.unique(nearest[order], return_index=True)
    compared = int(cosines.any(axis=1).sum())
    return float(margins[order[first]].sum() / compared) if compared else 0.0


def _found_in_one_row(keys: Integers, index: Integers, rows: int) -> float:
    """Return the fraction of each row's keys that one row of the teacher has; the mean of all."""
    low = np.searchsorted(index, (keys - _ULPS) << 32)
    counts = np.searchsorted(index, (keys + _ULPS + 1) << 32) - low
    telling = (keys != 0) & (counts <= _MOST_HITS)
    counts = np.where(telling, counts, 0)
    step = np.arange(counts.max(initial=0))
    row, column, offset = np.nonzero(step < counts[..., np.newaxis])
    found = index[low[row, column] + offset] & 0xFFFFFFFF
    votes = np.zeros((len(keys), int(found.max(initial=0)) + 1))
    # A key that one row has twice counts once.
    once = np.unique(((row * keys.shape[1] + column) << 32) | found)
    np.add.at(votes, ((once >> 32) // keys.shape[1], once & 0xFFFFFFFF), 1)
    asked = np.maximum(telling.sum(axis=1), 1)
    best = _most_votes(votes) / asked
    # One hit is where a key comes from; the others say how often a row has it by chance. The best
    # of so many rows then has as many above the mean as the largest of so many normal numbers.
    often = np.clip((counts - 1) / rows, 0.0, 1.0).sum(axis=1) / asked
    chance = often + np.sqrt(2 * math.log(max(rows, 2)) * often * (1 - often) / asked)
    sure = np.where(chance < _CHANCE, np.maximum(best - chance, 0.0), 0.0)
    found_in = sure / np.maximum(1 - chance, 1 - _CHANCE)
    compared = telling.any(axis=1)
    return float(found_in[compared].mean()) if compared.any() else 0.0


def _most_votes(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the votes of the row that each of the student's has most of, no row taken twice."""
    best = votes.max(axis=1)
    nearest = votes.argmax(axis=1)[best > 0]
    if len(np.unique(nearest)) == len(nearest):
        return np.asarray(best)
    padded = np.pad(votes, ((0, 0), (0, max(0, len(votes) - votes.shape[1]))))
    return np.asarray(padded[linear_sum_assignment(padded, maximize=True)])


def _directions(rows: Floats) -> Floats:
    flat = rows.reshape(len(rows), -1)
    return _divide(flat, np.linalg.norm(flat, axis=1, keepdims=True))


def _peaks(rows: Floats) -> Floats:
    """Return the weight of the largest magnitude in each kernel, the first if there are several."""
    taps = np.ascontiguousarray(rows.reshape(-1, rows.shape[2]).T)
    highest, lowest = taps.max(axis=0), taps.min(axis=0)
    peaks: Floats = np.where(highest >= -lowest, highest, lowest)
    tied = np.flatnonzero(highest == -lowest)
    peaks[tied] = taps[np.abs(taps[:, tied]).argmax(axis=0), tied]
    return peaks.reshape(rows.shape[:2])


def _keys(numbers: Floats) -> Integers:
    """Return keys in the order of some numbers; neighbouring numbers have neighbouring keys."""
    bits = np.ascontiguousarray(numbers + np.float32(0)).view(np.int32).astype(np.int64)
    # Of negative floats, the larger bits are the smaller number.
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _divide(values: Floats, lengths: Floats) -> Floats:
    return np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
