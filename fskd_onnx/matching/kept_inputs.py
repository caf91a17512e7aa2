"""Which of its teacher's inputs each input of a student's block is, once channels are matched.

Channels are followed through both networks (``fskd_onnx.passes.analysis.propagation``). An input of
a student's block carries a channel of an earlier block; that is matched with a channel of the
teacher; and where the teacher's block reads that channel is the input looked for. Where it reads
none of them, channels that are tied (the two operands of an Add) count as the same.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fskd_onnx.passes.analysis.labels import UNKNOWN, Indices
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.propagation import ChannelFlow

# The number of a channel that two readers take for different ones.
_CONTRADICTED = -2


class KeptInputs:
    """The channels that are matched so far."""

    def __init__(self, teacher: ChannelFlow, student: ChannelFlow) -> None:
        """Start with no channel matched."""
        self._teacher, self._student = teacher, student
        self._teacher_class, self._student_class = _classes(teacher), _classes(student)
        # The teacher's channel of each channel of the student, and of each class of its channels.
        self._of_channel = np.full(len(self._student_class), UNKNOWN)
        self._of_class = self._of_channel.copy()
        self._of_readers = self._of_channel.copy()

    def add(self, student: Linear, teacher: Linear, channels: Indices) -> None:
        """Match channels of a block.

        Args:
            student: the block.
            teacher: its partner.
            channels: (width,) the teacher's channel of each of its own.
        """
        own = self._student.of_block(student.output.name)
        found = self._teacher.of_block(teacher.output.name)[channels]
        self._of_channel[own] = found
        classes = self._student_class[own]
        new = self._of_class[classes] == UNKNOWN
        self._of_class[classes[new]] = found[new]

    def add_inputs(self, student: Linear, teacher: Linear, inputs: Indices) -> None:
        """Note what the inputs of a block say about the channels that it reads.

        Args:
            student: the block.
            teacher: its partner.
            inputs: (inputs,) the teacher's input that each of its own is; UNKNOWN for some.
        """
        own, whole = _read(self._student, student), _read(self._teacher, teacher)
        if own is None or whole is None or own.shape[2] != whole.shape[2]:
            return
        known = inputs >= 0
        mine, theirs = own[:, known], whole[:, inputs[known]]
        if not np.array_equal(mine[1], theirs[1]):
            return
        both = (mine[0] >= 0) & (theirs[0] >= 0)
        channels, found = mine[0][both], theirs[0][both]
        before = self._of_readers[channels]
        agree = (before == UNKNOWN) | (before == found)
        self._of_readers[channels] = np.where(agree, found, _CONTRADICTED)

    def of_readers(self, student: Linear, teacher: Linear) -> Indices | None:
        """Return the channels of a block that its readers tell of, None where they do not.

        Args:
            student: the block.
            teacher: its partner.
        """
        found = self._of_readers[self._student.of_block(student.output.name)]
        whole = self._teacher.of_block(teacher.output.name)
        channels: Indices = found - whole[0]
        is_there = (channels >= 0) & (channels < len(whole)) & (found >= 0)
        return channels if is_there.all() and len(np.unique(channels)) == len(channels) else None

    def inputs(self, student: Linear, teacher: Linear) -> Indices | None:
        """Return the teacher's input of each input of a block.

        Args:
            student: the block.
            teacher: its partner.

        Returns:
            (inputs,) positions among those of all groups; None where they are not known.
        """
        own, whole = _read(self._student, student), _read(self._teacher, teacher)
        if own is None or whole is None or own.shape[2] != whole.shape[2]:
            return None
        known = own[0] >= 0
        if (~known).sum() != (whole[0] < 0).sum():
            return None  # which of the unknown ones are left cannot be told
        found = np.where(known, self._of_channel[own[0]], UNKNOWN)
        if (found >= 0)[known].all():
            inputs = _places(found, own[1], *whole)
            if inputs is not None:
                return inputs
        found = np.where(found < 0, self._of_class[self._student_class[own[0]]], found)
        if (found < 0)[known].any():
            return None
        classes = np.where(known, self._teacher_class[found], UNKNOWN)
        of_whole = np.where(whole[0] < 0, UNKNOWN, self._teacher_class[whole[0]])
        if len(np.unique(of_whole)) < len(np.unique(whole[0])):
            return None  # several of its channels are tied to each other
        return _places(classes, own[1], of_whole, whole[1])


def _read(flow: ChannelFlow, linear: Linear) -> Indices | None:
    """Return channels and positions of each input of a block, (2, inputs, labels of each)."""
    labels = flow.labels.get(linear.input.name)
    if labels is None:
        return None
    groups, _, p = linear.shape
    axis = linear.channel_axis % labels.rank
    return labels.along_axis(axis, groups * p // math.prod(linear.kernel_shape))


def _classes(flow: ChannelFlow) -> Indices:
    """Return the class of each channel: channels that are tied have the same."""
    count = flow.starts[-1]
    ties = [(one.channels.reshape(-1), other.channels.reshape(-1)) for one, other in flow.ties]
    if not ties:
        return np.arange(count)
    ends = np.concatenate([np.stack(tie) for tie in ties], axis=1)
    # SciPy before 1.12 reads indices of 32 bits only.
    ends = ends[:, (ends >= 0).all(axis=0)].astype(np.int32)
    graph = coo_array((np.ones(ends.shape[1], np.int8), ends), (count, count))
    classes: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return classes.astype(np.intp)


def _places(
    channels: Indices, positions: Indices, among: Indices, positions_among: Indices
) -> Indices | None:
    """Return where labels are among others, all (inputs, labels of each); None if one is not there.

    The n-th of equal labels is where the n-th of them is.
    """
    own, others = np.array([channels, positions]), np.array([among, positions_among])
    if np.array_equal(own, others):
        return np.arange(len(channels))  # as in most blocks of most students
    rows = np.concatenate([own, others], axis=1)
    if rows.shape[2] == 1:
        numbers = (rows[0, :, 0] + 1) * (rows[1].max() + 1) + rows[1, :, 0]
    else:
        flat = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
        numbers = np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)
    keys = [part * rows.shape[1] + _repeats(part) for part in np.split(numbers, [len(channels)])]
    order = np.argsort(keys[1])
    places = order[np.minimum(np.searchsorted(keys[1], keys[0], sorter=order), len(order) - 1)]
    return places if np.array_equal(keys[1][places], keys[0]) else None


def _repeats(keys: Indices) -> Indices:
    """Return how often each key was there before."""
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], keys[order])
    repeats = np.empty_like(keys)
    repeats[order] = np.arange(len(keys)) - first
    return repeats
