"""Rows and inputs of a student's block found together, where its weights are an exact slice.

Where it is not known which inputs a block kept, its rows cannot be compared with the teacher's. But
weights that are equal to the last bit say both: a number that the teacher's weights have once can
only come from there, so it names a row and an input. From rows and inputs that are known follow
others, until nothing more does::

    teacher     1 2 3       student   9 7     9: row 2, input 2      row 0 of the student is row 2,
                4 5 6                 6 4     7: row 2, input 0      row 1 is row 1; inputs 2 and 0
                7 8 9

Each step is the only one possible, given that the student is a slice at all, which is verified at
the end. Where several rows remain for one, none is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.matching.assignment import Channels
from fskd_onnx.passes.analysis.labels import UNKNOWN
from fskd_onnx.passes.analysis.linear import Linear

Keys = NDArray[np.int64]

# A student's group may come from any of the teacher's.
_MOST_PAIRS_OF_GROUPS = 1024
# Enough numbers to see that a block is no slice.
_FIRST = 4


@dataclass(frozen=True)
class Slice:
    """Where weights of a block are in a teacher's.

    Attributes:
        channels: (width,) the teacher's channel of each channel.
        inputs: (inputs of all groups,) the teacher's input of each, out of those of all groups;
            UNKNOWN where several are the same for all rows.
    """

    channels: Channels
    inputs: Channels


def find_slice(student: Linear, teacher: Linear) -> Slice | None:
    """Find rows and inputs of a block among its partner's, from weights that are equal.

    Returns:
        None where the block is no exact slice of its partner, or may be one in several ways.
    """
    if student.kernel_shape != teacher.kernel_shape or not _may_be_slice(student, teacher):
        return None
    own, whole = _Table.of(student), _Table.of(teacher)
    if own.keys.shape[1] > whole.keys.shape[1] or own.keys.shape[2] > whole.keys.shape[2]:
        return None
    if own.is_depthwise and whole.is_depthwise and own.keys.shape[1] == whole.keys.shape[1]:
        return _of_depthwise(own, whole)
    return _of_groups(own, whole)


def _may_be_slice(student: Linear, teacher: Linear) -> bool:
    """Whether a few of a block's numbers are among its partner's at all."""
    numbers, others = student.native.reshape(-1), teacher.native
    few = np.unique(np.linspace(0, len(numbers) - 1, _FIRST).astype(np.intp))
    return all(bool((others == number).any()) for number in numbers[few].tolist())


@dataclass(frozen=True)
class _Table:
    """A number for each kernel of a block, and one for each bias, equal where they are.

    Attributes:
        keys: (groups, n, inputs of a group).
        biases: (groups, n).
    """

    keys: Keys
    biases: Keys

    @staticmethod
    def of(linear: Linear) -> _Table:
        """Read those of a block."""
        groups, n, p = linear.shape
        taps = math.prod(linear.kernel_shape)
        keys = _hashed(linear.native.reshape(groups, n, p // taps, taps))
        return _Table(keys, _hashed(linear.bias.reshape(groups, n, 1)))

    @property
    def is_depthwise(self) -> bool:
        """Whether each group reads one input."""
        return len(self.keys) > 1 and self.keys.shape[2:] == (1,)


def _of_depthwise(own: _Table, whole: _Table) -> Slice | None:
    """Find the groups of one input each, as rows of their weights."""
    rows, others = (table.keys[..., 0] for table in (own, whole))
    marks, others_marks = (_combined(table.biases) for table in (own, whole))
    found = _Search(rows, marks, others, others_marks)
    found.columns[:] = np.arange(rows.shape[1])
    if not found.run():
        return None
    n = own.keys.shape[1]
    return Slice((found.rows[:, np.newaxis] * n + np.arange(n)).reshape(-1), found.rows)


def _of_groups(own: _Table, whole: _Table) -> Slice | None:
    """Find each group in the only one of the teacher's that it can come from."""
    if len(own.keys) * len(whole.keys) > _MOST_PAIRS_OF_GROUPS:
        return None
    channels, inputs = [], []
    for keys, biases in zip(own.keys, own.biases, strict=True):
        found = []
        for group, others in enumerate(whole.keys):
            search = _Search(keys, biases, others, whole.biases[group])
            if search.run():
                found.append((group, search))
        if len(found) != 1:
            return None
        group, search = found[0]
        channels.append(group * whole.keys.shape[1] + search.rows)
        known = search.columns >= 0
        inputs.append(np.where(known, group * whole.keys.shape[2] + search.columns, UNKNOWN))
    numbers = np.concatenate(channels)
    if len(np.unique(numbers)) < len(numbers):
        return None
    return Slice(numbers, np.concatenate(inputs))


