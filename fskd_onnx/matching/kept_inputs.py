"""Which of its teacher's inputs each input of a student's block is, once channels are matched.

Channels are followed through both networks (``fskd_onnx.passes.analysis.propagation``). An input of
a student's block carries a channel of an earlier block; that is matched with a channel of the
teacher; and where the teacher's block reads that channel is the input looked for. Channels that are
tied (the two operands of an Add) count as the same on either side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fskd_onnx.passes.analysis.labels import UNKNOWN, Indices
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.propagation import Channels


class KeptInputs:
    """The channels that are matched so far."""

    def __init__(self, teacher: Channels, student: Channels) -> None:
        """Start with no channel matched."""
        self._teacher, self._student = teacher, student
        self._teacher_class, self._student_class = _classes(teacher), _classes(student)
        # The teacher's class of each channel of the student, and of each class of its channels.
        self._of_channel = np.full(len(self._student_class), UNKNOWN)
        self._of_class = self._of_channel.copy()

    def add(self, student: Linear, teacher: Linear, channels: Indices) -> None:
        """Match channels of a block.

        Args:
            student: the block.
            teacher: its partner.
            channels: (width,) the teacher's channel of each of its own.
        """
        own = self._student.of_block(student.output.name)
        found = self._teacher_class[self._teacher.of_block(teacher.output.name)[channels]]
        self._of_channel[own] = found
        classes = self._student_class[own]
        new = self._of_class[classes] == UNKNOWN
        self._of_class[classes[new]] = found[new]

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
        channels = own[0]
        classes = self._of_channel[channels]
        classes = np.where(classes < 0, self._of_class[self._student_class[channels]], classes)
        if (classes[channels >= 0] < 0).any():
            return None
        own[0] = np.where(channels < 0, UNKNOWN, classes)
        whole[0] = np.where(whole[0] < 0, UNKNOWN, self._teacher_class[whole[0]])
        if np.array_equal(own, whole):
            return np.arange(own.shape[1])  # all, as in most blocks of most students
        return _found(*_keys(own, whole))


def _read(channels: Channels, linear: Linear) -> Indices | None:
    """Return channels and positions of each input of a block, (2, inputs, labels of each)."""
    labels = channels.labels.get(linear.input.name)
    if labels is None:
        return None
    groups, _, p = linear.shape
    axis = linear.channel_axis % labels.rank
    return labels.along_axis(axis, groups * p // math.prod(linear.kernel_shape))


def _classes(channels: Channels) -> Indices:
    """Return the class of each channel: channels that are tied have the same."""
    count = channels.starts[-1]
    ties = [(one.channels.reshape(-1), other.channels.reshape(-1)) for one, other in channels.ties]
    if not ties:
        return np.arange(count)
    ends = np.concatenate([np.stack(tie) for tie in ties], axis=1)
    ends = ends[:, (ends >= 0).all(axis=0)]
    graph = coo_array((np.ones(ends.shape[1], np.int8), ends), (count, count))
    classes: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return classes.astype(np.intp)


def _keys(own: Indices, whole: Indices) -> tuple[Indices, Indices]:
    """Return a number for each input, the same for the same labels."""
    rows = np.concatenate([own, whole], axis=1)
    if rows.shape[2] == 1:
        channels, positions = rows[..., 0]
        keys = (channels + 1) * (positions.max(initial=0) + 1) + positions
    else:
        flat = np.moveaxis(rows, 1, 0).reshape(rows.shape[1], -1)
        keys = np.unique(flat, axis=0, return_inverse=True)[1].reshape(-1)
    return keys[: own.shape[1]], keys[own.shape[1] :]


def _found(keys: Indices, among: Indices) -> Indices | None:
    """Return where each key is among others, the n-th of a kind where the n-th is."""
    count = len(among) + 1
    wanted, there = (part * count + np.minimum(_repeats(part), count - 1) for part in (keys, among))
    order = np.argsort(there)
    places = order[np.minimum(np.searchsorted(there, wanted, sorter=order), len(there) - 1)]
    return places if np.array_equal(there[places], wanted) else None


def _repeats(keys: Indices) -> Indices:
    """Return how often each key was there before."""
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], keys[order])
    repeats = np.empty_like(keys)
    repeats[order] = np.arange(len(keys)) - first
    return repeats
