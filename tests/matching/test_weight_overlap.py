"""Weights are recognized as slices of others, and chance is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.matching.weight_overlap import (
    KernelIndex,
    KernelWeights,
    KeyFilter,
    approximation,
    overlap,
)
from tests.helpers import build, linears

Floats = NDArray[np.float32]

# (channels, inputs, kernel): spatial, large, 1 x 1, depthwise, fully connected
SHAPES: list[tuple[int, int, tuple[int, ...]]] = [
    (64, 32, (3, 3)),
    (256, 128, (3, 3)),
    (32, 3, (7, 7)),
    (128, 64, (1, 1)),
    (48, 1, (3, 3)),
    (100, 256, ()),
]
WIDE = [shape for shape in SHAPES if shape[1] > 3]


def kernel_weights(rows: NDArray[np.floating], kernel: tuple[int, ...]) -> KernelWeights:
    return KernelWeights(kernel, np.ascontiguousarray(rows, np.float32))


def drawn(shape: tuple[int, int, tuple[int, ...]], seed: int) -> Floats:
    channels, inputs, kernel = shape
    size = channels, inputs, int(np.prod(kernel, dtype=int))
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def half(n: int, seed: int) -> NDArray[np.intp]:
    """Draw half of n channels, in any order."""
    return np.random.default_rng(seed).permutation(n)[: max(1, n // 2)]


def found_in(student: KernelWeights, teacher: KernelWeights, *others: KernelWeights) -> float:
    """Look a student up, be it one of several."""
    return overlap(student, KernelIndex(teacher, KeyFilter([student, *others])))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_weights_are_found_whole(shape: tuple[int, int, tuple[int, ...]]) -> None:
    own = kernel_weights(drawn(shape, 0), shape[2])
    assert found_in(own, own) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 9))
@settings(max_examples=5)
def test_slices_of_rows_are_found(shape: tuple[int, int, tuple[int, ...]], seed: int) -> None:
    rows = drawn(shape, seed)
    student = kernel_weights(rows[half(len(rows), seed)], shape[2])
    assert found_in(student, kernel_weights(rows, shape[2])) == pytest.approx(1)


@pytest.mark.parametrize("shape", WIDE)
@given(seed=st.integers(0, 9))
@settings(max_examples=5)
def test_slices_of_rows_and_inputs_are_found(
    shape: tuple[int, int, tuple[int, ...]], seed: int
) -> None:
    rows = drawn(shape, seed)
    kept = rows[half(len(rows), seed)][:, half(shape[1], seed + 1)]
    assert found_in(kernel_weights(kept, shape[2]), kernel_weights(rows, shape[2])) > 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_a_few_units_in_the_last_place_do_not_matter(
    shape: tuple[int, int, tuple[int, ...]],
) -> None:
    rows = drawn(shape, 0)
    kept = rows[half(len(rows), 1)][:, half(shape[1], 2)]
    signs = np.random.default_rng(3).choice([-2, 2], kept.shape)
    near = kept + signs * np.spacing(np.abs(kept))
    assert found_in(kernel_weights(near, shape[2]), kernel_weights(rows, shape[2])) > 0.9


@pytest.mark.parametrize("shape", [s for s in SHAPES if np.prod(s[2], dtype=int) > 1])
@pytest.mark.parametrize("fewer_inputs", [False, True])
def test_a_factor_per_row_does_not_matter(
    shape: tuple[int, int, tuple[int, ...]], fewer_inputs: bool
) -> None:
    rows = drawn(shape, 0)
    kept = rows[half(len(rows), 1)]
    if fewer_inputs:
        kept = kept[:, half(shape[1], 2)]
    factors = np.random.default_rng(3).uniform(0.1, 5, (len(kept), 1, 1))
    assert found_in(kernel_weights(kept * factors, shape[2]), kernel_weights(rows, shape[2])) > 0.95


@pytest.mark.parametrize("shape", WIDE)
def test_a_factor_per_row_does_not_matter_where_inputs_were_kept(
    shape: tuple[int, int, tuple[int, ...]],
) -> None:
    rows = drawn(shape, 0)
    factors = np.random.default_rng(3).uniform(0.1, 5, (len(rows), 1, 1))
    assert found_in(kernel_weights(rows * factors, shape[2]), kernel_weights(rows, shape[2])) > 0.99


@pytest.mark.parametrize("shape", WIDE)
@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5])
def test_noise_leaves_most_of_a_row(
    shape: tuple[int, int, tuple[int, ...]], strength: float
) -> None:
    rows = drawn(shape, 0)
    noisy = (rows + strength * drawn(shape, 1))[half(len(rows), 2)]
    found = found_in(kernel_weights(noisy, shape[2]), kernel_weights(rows, shape[2]))
    # The cosine that is left, less a margin for what chance explains.
    assert found > 1 / np.sqrt(1 + strength**2) - 0.1
    assert found < 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fewer_inputs", [False, True])
@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_chance_finds_little(
    shape: tuple[int, int, tuple[int, ...]], fewer_inputs: bool, seed: int
) -> None:
    student = drawn(shape, seed)[half(shape[0], seed)]
    if fewer_inputs:
        student = student[:, half(shape[1], seed)]
    teacher = kernel_weights(drawn(shape, seed + 100), shape[2])
    assert 0 <= found_in(kernel_weights(student, shape[2]), teacher) < 0.3


@pytest.mark.parametrize("shape", [(64, 32, (3, 3)), (128, 64, (1, 1)), (100, 256, ())])
@pytest.mark.parametrize("levels", [1, 7, 127])
def test_chance_finds_little_among_few_values(
    shape: tuple[int, int, tuple[int, ...]], levels: int
) -> None:
    def quantized(seed: int) -> Floats:
        return np.round(drawn(shape, seed) * levels / 4).clip(-levels, levels)

    student = quantized(0)[half(shape[0], 0)][:, half(shape[1], 1)]
    found = found_in(kernel_weights(student, shape[2]), kernel_weights(quantized(1), shape[2]))
    assert 0 <= found < 0.3


@pytest.mark.parametrize("shape", [(64, 32, (3, 3)), (100, 256, ())])
def test_slices_of_quantized_weights_are_found(
    shape: tuple[int, int, tuple[int, ...]],
) -> None:
    rows = np.round(drawn(shape, 0) * 30).clip(-127, 127)
    whole = kernel_weights(rows, shape[2])
    assert found_in(kernel_weights(rows[half(len(rows), 1)], shape[2]), whole) == pytest.approx(1)


@pytest.mark.parametrize("fewer_inputs", [False, True])
def test_zeros_have_nothing_in_common_with_anything(fewer_inputs: bool) -> None:
    rows = drawn((16, 8, (3, 3)), 0)
    zeros = np.zeros_like(rows)
    few = zeros[:, :4] if fewer_inputs else zeros
    for teacher in (rows, zeros):
        assert found_in(kernel_weights(few, (3, 3)), kernel_weights(teacher, (3, 3))) == 0
    few = rows[:, :4] if fewer_inputs else rows
    assert found_in(kernel_weights(few, (3, 3)), kernel_weights(zeros, (3, 3))) == 0


def test_dead_kernels_are_not_asked_for() -> None:
    rows = drawn((32, 16, (3, 3)), 0)
    rows[:, ::3] = 0
    student = rows[::2][:, :12]
    assert found_in(kernel_weights(student, (3, 3)), kernel_weights(rows, (3, 3))) == pytest.approx(
        1
    )


def test_what_is_larger_or_of_another_kernel_has_nothing_in_common() -> None:
    rows = drawn((16, 8, (3, 3)), 0)
    own = kernel_weights(rows, (3, 3))
    assert found_in(own, kernel_weights(rows[:8], (3, 3))) == 0
    assert found_in(own, kernel_weights(rows[:, :4], (3, 3))) == 0
    assert found_in(own, kernel_weights(rows, (1, 9))) == 0
    assert found_in(own, kernel_weights(rows[..., :1], (1, 1))) == 0


def test_keys_keep_the_order_of_the_numbers() -> None:
    values = np.array([-3.0, -1.5, -1e-30, 0.0, 1e-30, 0.5, 0.5, 2.0], np.float32)
    keys = kernel_weights(values.reshape(1, -1, 1), (1, 1)).keys[0]
    assert (np.diff(keys) >= 0).all()
    assert keys[3] == 0
    assert keys[5] == keys[6]
    assert (np.diff(np.delete(keys, 6)) > 0).all()


def test_neighbouring_numbers_have_neighbouring_keys() -> None:
    values = np.array([-2.5, -1e-3, 1e-3, 0.7, 2.5], np.float32)
    above = np.nextafter(values, np.float32(np.inf))
    rows = np.stack([values, above])[..., np.newaxis]
    keys = kernel_weights(rows, (1, 1)).keys
    np.testing.assert_array_equal(keys[1] - keys[0], 1)


def test_negative_zero_is_zero() -> None:
    assert kernel_weights(np.full((1, 1, 1), -0.0, np.float32), (1, 1)).keys[0, 0] == 0


@pytest.mark.parametrize(
    ("text", "shape", "kernel"),
    [
        ("float[6,4,3,2] w> { z = Conv (x, w) }", (6, 4, 6), (3, 2)),
        ("float[6,2,3,2] w> { z = Conv <group = 2> (x, w) }", (6, 2, 6), (3, 2)),
        ("float[4,6,3,2] w> { z = ConvTranspose (x, w) }", (6, 4, 6), (3, 2)),
        ("float[5,6] w> { z = MatMul (x, w) }", (6, 5, 1), ()),
    ],
)
def test_the_weights_of_a_node_has_a_row_per_channel(
    text: str, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> None:
    model = build(f"g (float[N,4,5,5] x) => (float[N,A,B,C] z) <{text}")
    (linear,) = linears(model).values()
    found = KernelWeights.of(linear)
    assert (found.rows.shape, found.kernel_shape) == (shape, kernel)
    assert found.rows.dtype == np.float32


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 9))
@settings(max_examples=5)
def test_what_others_ask_for_changes_nothing(
    shape: tuple[int, int, tuple[int, ...]], seed: int
) -> None:
    rows = drawn(shape, seed)
    kept = rows[half(len(rows), seed)][:, half(shape[1], seed + 1)]
    noisy = kept * (1 + np.float32(1e-6) * drawn(shape, seed + 2)[: len(kept), : kept.shape[1]])
    student, teacher = kernel_weights(noisy, shape[2]), kernel_weights(rows, shape[2])
    others = [kernel_weights(drawn(other, seed + 3), other[2]) for other in SHAPES]
    assert found_in(student, teacher, *others) == found_in(student, teacher)


floats = st.floats(width=32, allow_nan=False)


@given(
    asked=st.lists(floats, min_size=1, max_size=20),
    others=st.lists(floats, max_size=20),
    steps=st.integers(-8, 8),
)
def test_a_filter_keeps_all_that_is_near_a_key(
    asked: list[float], others: list[float], steps: int
) -> None:
    student = kernel_weights(np.array(asked, np.float32).reshape(1, -1, 1), ())
    keys = student.keys[0] + steps
    near = np.where(keys < 0, -keys - 2**31, keys).astype(np.int32).view(np.float32)
    numbers = np.concatenate([np.array(others, np.float32), near])
    through = KeyFilter([student])(numbers)
    assert set(range(len(others), len(numbers))) <= set(through.tolist())


def test_a_filter_drops_most() -> None:
    student, teacher = drawn((8, 32, (1, 1)), 0), drawn((512, 512, (1, 1)), 1)
    through = KeyFilter([kernel_weights(student, (1, 1))])(teacher.reshape(-1))
    assert len(through) < teacher.size / 10


@given(seed=st.integers(0, 99), levels=st.sampled_from([1, 2, 1000]))
def test_the_number_of_a_kernel_is_its_first_largest_weight_at_unit_length(
    seed: int, levels: int
) -> None:
    rows = np.round(drawn((6, 5, (3, 3)), seed) * levels)
    found = kernel_weights(rows, (3, 3)).numbers
    for kernel, number in zip(rows.reshape(-1, 9), found.reshape(-1), strict=True):
        length = np.linalg.norm(kernel)
        peak = kernel[np.abs(kernel).argmax()]
        assert number == pytest.approx(peak / length if length else 0, rel=1e-6)


@pytest.mark.parametrize(("dead", "rows"), [([], 6), ([5], 5), ([0, 5], 5), (range(6), 1)])
def test_dead_rows_at_the_end_do_not_count(dead: list[int], rows: int) -> None:
    weights = drawn((6, 4, (3, 3)), 0)
    weights[list(dead)] = 0
    teacher = kernel_weights(weights, (3, 3))
    assert KernelIndex(teacher, KeyFilter([teacher])).rows == rows


def test_without_students_nothing_comes_through() -> None:
    assert len(KeyFilter([])(drawn((64, 64, (1, 1)), 0).reshape(-1))) == 0


@pytest.mark.parametrize("fewer_inputs", [False, True])
def test_each_row_is_claimed_once(fewer_inputs: bool) -> None:
    # Of two rows, each sixteen times, all claims but two are void: of 8 or of 32 that are made.
    rows = drawn((32, 16, (3, 3)), 0)
    student = np.repeat(rows[:2], 16, axis=0)
    if fewer_inputs:
        student = student[:, ::2]
    found = found_in(kernel_weights(student, (3, 3)), kernel_weights(rows, (3, 3)))
    assert found == pytest.approx(2 / 8 if fewer_inputs else 2 / 32)
    twice = kernel_weights(np.concatenate([rows[:16], rows[:16]]), (3, 3))
    if fewer_inputs:  # what the teacher has twice may be claimed twice
        assert found_in(kernel_weights(rows[:16, ::2], (3, 3)), twice) == pytest.approx(1)


@pytest.mark.parametrize(("n", "rank"), [(64, 16), (64, 32), (32, 8)])
@pytest.mark.parametrize("decay", [0.0, 2.0, 6.0])
def test_singular_vectors_stand_out_little(n: int, rank: int, decay: float) -> None:
    drawn_rows = drawn((n, 32, (3, 3)), n).reshape(n, -1)
    u, _, v = np.linalg.svd(drawn_rows, full_matrices=False)
    rows = (u * np.exp(-decay * np.arange(n) / n)) @ v
    teacher = kernel_weights(rows.reshape(n, 32, 9), (3, 3))
    student = kernel_weights(v[:rank].reshape(rank, 32, 9), (3, 3))
    assert found_in(student, teacher) < 0.3


def test_a_composed_kernel_of_low_rank_approximates_another() -> None:
    rows = drawn((64, 32, (3, 3)), 0).reshape(64, -1)
    u, s, v = np.linalg.svd(rows, full_matrices=False)
    low = ((u[:, :16] * s[:16]) @ v[:16]).reshape(64, 32, 9)
    teacher = kernel_weights(rows.reshape(64, 32, 9), (3, 3))
    assert approximation(kernel_weights(low, (3, 3)), teacher) > 0.4
    assert approximation(teacher, teacher) == pytest.approx(1)
    other = kernel_weights(drawn((64, 32, (3, 3)), 5), (3, 3))
    assert approximation(other, teacher) < 0.1
    assert approximation(kernel_weights(low[:, :16], (3, 3)), teacher) == 0
    assert approximation(kernel_weights(np.zeros_like(low), (3, 3)), teacher) == 0
    assert approximation(teacher, kernel_weights(low[:32], (3, 3))) == 0
