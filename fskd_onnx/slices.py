"""How much of a student's weights is a slice of a teacher's, while nobody knows which slice.

Two ways to see it, on a few rows of the student's weights:

* Where both read as many inputs, whole rows are compared: the largest cosine among the teacher's
  rows, above what the largest of n random cosines in p dimensions comes to, about
  sqrt(2 ln n / p). That survives noise and fine-tuning, and a factor per row.
* Where inputs were pruned as well, single kernels are looked up among all of the teacher's, by a
  key that a factor leaves as it is (of a 1x1 kernel, by its value). A key may be found anywhere by
  chance, but the kernels of one row are all found in one row of the teacher only if they come from
  there: what counts is the fraction that the best row has, above what chance gives the best of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.passes.linear import Linear

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Of the student: enough to tell chance from descent, and soon looked up.
_ROWS = 8
_KERNELS = 32
# Folded in float32 or in float64, a BatchNormalization gives weights that differ by this many
# units in the last place.
_ULPS = 8
# Quantized weights have few values; one that is everywhere says nothing.
_MOST_HITS = 64
# What chance explains up to here says too little.
_CHANCE = 0.6


@dataclass(frozen=True)
class Imprint:
    """The weights of a linear node, to be compared with others.

    Attributes:
        kernel_shape: spatial extent of the kernel.
        rows: (channels, inputs of a group, taps).
    """

    kernel_shape: tuple[int, ...]
    rows: Floats

    @staticmethod
    def of(linear: Linear) -> Imprint:
        """Read the weights of a node."""
        shape = linear.kernel_shape
        rows = linear.matrix.reshape(linear.width, -1, math.prod(shape))
        return Imprint(shape, rows.astype(np.float32))

    @cached_property
    def sample(self) -> Imprint:
        """A few rows and inputs, spread evenly."""
        channels, inputs = (
            np.unique(np.linspace(0, extent - 1, wanted).astype(np.intp))
            for extent, wanted in zip(self.rows.shape[:2], (_ROWS, _KERNELS), strict=True)
        )
        return Imprint(self.kernel_shape, self.rows[channels][:, inputs])

    @cached_property
    def directions(self) -> Floats:
        """The rows at unit length, (channels, inputs * taps); zeros stay zeros."""
        flat = self.rows.reshape(len(self.rows), -1)
        return _divided(flat, np.linalg.norm(flat, axis=1, keepdims=True))

    @cached_property
    def few_directions(self) -> Floats:
        """Those of a few rows."""
        chosen = np.unique(np.linspace(0, len(self.rows) - 1, _ROWS).astype(np.intp))
        return self.directions[chosen]

    @cached_property
    def keys(self) -> Integers:
        """A key of each kernel, (channels, inputs), in the order of the numbers they stand for.

        Neighbouring numbers have neighbouring keys. A kernel of zeros has the key 0.
        """
        if self.rows.shape[2] == 1:
            values = self.rows[..., 0]
        else:
            largest = np.abs(self.rows).argmax(axis=2)[..., np.newaxis]
            peaks = np.take_along_axis(self.rows, largest, axis=2)[..., 0]
            values = _divided(peaks, np.sqrt(np.einsum("ijk,ijk->ij", self.rows, self.rows)))
        bits = np.ascontiguousarray(values + np.float32(0)).view(np.int32).astype(np.int64)
        # Of negative floats, the larger bits are the smaller number.
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    @cached_property
    def index(self) -> Integers:
        """Keys and the rows they are found in, as one sorted number each; zeros are left out."""
        keys = self.keys
        places = np.broadcast_to(np.arange(len(keys))[:, np.newaxis], keys.shape)
        return np.sort(((keys << 32) | places)[keys != 0])


def overlap(student: Imprint, teacher: Imprint) -> float:
    """Return how much of a student's weights is found in a teacher's, between 0 and 1.

    Nodes that cannot be compared have nothing in common.
    """
    (n, inputs, taps), (n_all, inputs_all, _) = student.rows.shape, teacher.rows.shape
    if student.kernel_shape != teacher.kernel_shape or n > n_all or inputs > inputs_all:
        return 0.0
    chance = math.sqrt(2 * math.log(max(n_all, 2)) / (inputs_all * taps))
    if inputs == inputs_all and chance < _CHANCE:
        cosines = student.few_directions @ teacher.directions.T
        return max(0.0, float((cosines.max(axis=1).mean() - chance) / (1 - chance)))
    return _found_in_one_row(student.sample.keys, teacher.index)


def _found_in_one_row(keys: Integers, index: Integers) -> float:
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
    np.add.at(votes, tuple(np.unique(np.stack([row, column, found]), axis=1)[[0, 2]]), 1)
    asked = np.maximum(telling.sum(axis=1), 1)
    best = votes.max(axis=1) / asked
    # One hit is where a key comes from; the others say how often a row has it by chance. The best
    # of so many rows then has as many above the mean as the largest of so many normal numbers.
    rows = int((index & 0xFFFFFFFF).max(initial=0)) + 1
    often = np.clip((counts - 1) / rows, 0.0, 1.0).sum(axis=1) / asked
    chance = often + np.sqrt(2 * math.log(max(rows, 2)) * often * (1 - often) / asked)
    sure = np.where(chance < _CHANCE, np.maximum(best - chance, 0.0), 0.0)
    found_in = sure / np.maximum(1 - chance, 1 - _CHANCE)
    told = telling.any(axis=1)
    return float(found_in[told].mean()) if told.any() else 0.0


def _divided(values: Floats, lengths: Floats) -> Floats:
    return np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
