"""Which of a teacher's rows of weights the rows of a student are.

Pruning takes rows (output channels) and inputs away. Which inputs are left is known by the time
that a block is reached, so the teacher's rows are cut down to them. The student's rows then are

* rows of the teacher's to the last bit, biases included: looked up by a few of their weights, then
  compared as a whole;
* or, where one of them is not, those of the largest cosine: each taken once, their sum the most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.linear import Linear

Channels = NDArray[np.intp]
Floats = NDArray[np.floating]

# A pruned row is its teacher's row up to rounding, and up to a factor (BatchNormalization folded).
_WEIGHTS_AGREE = 0.98

# Rows that are equally similar (copies, dead filters) are told apart by their biases, then by
# their order, which pruning tools keep. Neither may outweigh a difference between the weights.
_BIAS_COUNTS = 1e-6
_ORDER_COUNTS = 1e-9

# Inputs by which a row is looked up; whether it is the one is seen on all of them.
_LOOKED_UP_BY = 4


def channels_from_weights(
    student: Linear, teacher: Linear, kept: Channels | None
) -> tuple[Channels, float] | None:
    """Match rows of weights, the teacher's cut down to the inputs that the student kept.

    Args:
        student: a block.
        teacher: its partner.
        kept: (inputs,) the teacher's input that each of the student's is, over all groups; None
            where that is not known, so that they have to be the same.

    Returns:
        (width,) the teacher's channels and the cosine of the least certain one; None where the
        weights do not tell.
    """
    taps = math.prod(student.kernel_shape)
    groups, n, p = student.shape
    want = teacher.shape[2] // taps
    if student.kernel_shape != teacher.kernel_shape or n > teacher.shape[1]:
        return None
    origin = _origin(groups, p // taps, teacher.groups, want, kept)
    if origin is None:
        return None
    own, whole = _Rows.of(student, taps), _Rows.of(teacher, taps)
    found = _looked_up(own, whole, origin) or _most_alike(own, whole, origin)
    parts, confidence = found
    if confidence < _WEIGHTS_AGREE:
        if kept is None or want > 1 or n != teacher.shape[1]:
            return None
        # Depthwise: whatever its weights are by now, it carries what its input carries.
        parts, confidence = np.tile(np.arange(n), (groups, 1)), 1.0
    return (origin.groups[:, np.newaxis] * teacher.shape[1] + parts).reshape(-1), confidence


def assign(similarity: Array, bias: Array | float = 0.0) -> tuple[Channels, float]:
    """Give each row a column of its own, the similarities summing to the most.

    Args:
        similarity: (n, m), n <= m.
        bias: (n, m) differences of biases, which tell apart what is equally similar.

    Returns:
        (n,) columns, and the least of their similarities.
    """
    rows, columns = similarity.shape
    # Squares, so that keeping the order is strictly better than any exchange.
    order = (np.arange(rows)[:, np.newaxis] / rows - np.arange(columns) / columns) ** 2
    score = similarity - _BIAS_COUNTS * bias - _ORDER_COUNTS * order
    chosen = linear_sum_assignment(score, maximize=True)[1]
    return chosen, float(similarity[np.arange(rows), chosen].min())


@dataclass(frozen=True)
class _Origin:
    """Where a student's block comes from, as far as its input tells.

    Attributes:
        groups: (student's groups,) the teacher's group that each of the student's is a part of.
        inputs: (student's groups, inputs of one) their positions among the teacher's group's.
    """

    groups: Channels
    inputs: Channels


def _origin(
    groups: int, have: int, teacher_groups: int, want: int, kept: Channels | None
) -> _Origin | None:
    """Tell which teacher inputs a block reads, of which each group has ``have`` of ``want``."""
    if kept is None:
        if groups * have != teacher_groups * want:
            return None
        kept = np.arange(groups * have)
    group, position = np.divmod(kept.reshape(groups, have), want)
    if (group != group[:, :1]).any():
        return None  # a group of the student mixes several of the teacher's
    return _Origin(group[:, 0], position)


@dataclass(frozen=True)
class _Rows:
    """Rows of weights with their biases.

    Attributes:
        weights: (groups, n, inputs, taps).
        biases: (groups, n).
    """

    weights: Floats
    biases: Floats

    @staticmethod
    def of(linear: Linear, taps: int) -> _Rows:
        """Read those of a block."""
        groups, n, p = linear.shape
        weights = linear.native.reshape(groups, n, p // taps, taps)
        return _Rows(weights, linear.bias.reshape(groups, n))

    def some(self, groups: Channels, parts: Channels) -> _Rows:
        """Return the rows at (groups, n) places, each of a group."""
        width = self.biases.shape[1]
        places = (groups[:, np.newaxis] * width + parts).reshape(-1)
        weights = _taken(self.weights.reshape(-1, *self.weights.shape[2:]), places)
        biases = self.biases.reshape(-1)[places].reshape(parts.shape)
        return _Rows(weights.reshape(*parts.shape, *weights.shape[1:]), biases)

    def of_inputs(self, inputs: Channels) -> _Rows:
        """Return the rows cut down to some inputs, (groups, inputs) of each group."""
        groups, n, have, taps = self.weights.shape
        if inputs.shape[1] == have and (inputs == np.arange(have)).all():
            return self
        cut = np.empty((groups, n, inputs.shape[1], taps), self.weights.dtype)
        for rows, chosen, result in zip(self.weights, inputs, cut, strict=True):
            rows.take(chosen, axis=1, out=result, mode="clip")
        return _Rows(cut, self.biases)

    def equals(self, other: _Rows) -> bool:
        """Whether all numbers are the same."""
        return np.array_equal(self.biases, other.biases) and np.array_equal(
            self.weights, other.weights
        )

    def flat(self) -> NDArray[np.float64]:
        """Return the weights as (groups, n, inputs * taps)."""
        flat = self.weights.reshape(*self.biases.shape, -1)
        return np.ascontiguousarray(flat, np.float64)


def _taken(rows: Floats, places: Channels) -> Floats:
    """Return some of the rows, without a copy where they are all, in order."""
    if len(places) == len(rows) and (places == np.arange(len(rows))).all():
        return rows
    return rows.take(places, axis=0)


def _looked_up(own: _Rows, whole: _Rows, origin: _Origin) -> tuple[Channels, float] | None:
    """Find rows that are the teacher's to the last bit; None where one of them is not.

    Returns:
        (groups, n) the place of each row in its group, and how certain that is.
    """
    for parts in _guesses(own, whole, origin):
        if whole.some(origin.groups, parts).of_inputs(origin.inputs).equals(own):
            return parts, 1.0
    return None


def _guesses(own: _Rows, whole: _Rows, origin: _Origin) -> Iterator[Channels]:
    groups, n = own.biases.shape
    if n == whole.biases.shape[1]:
        # Nothing was removed here, as in every layer that only lost inputs.
        yield np.tile(np.arange(n), (groups, 1))
    looked_at = np.unique(np.linspace(0, origin.inputs.shape[1] - 1, _LOOKED_UP_BY).astype(np.intp))
    parts = []
    for number, group in enumerate(origin.groups):
        mine = own.weights[number].take(looked_at, axis=1)
        theirs = whole.weights[group].take(origin.inputs[number, looked_at], axis=1)
        marks = _marks(theirs, whole.biases[group])
        found = _only_places(_marks(mine, own.biases[number]), marks)
        if found is None:
            return
        parts.append(found)
    yield np.array(parts)


def _marks(weights: Floats, biases: Floats) -> list[bytes]:
    """Return the bytes of a few weights and the bias of each row; of zeros, -0 is one."""
    table = np.column_stack([weights.reshape(len(weights), -1), biases]) + 0.0
    return [row.tobytes() for row in table.astype(np.float64, copy=False)]


def _only_places(own: list[bytes], others: list[bytes]) -> list[int] | None:
    """Return where each mark is among others; None unless each is there exactly once."""
    counts = Counter(others)
    if any(counts[mark] != 1 for mark in own):
        return None
    places = {mark: place for place, mark in enumerate(others)}
    return [places[mark] for mark in own]


def _most_alike(own: _Rows, whole: _Rows, origin: _Origin) -> tuple[Channels, float]:
    """Find the rows of the largest cosine, see ``_looked_up``."""
    everything = np.tile(np.arange(whole.biases.shape[1]), (len(origin.groups), 1))
    columns = whole.some(origin.groups, everything).of_inputs(origin.inputs)
    found = [
        assign(similarity, _distance(*biases))
        for similarity, *biases in zip(
            _cosine(own.flat(), columns.flat()), own.biases, columns.biases, strict=True
        )
    ]
    return np.array([part for part, _ in found]), min(sure for _, sure in found)


def _cosine(rows: Array, others: Array) -> Array:
    """Return the (groups, n, m) cosines; two rows of zeros agree, a dead filter with a dead one."""
    lengths = [np.linalg.norm(part, axis=2, keepdims=True) for part in (rows, others)]
    unit = [
        np.divide(part, length, out=np.zeros_like(part), where=length > 0)
        for part, length in zip((rows, others), lengths, strict=True)
    ]
    both_dead = (lengths[0] == 0) & np.swapaxes(lengths[1] == 0, 1, 2)
    cosine: Array = unit[0] @ np.swapaxes(unit[1], 1, 2) + both_dead
    return cosine


def _distance(biases: Array, others: Array) -> Array:
    """Return the (n, m) differences, each between 0 and 1."""
    difference: Array = np.abs(biases[:, np.newaxis] - others)
    largest = float(difference.max(initial=0.0))
    return difference / largest if largest else difference
