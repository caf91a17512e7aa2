"""Each operator stores the same matrices in its own order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from tests.helpers import Array

GROUPS, N, CHANNELS, KERNEL = 2, 3, 5, (2, 4)
TAPS = 8


def number(group: int, output: int, channel: int, tap: int) -> int:
    return ((group * N + output) * CHANNELS + channel) * TAPS + tap


def conv(stored: Array, group: int, output: int, channel: int, tap: int) -> float:
    return float(stored[group * N + output, channel][np.unravel_index(tap, KERNEL)])


def conv_transpose(stored: Array, group: int, output: int, channel: int, tap: int) -> float:
    return float(stored[group * CHANNELS + channel, output][np.unravel_index(tap, KERNEL)])


@pytest.mark.parametrize(("op", "at"), [("Conv", conv), ("ConvTranspose", conv_transpose)])
def test_kernels(op: str, at: Callable[..., float]) -> None:
    operator, node = LINEAR_OPERATORS[op], gs.Node(op, attrs={"group": GROUPS})
    matrix = np.arange(GROUPS * N * CHANNELS * TAPS, dtype=float).reshape(GROUPS, N, -1)
    stored = operator.stored(node, matrix, KERNEL)
    assert operator.shape(node, stored.shape) == matrix.shape
    np.testing.assert_array_equal(operator.matrix(node, stored), matrix)
    for place in np.ndindex(GROUPS, N, CHANNELS, TAPS):
        assert at(stored, *place) == number(*place)


@pytest.mark.parametrize(
    ("op", "attrs", "outputs_first"),
    [
        ("Gemm", {}, False),
        ("Gemm", {"transB": 0}, False),
        ("Gemm", {"transB": 1}, True),
        ("MatMul", {}, False),
    ],
)
def test_matrices(op: str, attrs: dict[str, int], outputs_first: bool) -> None:
    operator, node = LINEAR_OPERATORS[op], gs.Node(op, attrs=attrs)
    matrix = np.arange(15.0).reshape(1, 3, 5)
    stored = operator.stored(node, matrix, ())
    np.testing.assert_array_equal(stored, matrix[0] if outputs_first else matrix[0].T)
    viewed = operator.matrix(node, stored)
    np.testing.assert_array_equal(viewed, matrix)
    assert np.shares_memory(viewed, stored)
    assert operator.shape(node, stored.shape) == (1, 3, 5)


@pytest.mark.parametrize("op", LINEAR_OPERATORS)
def test_an_adapter_is_a_layer_that_sees_one_position(op: str) -> None:
    operator = LINEAR_OPERATORS[op]
    adapter = LINEAR_OPERATORS[operator.adapter]
    assert adapter.convolves == operator.convolves
    assert not adapter.transposed
    assert adapter.pointwise_attributes(2, 3) == (
        {"group": 2, "kernel_shape": [1, 1, 1]} if operator.convolves else {}
    )
