"""What a convolution sees around a position: strides, dilations, taps and padding of each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.composed_kernels import Kernel
from fskd_onnx.passes.analysis.linear import Linear


@dataclass(frozen=True)
class Window:
    """What a convolution sees around a position, along each axis.

    Attributes:
        strides: step between positions.
        dilations: step between taps.
        taps: number of them.
        begin: pads in front.
        end: pads behind.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    taps: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @staticmethod
    def of(linear: Linear) -> Window | None:
        """Read the attributes of a node; None where the window depends on the input's extent."""
        rank, attrs = len(linear.kernel_shape), linear.node.attrs
        if linear.operator.transposed:
            return None
        if not linear.is_convolution:
            return Window((), (), (), (), ())
        strides, dilations = (
            tuple(attrs.get(name) or [1] * rank) for name in ("strides", "dilations")
        )
        pads = attrs.get("pads") or [0] * 2 * rank
        auto = attrs.get("auto_pad", "NOTSET")
        if auto == "VALID":
            pads = [0] * 2 * rank
        elif auto in ("SAME_UPPER", "SAME_LOWER"):
            if any(stride != 1 for stride in strides):
                return None
            total = [(k - 1) * d for k, d in zip(linear.kernel_shape, dilations, strict=True)]
            less, more = [t // 2 for t in total], [t - t // 2 for t in total]
            pads = less + more if auto == "SAME_UPPER" else more + less
        return Window(
            strides, dilations, linear.kernel_shape, tuple(pads[:rank]), tuple(pads[rank:])
        )

    def point(self) -> Window:
        """Return that of a shortcut over as many axes."""
        ones, zeros = (1,) * len(self.taps), (0,) * len(self.taps)
        return Window(ones, ones, ones, zeros, zeros)

    def behind(self, first: Window) -> Window | None:
        """Return the window of a convolution behind another one, as one convolution.

        Padding between the two is zeros, where the one composed of both would see more of the input
        than zeros: only along an axis on which the first sees one position, and none of its own
        padding, are these the same.

        Returns:
            None where the two are not one convolution.
        """
        axes = range(len(self.taps))
        for axis in axes:
            is_point = first.taps[axis] == 1 and not (first.begin[axis] or first.end[axis])
            if (self.begin[axis] or self.end[axis]) and not is_point:
                return None
        steps = tuple(
            math.gcd(
                self.dilations[a] * first.strides[a] if self.taps[a] > 1 else 0,
                first.dilations[a] if first.taps[a] > 1 else 0,
            )
            or 1
            for a in axes
        )
        reach = [
            (self.taps[a] - 1) * self.dilations[a] * first.strides[a]
            + (first.taps[a] - 1) * first.dilations[a]
            for a in axes
        ]
        begin, end = (
            tuple(front + own * s for front, own, s in zip(*sides, first.strides, strict=True))
            for sides in ((first.begin, self.begin), (first.end, self.end))
        )
        strides = tuple(a * b for a, b in zip(self.strides, first.strides, strict=True))
        taps = tuple(r // step + 1 for r, step in zip(reach, steps, strict=True))
        return Window(strides, steps, taps, begin, end)

    @property
    def is_padded(self) -> bool:
        """Whether it sees padding."""
        return any(self.begin) or any(self.end)

    @property
    def lost(self) -> tuple[int, ...]:
        """How much shorter than the input the output is, at a stride of 1."""
        axes = zip(self.taps, self.dilations, self.begin, self.end, strict=True)
        return tuple((k - 1) * d - front - behind for k, d, front, behind in axes)

    def place(self, kernel: Kernel, window: Window) -> NDArray[np.floating[Any]]:
        """Return the weights of a kernel of another window, at its taps of this one."""
        groups, n, inputs = kernel.weights.shape[:3]
        placed = np.zeros((groups, n, inputs, *self.taps), kernel.weights.dtype)
        at = tuple(
            slice(
                first := (mine - theirs) // step,
                first + (k - 1) * d // step + 1,
                max(1, d // step) if k > 1 else 1,
            )
            for mine, theirs, step, k, d in zip(
                self.begin, window.begin, self.dilations, window.taps, window.dilations, strict=True
            )
        )
        placed[(*(slice(None),) * 3, *at)] = kernel.weights
        return placed


def common(windows: Sequence[Window]) -> Window | None:
    """Return the smallest window that holds all of some; None where their outputs differ."""
    if len({(window.strides, window.lost) for window in windows}) != 1:
        return None
    begin, end = (
        tuple(map(max, zip(*sides, strict=True)))
        for sides in ((w.begin for w in windows), (w.end for w in windows))
    )
    axes = range(len(begin))
    steps = tuple(
        math.gcd(
            *(begin[axis] - w.begin[axis] for w in windows),
            *(w.dilations[axis] for w in windows if w.taps[axis] > 1),
        )
        or 1
        for axis in axes
    )
    lost = windows[0].lost
    taps = tuple((begin[a] + end[a] + lost[a]) // steps[a] + 1 for a in axes)
    return Window(windows[0].strides, steps, taps, begin, end)
