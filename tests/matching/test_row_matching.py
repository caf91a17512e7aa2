"""Rows of weights are found among a teacher's: to the last bit, or by their direction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.matching.row_matching import LIMIT, compare_rows, confidence_of, copies_of
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


def integers(
    seed: int, shape: tuple[int, ...], values: int, biases: int = 1
) -> tuple[Array, Array]:
    """Draw weights of few values, with some rows of zeros, and biases of few values."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-(values // 2), values, shape).astype(np.float32)
    weight[rng.random(shape[0]) < 0.2] = 0
    return weight, rng.integers(0, biases, shape[0]).astype(np.float32)


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


def test_several_groups_may_come_from_a_dense_block() -> None:
    """Whatever else is wrong with such a pair, rows are compared with all of the teacher's."""
    student, teacher = conv(*drawn(0, 5, 1, 3, 3), groups=5), conv(*drawn(1, 5, 5, 3, 3))
    evidence = compare_rows(student, teacher, None)
    assert evidence is not None
    assert len(evidence.best().columns) == 5


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


def test_copies_of_which_only_some_are_kept_are_not_told_apart() -> None:
    weight, bias = drawn(0, 8, 4, 3, 3)
    weight[[2, 5]], bias[[2, 5]] = 0, 1
    evidence = compare_rows(conv(weight[[1, 2, 6]], bias[[1, 2, 6]]), conv(weight, bias), None)
    assert evidence is not None
    assert evidence.best().margin == 0
    best = evidence.best(copies_of(conv(weight, bias)))
    assert best.columns.tolist() in ([1, 2, 6], [1, 5, 6])
    assert best.margin >= LIMIT


def test_rows_that_differ_in_removed_inputs_only_are_no_copies() -> None:
    weight, bias = drawn(0, 8, 4, 1, 1)
    weight[5, :2], bias[5] = weight[2, :2], bias[2]
    teacher = conv(weight, bias)
    student = conv(weight[[1, 2, 6]][:, :2], bias[[1, 2, 6]])
    evidence = compare_rows(student, teacher, np.array([0, 1]))
    assert evidence is not None
    assert evidence.best(copies_of(teacher)).margin < LIMIT


def test_a_dense_block_of_one_input_is_not_taken_for_depthwise() -> None:
    weight, bias = drawn(0, 6, 1, 3, 3)
    rows = [3, 1, 0, 2, 5, 4]
    assert found(conv(weight[rows], bias[rows]), conv(weight, bias), [0]) == (rows, 1.0)


@given(
    seed=st.integers(0, 9999),
    values=st.integers(1, 6),
    biases=st.sampled_from([1, 2, 50]),
    noise=st.sampled_from([0.0, 0.0, 0.01]),
)
@settings(max_examples=150)
def test_rows_of_few_values_come_out_right_or_in_doubt(
    seed: int, values: int, biases: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    m, q = (int(n) for n in rng.integers(1, [13, 7]))
    weight, bias = integers(seed, (m, q, 1, 1), values, biases)
    rows, inputs = (
        np.sort(rng.permutation(n)[: rng.integers(1, n + 1)]).astype(int) for n in (m, q)
    )
    cut = weight[rows][:, inputs]
    cut = cut + noise * rng.standard_normal(cut.shape)
    evidence = compare_rows(conv(cut, bias[rows]), conv(weight, bias), inputs)
    assert evidence is not None
    best = evidence.best()
    if best.margin >= LIMIT:
        assert best.columns.tolist() == rows.tolist()


NOISE = [0.0, 0.01, 0.05, 0.3]


@pytest.mark.parametrize("inputs", [1, 2, 3, 9, 27, 144])
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("has_factors", [False, True], ids=["", "factors"])
def test_noise_never_gives_a_wrong_channel(inputs: int, noise: float, has_factors: bool) -> None:
    rng = np.random.default_rng(inputs)
    seen = right = 0
    for m, n, has_bias in product((4, 48), (1, 2), (False, True)):
        weight, bias = (rng.standard_normal(shape) for shape in ((m, inputs, 1, 1), m))
        bias = bias * has_bias
        rows = rng.permutation(m)[: m // n]
        factors = np.exp(0.5 * rng.standard_normal(m // n)) if has_factors else np.ones(m // n)
        cut = weight[rows] + noise * rng.standard_normal((m // n, inputs, 1, 1))
        shifted = factors * (bias[rows] + noise * has_bias * rng.standard_normal(m // n))
        student = conv(factors[:, np.newaxis, np.newaxis, np.newaxis] * cut, shifted)
        evidence = compare_rows(student, conv(weight, bias), np.arange(inputs))
        assert evidence is not None
        best = evidence.best()
        seen += 1
        if best.margin >= LIMIT:
            assert best.columns.tolist() == rows.tolist()
            right += 1
    if inputs >= 9 and noise <= 0.05:
        assert right == seen  # ordinary blocks are found


def test_two_inputs_with_noise_of_one_percent_are_not_mistaken() -> None:
    # Cosines to the wrong rows are 0.998 here.
    for seed in range(20):
        weight, bias = drawn(seed, 64, 2, 1, 1)
        noisy = weight + 0.01 * drawn(seed + 100, *weight.shape)[0]
        evidence = compare_rows(conv(noisy, bias), conv(weight, bias), None)
        assert evidence is not None
        best = evidence.best()
        assert best.columns.tolist() == list(range(64))


def test_rows_in_doubt_add_up() -> None:
    # Two blocks of one stream, of which neither tells alone.
    rng = np.random.default_rng(4)
    rows = some(5, 10, 20)
    evidence = []
    for seed in range(4):
        weight, bias = drawn(seed, 20, 2, 1, 1)
        noisy = weight[rows] + 0.2 * rng.standard_normal((10, 2, 1, 1))
        found = compare_rows(conv(noisy, 0 * bias[rows]), conv(weight, bias), np.arange(2))
        assert found is not None
        assert found.best().margin < LIMIT
        evidence.append(found)
    together = evidence[0] + evidence[1] + evidence[2] + evidence[3]
    assert together.best().margin >= LIMIT
    assert together.best().columns.tolist() == rows.tolist()


def test_rows_may_be_looked_up_alone() -> None:
    weight, bias = drawn(0, 8, 6, 3, 3)
    teacher, student = conv(weight, bias), conv(weight[[2, 5]], bias[[2, 5]])
    exact = compare_rows(student, teacher, None, with_noise=False)
    assert exact is not None
    assert exact.is_exact
    noisy = conv(1.01 * weight, bias)
    assert compare_rows(noisy, teacher, None, with_noise=False) is None
    assert compare_rows(noisy, teacher, None) is not None


def test_what_cannot_come_from_there_is_not_found() -> None:
    weight, bias = drawn(0, 8, 6, 3, 3)
    teacher = conv(weight, bias)
    fresh = compare_rows(conv(*drawn(1, 4, 6, 3, 3)), teacher, None)
    assert fresh is not None
    assert fresh.best().margin < LIMIT
    assert compare_rows(conv(*drawn(1, 9, 6, 3, 3)), teacher, None) is None
    assert compare_rows(conv(weight[:, :, :1], bias), teacher, None) is None
    assert compare_rows(conv(weight[:, :4], bias), teacher, None) is None
