"""Rows of weights with their biases, cut down to some rows and some inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.matching.assignment import Channels
from fskd_onnx.passes.analysis.linear import Linear

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Rows:
    """Rows of weights with their biases.

    Attributes:
        weights: (groups, n, inputs, taps).
        biases: (groups, n).
    """

    weights: Floats
    biases: Floats

    @staticmethod
    def of(linear: Linear) -> Rows:
        """Read those of a block."""
        groups, n, p = linear.shape
        taps = math.prod(linear.kernel_shape)
        weights = linear.native.reshape(groups, n, p // taps, taps)
        return Rows(weights, linear.bias.reshape(groups, n))

    @property
    def width(self) -> int:
        """Number of rows of a group."""
        return int(self.biases.shape[1])

    @property
    def inputs(self) -> int:
        """Number of inputs of a group."""
        return int(self.weights.shape[2])

    @property
    def is_depthwise(self) -> bool:
        """Whether each group has one row of one input."""
        return len(self.weights) > 1 and self.weights.shape[1:3] == (1, 1)

    def in_one_group(self) -> Rows:
        """Return the rows as if all of them read the same inputs."""
        return Rows(np.swapaxes(self.weights, 0, 1), np.swapaxes(self.biases, 0, 1))

    def some(self, groups: Channels, parts: Channels) -> Rows:
        """Return the rows at (groups, n) places, each of a group."""
        places = (groups[:, np.newaxis] * self.width + parts).reshape(-1)
        weights = _taken(self.weights.reshape(-1, *self.weights.shape[2:]), places)
        biases = self.biases.reshape(-1)[places].reshape(parts.shape)
        return Rows(weights.reshape(*parts.shape, *weights.shape[1:]), biases)

    def of_inputs(self, inputs: Channels) -> Rows:
        """Return the rows cut down to some inputs, (groups, inputs) of each group."""
        groups, n, have, taps = self.weights.shape
        if inputs.shape[1] == have and (inputs == np.arange(have)).all():
            return self
        cut = np.empty((groups, n, inputs.shape[1], taps), self.weights.dtype)
        for rows, chosen, result in zip(self.weights, inputs, cut, strict=True):
            rows.take(chosen, axis=1, out=result, mode="clip")
        return Rows(cut, self.biases)

    def equals(self, other: Rows) -> bool:
        """Whether all numbers are the same."""
        return np.array_equal(self.biases, other.biases) and np.array_equal(
            self.weights, other.weights
        )

    def marks(self, group: int, inputs: Channels) -> list[bytes]:
        """Return bytes of some weights and the bias of each row of a group; of zeros, -0 is one."""
        weights = self.weights[group].take(inputs, axis=1)
        table = np.column_stack([weights.reshape(self.width, -1), self.biases[group]]) + 0.0
        return [row.tobytes() for row in table.astype(np.float64, copy=False)]

    def places(self, group: int, inputs: Channels) -> dict[bytes, list[int]]:
        """Return the rows of a group that have each of their marks, see ``marks``."""
        places: dict[bytes, list[int]] = {}
        for place, mark in enumerate(self.marks(group, inputs)):
            places.setdefault(mark, []).append(place)
        return places

    def copies(self) -> Channels:
        """Return a number for each row, over all groups, the same for rows that are equal."""
        everything = np.arange(self.inputs)
        first: dict[tuple[int, bytes], int] = {}
        keys = ((g, mark) for g in range(len(self.weights)) for mark in self.marks(g, everything))
        return np.array([first.setdefault(key, place) for place, key in enumerate(keys)])

    def flat(self) -> NDArray[np.float64]:
        """Return the weights as (groups, n, inputs * taps)."""
        flat = self.weights.reshape(*self.biases.shape, -1)
        return np.ascontiguousarray(flat, np.float64)


def _taken(rows: Floats, places: Channels) -> Floats:
    """Return some of the rows, without a copy where they are all, in order."""
    if len(places) == len(rows) and (places == np.arange(len(rows))).all():
        return rows
    return rows.take(places, axis=0)
