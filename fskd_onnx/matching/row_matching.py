"""Which of a teacher's output channels those of a student are, by their rows of weights.

Pruning takes rows (output channels) and inputs away. Which inputs are left is known by the time
that a block is reached, so the teacher's rows are cut down to them. The student's rows then are

* rows of the teacher's to the last bit, biases included: looked up by a few of their weights, then
  compared as a whole;
* or, where one of them is not, those of the largest likelihood under noise.

What counts is not how alike a row is to the teacher's, but by how much it is less alike to every
other one, in units of the noise that all rows of the block show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.assignment import (
    FORBIDDEN,
    Assignment,
    Channels,
    assign_in_doubt,
)
from fskd_onnx.matching.row_likelihood import row_costs
from fskd_onnx.matching.weight_rows import Rows
from fskd_onnx.passes.analysis.linear import Linear

LIMIT = 10.0
"""From this margin on, in nats, a row is beyond doubt: others are e^10 times less likely."""

# What rows that are equal to the last bit are worth against those that are not, in nats.
_EXACT = 1e3
# A channel that is at its place in a block of the teacher's width has this much in favour, in nats.
_SAME_PLACE = 4.0
# Only of rows that are equal to the last bit nothing is left to doubt.
_NOT_EXACT = 1e-9
# Inputs by which a row is looked up; whether it is the one is seen on all of them.
_LOOKED_UP_BY = 4
# Of more rows, a table of costs does not fit into memory, let alone an assignment into an hour.
_MOST_PAIRS = 1 << 25


@dataclass(frozen=True)
class RowEvidence:
    """What the rows of a block say about the channels that they are.

    Attributes:
        channels: (width,) the channels, where all rows are certain; None where ``cost`` decides.
        is_exact: whether that is because all weights are the teacher's to the last bit.
        cost: (width, teacher's width) the negative logarithm of how likely each of the teacher's
            channels is, in nats, up to a constant per row.
    """

    channels: Channels | None = None
    is_exact: bool = False
    cost: Array | None = None

    def __add__(self, other: RowEvidence) -> RowEvidence:
        """Return what two blocks say that have to carry the same channels, both by their cost."""
        assert self.cost is not None and other.cost is not None
        return RowEvidence(cost=self.cost + other.cost)

    def best(self, copies: Channels | None = None) -> Assignment:
        """Return the most likely channels with their margins.

        Args:
            copies: (teacher's width,) a number for each channel, the same for channels of which
                each is as right as the others.
        """
        if self.channels is not None:
            nothing = np.full(len(self.channels), np.inf)
            return Assignment(self.channels, nothing, self.channels)
        assert self.cost is not None
        return assign_in_doubt(self.cost, LIMIT, copies)


def confidence_of(margin: float) -> float:
    """Return by how much the best of two is more probable than the other, p - (1 - p).

    Args:
        margin: the logarithm of p / (1 - p), in nats; below 0 it counts as 0. It is inf where there
            is no other.
    """
    return 1.0 if math.isinf(margin) else min(math.tanh(max(margin, 0.0) / 2), 1 - _NOT_EXACT)


def compare_rows(
    student: Linear, teacher: Linear, kept: Channels | None, with_noise: bool = True
) -> RowEvidence | None:
    """Compare rows of weights, the teacher's cut down to the inputs that the student kept.

    Args:
        student: a block.
        teacher: its partner.
        kept: (inputs,) the teacher's input that each of the student's is, over all groups; None
            where that is not known, so that they have to be the same.
        with_noise: also where a row is not the teacher's to the last bit.

    Returns:
        What that says; None where rows cannot be compared, or are too many.
    """
    if student.kernel_shape != teacher.kernel_shape:
        return None
    own, whole = Rows.of(student), Rows.of(teacher)
    follows = kept is not None and whole.is_depthwise and own.width == 1
    if kept is None and own.is_depthwise and whole.is_depthwise:
        own, whole = own.in_one_group(), whole.in_one_group()
    groups, n, have = own.weights.shape[:3]
    origin = _origin(groups, have, len(whole.weights), whole.weights.shape[2], kept)
    if origin is None or n > whole.width:
        return None
    parts = _looked_up(own, whole, origin)
    is_exact = parts is not None
    if parts is None and follows:
        # Depthwise: whatever its weights are by now, it carries what its input carries.
        parts = np.tile(np.arange(n), (groups, 1))
    if parts is not None:
        channels = (origin.groups[:, np.newaxis] * whole.width + parts).reshape(-1)
        return RowEvidence(channels, is_exact)
    if not with_noise or groups * n * whole.width > _MOST_PAIRS:
        return None
    everything = np.tile(np.arange(whole.width), (groups, 1))
    columns = whole.some(origin.groups, everything).of_inputs(origin.inputs)
    costs = _equality(own, columns)
    if costs is None:
        costs = row_costs(
            (own.flat(), own.biases),
            (columns.flat(), columns.biases),
            max(float(np.finfo(rows.weights.dtype).eps) for rows in (own, columns)),
        )
    cost = costs[0]
    if len(costs) > 1:
        cost = np.full((student.width, teacher.width), FORBIDDEN)
        for number, (group, part) in enumerate(zip(origin.groups, costs, strict=True)):
            place = slice(n * number, n * (number + 1))
            cost[place, group * whole.width : (group + 1) * whole.width] = part
    if student.width == teacher.width:
        cost[np.diag_indices(student.width)] -= _SAME_PLACE
    return RowEvidence(cost=cost)


def copies_of(teacher: Linear) -> Channels:
    """Return a number for each channel of a block, the same for channels that are always equal."""
    return Rows.of(teacher).copies()


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


def _spread(inputs: int) -> Channels:
    """Return a few of so many inputs."""
    return np.unique(np.linspace(0, inputs - 1, _LOOKED_UP_BY).astype(np.intp))


def _looked_up(own: Rows, whole: Rows, origin: _Origin) -> Channels | None:
    """Find rows that are the teacher's to the last bit; None where one of them is not.

    Returns:
        (groups, n) the place of each row in its group.
    """
    for parts in _guesses(own, whole, origin):
        if whole.some(origin.groups, parts).of_inputs(origin.inputs).equals(own):
            return parts
    return None


def _guesses(own: Rows, whole: Rows, origin: _Origin) -> Iterator[Channels]:
    groups, n = own.biases.shape
    if n == whole.width:
        # Nothing was removed here, as in every layer that only lost inputs.
        yield np.tile(np.arange(n), (groups, 1))
    looked_at = _spread(origin.inputs.shape[1])
    parts = []
    for number, group in enumerate(origin.groups):
        theirs = whole.marks(int(group), origin.inputs[number, looked_at])
        found = _only_places(own.marks(number, looked_at), theirs)
        if found is None:
            return
        parts.append(found)
    yield np.array(parts)


def _only_places(own: list[bytes], others: list[bytes]) -> list[int] | None:
    """Return where each mark is among others; None unless each is there exactly once."""
    counts = Counter(others)
    if any(counts[mark] != 1 for mark in own):
        return None
    places = {mark: place for place, mark in enumerate(others)}
    return [places[mark] for mark in own]


def _equality(own: Rows, columns: Rows) -> Array | None:
    """Return costs where all rows are found to the last bit, if in several places; else None.

    Args:
        own: rows of the student.
        columns: of the teacher, of the same groups and cut down to the same inputs.

    Returns:
        (groups, n, m) costs, 0 for equal rows. Where as many are here as there, and all others are
            in order, so are these.
    """
    costs = np.full((*own.biases.shape, columns.width), _EXACT)
    if not all(_agree(own, columns, group, _spread(own.inputs)) for group in range(len(costs))):
        return None
    for group, cost in enumerate(costs):
        found = _agree(own, columns, group, np.arange(own.inputs))
        if found is None:
            return None
        single = sorted((rows[0], places[0]) for rows, places in found if len(places) == 1)
        in_order = (np.diff([place for _, place in single]) > 0).all()
        for rows, places in found:
            one_by_one = in_order and len(rows) == len(places)
            cost[(rows, places) if one_by_one else np.ix_(rows, places)] = 0.0
    return costs


def _agree(
    own: Rows, columns: Rows, group: int, inputs: Channels
) -> list[tuple[list[int], list[int]]] | None:
    """Return the rows of a group that are equal, and where they are, as far as some inputs tell.

    None where a row is nowhere, or more often than there.
    """
    mine, theirs = (rows.places(group, inputs) for rows in (own, columns))
    found = [(rows, theirs.get(mark, [])) for mark, rows in mine.items()]
    return found if all(len(rows) <= len(places) for rows, places in found) else None