class _Search:
    """Rows and columns of a table found in a larger one.

    Attributes:
        rows: (n,) the row of each, UNKNOWN while it is not known.
        columns: (p,) likewise.
    """

    def __init__(self, keys: Keys, marks: Keys, others: Keys, others_marks: Keys) -> None:
        """Start with nothing known.

        Args:
            keys: (n, p) the table.
            marks: (n,) a number that rows have besides.
            others: (m, q) the larger one.
            others_marks: (m,) of its rows.
        """
        self._own, self._whole = (keys, marks), (others, others_marks)
        self.rows = np.full(keys.shape[0], UNKNOWN)
        self.columns = np.full(keys.shape[1], UNKNOWN)

    def run(self) -> bool:
        """Find all rows; return whether the table is a slice, in one way only."""
        if not self._from_single_keys():
            return False
        (keys, marks), (others, others_marks) = self._own, self._whole
        known = -1
        while known != (known := self._count()):
            rows, columns = self.rows >= 0, self.columns >= 0
            mine = _combined(keys[:, columns], marks)
            theirs = _combined(others[:, self.columns[columns]], others_marks)
            if not _follow(self.rows, mine, theirs):
                return False
            rows = self.rows >= 0
            mine, theirs = _combined(keys[rows].T), _combined(others[self.rows[rows]].T)
            if not _follow(self.columns, mine, theirs):
                return False
        return self._in_order() and self._is_slice()

    def _count(self) -> int:
        return int((self.rows >= 0).sum() + (self.columns >= 0).sum())

    def _from_single_keys(self) -> bool:
        """Follow keys that the larger table has once; return whether they agree."""
        keys, others = self._own[0], self._whole[0]
        values, first, counts = np.unique(others, return_index=True, return_counts=True)
        places = np.minimum(np.searchsorted(values, keys), len(values) - 1)
        if (values[places] != keys).any():
            return False
        single = counts[places] == 1
        row, column = np.nonzero(single)
        found = np.divmod(first[places[single]], others.shape[1])
        for known, index, place in zip(
            (self.rows, self.columns), (row, column), found, strict=True
        ):
            before = known.copy()
            known[index] = place
            if (known[index] != place).any() or ((before >= 0) & (before != known)).any():
                return False
        return True

    def _in_order(self) -> bool:
        """Give rows that are equal, and all there, in order; return whether all rows are known.

        That is: where the others are in order.
        """
        open_rows, open_columns = (np.flatnonzero(part < 0) for part in (self.rows, self.columns))
        in_order = (np.diff(self.rows[self.rows >= 0]) > 0).all()
        if len(open_rows) and (len(open_columns) or not in_order):
            return False
        if len(open_rows):
            mine = _combined(self._own[0], self._own[1])[open_rows]
            theirs = _combined(self._whole[0][:, self.columns], self._whole[1])
            left = np.setdiff1d(np.arange(len(theirs)), self.rows)
            for key in np.unique(mine):
                places = left[theirs[left] == key]
                wanted = open_rows[mine == key]
                if len(places) != len(wanted):
                    return False
                self.rows[wanted] = places
        return True

    def _is_slice(self) -> bool:
        """Verify all numbers; the columns that are left have to be there as often as they are."""
        (keys, marks), (others, others_marks) = self._own, self._whole
        if any(len(np.unique(part[part >= 0])) < (part >= 0).sum() for part in self._found()):
            return False
        known = self.columns >= 0
        if not np.array_equal(marks, others_marks[self.rows]):
            return False
        whole = others[self.rows]
        if not np.array_equal(keys[:, known], whole[:, self.columns[known]]):
            return False
        left = np.setdiff1d(np.arange(others.shape[1]), self.columns)
        mine, theirs = _combined(keys[:, ~known].T), _combined(whole[:, left].T)
        needed, counts = np.unique(mine, return_counts=True)
        there = [int((theirs == key).sum()) for key in needed]
        return all(count <= found for count, found in zip(counts, there, strict=True))

    def _found(self) -> tuple[Channels, Channels]:
        return self.rows, self.columns


def _follow(known: Channels, keys: Keys, others: Keys) -> bool:
    """Fill in what has only one place left with its key; return False if one has none."""
    left = np.setdiff1d(np.arange(len(others)), known)
    values, first, counts = np.unique(others[left], return_index=True, return_counts=True)
    wanted = np.flatnonzero(known < 0)
    if not len(wanted):
        return True
    if not len(values):
        return False
    places = np.minimum(np.searchsorted(values, keys[wanted]), len(values) - 1)
    if (values[places] != keys[wanted]).any():
        return False
    single = counts[places] == 1
    known[wanted[single]] = left[first[places[single]]]
    return True


def _hashed(numbers: NDArray[np.floating]) -> Keys:
    """Return a number for all along the last axis, the same where they are equal; -0 is zero."""
    bits = np.ascontiguousarray(numbers, np.float64) + 0.0
    return _combined(bits.view(np.int64))


def _combined(keys: Keys, marks: Keys | None = None) -> Keys:
    """Return one number for all along the last axis, and perhaps one more for each."""
    factors = np.random.default_rng(0).integers(2**62, size=keys.shape[-1] + 1) * 2 + 1
    # Sums wrap around, which is what hashing wants.
    combined: Keys = _mixed(keys) @ factors[:-1]
    return combined if marks is None else combined + marks * factors[-1]


def _mixed(keys: Keys) -> Keys:
    """Return the keys with all bits in use."""
    return keys ^ (keys >> 29)
