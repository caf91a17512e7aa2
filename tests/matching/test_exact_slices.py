"""Rows and inputs of exact slices are found together, or none are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.matching.exact_slices import find_slice
from fskd_onnx.passes.analysis.labels import UNKNOWN
from tests.matching.test_row_matching import conv, drawn, integers, some

SEEDS = st.integers(0, 999)


@given(seed=SEEDS, taps=st.sampled_from([1, 3]))
@settings(max_examples=20)
def test_rows_and_inputs_in_any_order(seed: int, taps: int) -> None:
    weight, bias = drawn(seed, 12, 9, taps, taps)
    rows, inputs = some(seed, 7, 12), some(seed + 1, 5, 9)
    found = find_slice(conv(weight[rows][:, inputs], bias[rows]), conv(weight, bias))
    assert found is not None
    assert found.channels.tolist() == rows.tolist()
    assert found.inputs.tolist() == inputs.tolist()


@given(seed=SEEDS, values=st.integers(1, 5), biases=st.sampled_from([1, 2, 50]))
@settings(max_examples=60)
def test_few_values_come_out_right_or_not_at_all(seed: int, values: int, biases: int) -> None:
    rng = np.random.default_rng(seed)
    m, q = (int(n) for n in rng.integers(1, [13, 7]))
    weight, bias = integers(seed, (m, q, 1, 1), values, biases)
    rows, inputs = (
        np.sort(rng.permutation(n)[: rng.integers(1, n + 1)]).astype(int) for n in (m, q)
    )
    cut = weight[rows][:, inputs]
    found = find_slice(conv(cut, bias[rows]), conv(weight, bias))
    if found is not None:
        assert found.channels.tolist() == rows.tolist()
        known = found.inputs != UNKNOWN
        # Where an input is told, it is the same for all rows as the one that it was.
        np.testing.assert_array_equal(weight[rows][:, found.inputs[known]], cut[:, known])


def test_weights_of_few_values_are_told_apart_by_their_biases() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-1, 2, (16, 24, 1, 1)).astype(np.float32)
    bias = drawn(1, 16)[0]
    rows, inputs = some(2, 9, 16), some(3, 20, 24)
    found = find_slice(conv(weight[rows][:, inputs], bias[rows]), conv(weight, bias))
    assert found is not None
    assert found.channels.tolist() == rows.tolist()


def test_groups_are_found_in_the_teachers() -> None:
    weight, bias = drawn(0, 18, 4, 3, 3)
    n = np.array([7, 10, 12, 14])  # of the last two of three groups
    p = np.array([[1, 3], [0, 2]])
    cut = np.concatenate([weight[n[:2]][:, p[0]], weight[n[2:]][:, p[1]]])
    found = find_slice(conv(cut, bias[n], 2), conv(weight, bias, 3))
    assert found is not None
    assert found.channels.tolist() == n.tolist()
    assert found.inputs.tolist() == [5, 7, 8, 10]


def test_depthwise_rows_tell_their_input() -> None:
    weight, bias = drawn(0, 9, 1, 3, 3)
    kept = [8, 0, 4, 5]
    found = find_slice(conv(weight[kept], bias[kept], 4), conv(weight, bias, 9))
    assert found is not None
    assert found.channels.tolist() == found.inputs.tolist() == kept


@pytest.mark.parametrize("change", ["a weight", "a bias", "noise", "a row twice", "an input twice"])
def test_what_is_no_slice_is_not_found(change: str) -> None:
    weight, bias = drawn(0, 8, 6, 1, 1)
    rows, inputs = np.array([1, 2, 6]), np.array([0, 3, 4])
    if change == "a row twice":
        rows[2] = 1
    if change == "an input twice":
        inputs[2] = 0
    cut, biases = weight[rows][:, inputs], bias[rows].copy()
    if change == "a weight":
        cut[1, 1] += 1e-6
    elif change == "a bias":
        biases[2] += 1e-6
    elif change == "noise":
        cut = cut + 1e-3 * drawn(1, *cut.shape)[0]
    assert find_slice(conv(cut, biases), conv(weight, bias)) is None


def test_constant_weights_say_nothing() -> None:
    weight, bias = np.ones((8, 6, 1, 1), np.float32), np.zeros(8, np.float32)
    assert find_slice(conv(weight[:3, :2], bias[:3]), conv(weight, bias)) is None
