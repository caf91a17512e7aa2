"""Receptive fields are what the positions of windows add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.matching.receptive_field import ReceptiveField, widest


class Window(NamedTuple):
    """A kernel along one axis."""

    kernel: int
    stride: int
    dilation: int

    def node(self) -> gs.Node:
        """Give a convolution with this window."""
        weight = gs.Constant("w", np.zeros((1, 1, self.kernel), np.float32))
        attributes = {"strides": [self.stride], "dilations": [self.dilation]}
        return gs.Node("Conv", "n", attributes, [gs.Variable("x"), weight], [gs.Variable("z")])


WINDOWS = st.lists(
    st.builds(Window, st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)), max_size=4
)


def reached(windows: Sequence[Window], output: int) -> set[int]:
    """Give the positions of the input that a position of the output sees."""
    seen = {output}
    for kernel, stride, dilation in reversed(windows):
        seen = {at * stride + tap * dilation for at in seen for tap in range(kernel)}
    return seen


@given(WINDOWS)
def test_from_the_front_and_from_behind_as_counted(windows: list[Window]) -> None:
    first, second = (reached(windows, output) for output in (0, 1))
    front, behind = ReceptiveField(), ReceptiveField()
    for window in windows:
        front = front.forward(window.node())
    for window in reversed(windows):
        behind = behind.backward(window.node())
    size = max(first) - min(first) + 1
    axes = 1 if windows else 0
    assert front.size == behind.size == (size,) * axes
    assert front.step == (min(second) - min(first),) * axes


def conv(shape: tuple[int, ...], op: str = "Conv", **attributes: object) -> gs.Node:
    weight = gs.Constant("w", np.zeros(shape, np.float32))
    return gs.Node(op, "n", attributes, [gs.Variable("x"), weight], [gs.Variable("z")])


def test_axes_have_their_own_windows() -> None:
    field = ReceptiveField().forward(conv((4, 3, 3, 5), strides=[2, 1], dilations=[1, 2]))
    assert field == ReceptiveField((3, 9), (2, 1))
    assert field.forward(conv((4, 3, 1, 3))) == ReceptiveField((3, 11), (2, 1))


def test_a_separated_kernel_sees_as_much_as_the_whole() -> None:
    whole = conv((4, 3, 3, 3), strides=[2, 2])
    parts = [conv((4, 3, 3, 1), strides=[2, 1]), conv((4, 4, 1, 3), strides=[1, 2])]
    assert ReceptiveField().forward(parts[0]).forward(parts[1]) == ReceptiveField().forward(whole)
    assert (
        ReceptiveField().backward(parts[1]).backward(parts[0]).size
        == ReceptiveField().backward(whole).size
    )


def test_a_transposed_convolution_makes_steps_smaller() -> None:
    node = conv((4, 3, 3, 3), op="ConvTranspose", strides=[2, 2])
    field = ReceptiveField().forward(node)
    assert field == ReceptiveField((2, 2), (0.5, 0.5))
    assert field.forward(conv((4, 3, 3, 3))) == ReceptiveField((3, 3), (0.5, 0.5))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pools_have_windows(op: str) -> None:
    node = gs.Node(
        op,
        "n",
        {"kernel_shape": [3, 2], "strides": [2, 2]},
        [gs.Variable("x")],
        [gs.Variable("z")],
    )
    assert ReceptiveField().forward(node) == ReceptiveField((3, 2), (2, 2))
    assert ReceptiveField().backward(node).size == (3, 2)


@pytest.mark.parametrize("op", ["Relu", "GlobalAveragePool", "Gemm", "BatchNormalization"])
def test_what_has_no_window_changes_nothing(op: str) -> None:
    node = gs.Node(op, "n", {}, [gs.Variable("x")], [gs.Variable("z")])
    field = ReceptiveField((5, 3), (2, 1))
    assert field.forward(node) == field.backward(node) == field


def test_the_kernel_is_read_from_the_weight_where_no_attribute_says_it() -> None:
    said = conv((4, 3, 3, 3), kernel_shape=[3, 3])
    assert (
        ReceptiveField().forward(said)
        == ReceptiveField().forward(conv((4, 3, 3, 3)))
        == ReceptiveField((3, 3), (1, 1))
    )


def test_of_several_ways_the_largest_counts_axis_by_axis() -> None:
    assert widest(
        [ReceptiveField((3, 7), (2, 1)), ReceptiveField((5, 1), (1, 4))]
    ) == ReceptiveField((5, 7), (2, 4))
    assert widest([ReceptiveField(), ReceptiveField((3, 3), (2, 2))]) == ReceptiveField(
        (3, 3), (2, 2)
    )
    assert widest([ReceptiveField((3,), (2,)), ReceptiveField((2, 5), (1, 1))]) == ReceptiveField(
        (3, 5), (2, 1)
    )
    assert widest([]) == ReceptiveField()
