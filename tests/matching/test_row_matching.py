"""Rows of weights are found among a teacher's: to the last bit, or by their direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.matching.row_matching import LIMIT, compare_rows, confidence_of
from fskd_onnx.passes.analysis.linear import Linear
from tests.helpers import Array, build, linears

SEEDS = st.integers(0, 99)


def conv(weight: Array, bias: Array, groups: int = 1) -> Linear:
    """Give the view of a convolution."""
    n, inputs, height, width = weight.shape
    text = (
        f"g (float[N,{inputs * groups},7,7] x) => (float[N,{n},A,B] y) "
        f"<float[{n},{inputs},{height},{width}] w, float[{n}] b>"
        f"{{ [n] y = Conv <group = {groups}> (x, w, b) }}"
    )
    return linears(build(text, {"w": weight, "b": bias}))["n"]


def drawn(seed: int, *shape: int) -> tuple[Array, Array]:
    """Draw a weight and a bias."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal(shape).astype(np.float32),
        rng.standard_normal(shape[0]).astype(np.float32),
    )


def some(seed: int, count: int, of: int) -> Array:
    return np.random.default_rng(seed).permutation(of)[:count]


def found(
    student: Linear, teacher: Linear, kept: Sequence[int] | Array | None = None
) -> tuple[list[int], float]:
    evidence = compare_rows(student, teacher, None if kept is None else np.asarray(kept))
    assert evidence is not None
    best = evidence.best()
    assert best.margin >= LIMIT
    return best.columns.tolist(), confidence_of(best.margin)


@given(seed=SEEDS, factor=st.sampled_from([1.0, 0.7]))
@settings(max_examples=20)
def test_rows_in_any_order_are_found_exact_or_scaled(seed: int, factor: float) -> None:
    weight, bias = drawn(seed, 12, 9, 3, 3)
    rows, inputs = some(seed, 7, 12), some(seed + 1, 5, 9)
    teacher = conv(weight, bias)
    student = conv(factor * weight[rows][:, inputs], factor * bias[rows])
    channels, confidence = found(student, teacher, inputs)
    assert channels == rows.tolist()
    assert confidence == (1.0 if factor == 1 else pytest.approx(1, abs=1e-6))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_one_changed_weight_is_no_exact_slice(seed: int) -> None:
    weight, bias = drawn(seed, 8, 16, 3, 3)
    rows = np.sort(some(seed, 5, 8))
    kept = weight[rows]
    place = np.unravel_index(seed % kept.size, kept.shape)
    kept[place] += 0.1
    channels, confidence = found(conv(kept, bias[rows]), conv(weight, bias))
    assert channels == rows.tolist()
    assert 0.98 < confidence < 1


@pytest.mark.parametrize("groups", [2, 4])
def test_rows_are_found_in_their_groups(groups: int) -> None:
    weight, bias = drawn(0, 6 * groups, 4, 3, 3)
    rows, inputs = [1, 2, 5], [0, 3]
    n = np.add.outer(6 * np.arange(groups), rows).reshape(-1)
    p = np.add.outer(4 * np.arange(groups), inputs).reshape(-1)
    student = conv(weight[n][:, inputs], bias[n], groups)
    assert found(student, conv(weight, bias, groups), p) == (n.tolist(), 1.0)


def test_a_group_that_is_gone_is_left_out() -> None:
    weight, bias = drawn(0, 12, 2, 3, 3)
    n, p = [4, 5, 6, 7, 8, 9, 10, 11], [2, 3, 4, 5]
    student = conv(weight[n], bias[n], 2)
    assert found(student, conv(weight, bias, 3), p) == (n, 1.0)


def test_depthwise_rows_are_those_of_their_input() -> None:
    weight, bias = drawn(0, 9, 1, 3, 3)
    kept = [0, 4, 5, 8]
    teacher = conv(weight, bias, 9)
    assert found(conv(weight[kept], bias[kept], 4), teacher, kept) == (kept, 1.0)
    fresh = conv(*drawn(1, 4, 1, 3, 3), groups=4)
    assert found(fresh, teacher, kept) == (kept, 1.0)


def test_equal_rows_are_told_apart_by_bias_then_by_order() -> None:
    weight, bias = drawn(0, 8, 4, 3, 3)
    weight[1] = weight[3] = weight[6]
    bias[3] = bias[6]
    teacher = conv(weight, bias)
    for rows in ([0, 1, 4], [1, 2], [0, 3, 6, 7], list(range(8))):
        channels, confidence = found(conv(weight[rows], bias[rows]), teacher)
        assert channels == rows
        assert confidence == pytest.approx(1, abs=1e-6)


def test_dead_rows_are_told_apart_by_bias() -> None:
    weight, bias = drawn(0, 8, 4, 3, 3)
    weight[[2, 5]] = 0
    for rows in ([1, 2, 6], [1, 5, 6], [2, 5]):
        assert found(conv(weight[rows], bias[rows]), conv(weight, bias)) == (rows, 1.0)


def test_rows_that_only_differ_where_nobody_looked_first_are_told_apart() -> None:
    weight, bias = drawn(0, 4, 64, 1, 1)
    weight[1], bias[1] = weight[2], bias[2]
    weight[1, 7] += 1
    for rows in ([0, 1], [0, 2]):
        channels, confidence = found(conv(weight[rows], bias[rows]), conv(weight, bias))
        assert channels == rows
        assert confidence == pytest.approx(1, abs=1e-6)


def test_negative_zero_is_zero() -> None:
    weight, bias = drawn(0, 6, 4, 1, 1)
    weight[:, 0] = 0
    rows = [0, 2, 5]
    kept = weight[rows].copy()
    kept[:, 0] = -0.0
    assert found(conv(kept, bias[rows]), conv(weight, bias)) == (rows, 1.0)


def test_what_cannot_come_from_there_is_not_found() -> None:
    weight, bias = drawn(0, 8, 6, 3, 3)
    teacher = conv(weight, bias)
    fresh = compare_rows(conv(*drawn(1, 4, 6, 3, 3)), teacher, None)
    assert fresh is not None
    assert fresh.best().margin < LIMIT
    assert compare_rows(conv(*drawn(1, 9, 6, 3, 3)), teacher, None) is None
    assert compare_rows(conv(weight[:, :, :1], bias), teacher, None) is None
    assert compare_rows(conv(weight[:, :4], bias), teacher, None) is None
