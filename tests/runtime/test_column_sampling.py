"""Columns: enough of them, from all folds, and the same ones whoever gathers them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.runtime import column_sampling
from fskd_onnx.runtime.column_sampling import ColumnSampling, Gatherer
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.samples.batches import Batch, plan_batches

Chosen = tuple[int, NDArray[np.intp]]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(["cpu"])


def plan(samples: int, folds: int, size: int, fixed: int | None = None) -> list[Batch]:
    order = np.random.default_rng(0).permutation(samples)
    return plan_batches(np.array_split(order, folds), size, fixed)


def choose_all(
    draw: ColumnSampling, batches: list[Batch], positions: int, repeat: int = 1
) -> list[Chosen]:
    return [
        draw.choose(place, len(place.batch.samples) * repeat, positions)
        for place in column_sampling.batch_offsets(batches)
    ]


@given(
    wanted=st.integers(1, 5000),
    samples=st.integers(2, 60),
    folds=st.integers(2, 5),
    size=st.integers(1, 9),
    padded=st.booleans(),
    positions=st.integers(1, 120),
    repeat=st.integers(1, 3),
)
def test_a_draw_is_enough_and_from_every_fold(
    wanted: int, samples: int, folds: int, size: int, padded: bool, positions: int, repeat: int
) -> None:
    batches = plan(samples, min(folds, samples), size, size if padded else None)
    drawn = choose_all(ColumnSampling(wanted, (7,)), batches, positions, repeat)
    columns_of: dict[int, int] = {}
    looked_at: dict[int, list[bool]] = {}
    for batch, (count, chosen) in zip(batches, drawn, strict=True):
        # Never the padding, nor part of a sample's rows.
        assert 0 <= count <= batch.count * repeat
        assert count % repeat == 0
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert 0 <= chosen[0] <= chosen[-1] < positions
        columns_of[batch.fold] = columns_of.get(batch.fold, 0) + count * len(chosen)
        looked_at.setdefault(batch.fold, []).extend(
            sample < count // repeat for sample in range(batch.count)
        )
    (k,) = {len(chosen) for _, chosen in drawn}
    assert k >= min(positions, column_sampling._POSITIONS_PER_SAMPLE)
    everything = samples * repeat * positions
    total = sum(columns_of.values())
    assert min(wanted, everything) <= total <= everything
    # No more than what one sample more per fold adds.
    assert total <= wanted + len(columns_of) * k * repeat
    assert min(columns_of.values()) > 0
    # The first samples of each fold.
    assert all(flags == sorted(flags, reverse=True) for flags in looked_at.values())


def test_columns_are_spread_over_all_folds() -> None:
    batches = plan(300, 3, 16)
    drawn = choose_all(ColumnSampling(1000, (1,)), batches, 100)
    per_fold = [0, 0, 0]
    for batch, (count, chosen) in zip(batches, drawn, strict=True):
        per_fold[batch.fold] += count * len(chosen)
    # 42 of 100 samples, with 8 positions each.
    assert per_fold == [336] * 3


def test_few_samples_give_many_positions_each() -> None:
    batches = plan(10, 5, 2)
    drawn = choose_all(ColumnSampling(500, (1,)), batches, 1000)
    assert [(count, len(chosen)) for count, chosen in drawn] == [(2, 50)] * 5
    # Each batch draws its own.
    assert len({tuple(chosen) for _, chosen in drawn}) == 5


def test_of_very_many_samples_some_give_several_positions_each() -> None:
    batches = plan(4000, 4, 32)
    drawn = choose_all(ColumnSampling(4096, (1,)), batches, 49)
    used = [(count, chosen) for count, chosen in drawn if count]
    assert len(used) == 16 < len(batches)
    assert {len(chosen) for _, chosen in used} == {column_sampling._POSITIONS_PER_SAMPLE}
    assert {batch.fold for batch, (count, _) in zip(batches, drawn, strict=True) if count} == {
        *range(4)
    }


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    batches = plan(30, 3, 4)

    def drawn(*seed: int) -> list[list[int]]:
        return [
            chosen.tolist() for _, chosen in choose_all(ColumnSampling(600, seed), batches, 100)
        ]

    assert drawn(3, 1) == drawn(3, 1)
    assert all(one != other for one, other in zip(drawn(3, 1), drawn(3, 2), strict=True))
    assert all(one != other for one, other in zip(drawn(3, 1), drawn(4, 1), strict=True))


def test_how_many_are_wanted_follows_from_the_unknowns() -> None:
    wanted = [ColumnSampling.of_unknowns(unknowns, (0,)).wanted for unknowns in (1, 80, 576, 4608)]
    assert wanted[:2] == [column_sampling._LEAST_COLUMNS] * 2
    assert wanted[2:] == [column_sampling._COLUMNS_PER_UNKNOWN * n for n in (577, 4609)]


@pytest.mark.parametrize("spatial", [(), (7,), (3, 6), (2, 3, 4)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_host_and_device_gather_the_same_bytes(
    spatial: tuple[int, ...],
    last: bool,
    dtype: type[np.floating],
    masked: bool,
    count: int,
    runtime: Runtime,
) -> None:
    rng = np.random.default_rng(6)
    shape = (5, *spatial, 4) if last else (5, 4, *spatial)
    tensor = rng.standard_normal(shape).astype(dtype)
    value, gather = OrtValue.ortvalue_from_numpy(tensor), Gatherer(runtime)
    index = rng.integers(math.prod(spatial), size=(3, 5))
    inside = rng.random(index.shape) < 0.7 if masked else None
    here = gather(value, last, count, index, inside)
    assert not gather._sessions
    there = gather.on_device(value, last, count, index, inside)
    assert here.dtype == there.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert here.shape == there.shape == (4 * 3, count * 5)
    assert here.tobytes() == there.tobytes()

    flat = (np.moveaxis(tensor, -1, 1) if last else tensor).reshape(5, 4, -1)
    seen = flat[:count][:, :, index] * (1 if inside is None else inside)
    np.testing.assert_array_equal(here, np.moveaxis(seen, 0, 2).reshape(here.shape))


def test_columns_outlive_their_tensor(runtime: Runtime) -> None:
    tensor = np.ones((2, 3, 1), np.float32)
    value = OrtValue.ortvalue_from_numpy(tensor)
    for last in (False, True):
        index = np.arange(3 if last else 1)[np.newaxis]
        found = Gatherer(runtime)(value, last, 2, index)
        assert not np.shares_memory(found, value.numpy())
        assert found.flags.writeable


def test_padding_of_a_single_tap_is_masked_in_a_copy(runtime: Runtime) -> None:
    """As many positions as the tensor has, but other ones: a 1x1 kernel with stride and padding."""
    tensor = np.arange(1, 7, dtype=np.float32).reshape(1, 3, 2)
    value = OrtValue.ortvalue_from_numpy(tensor.copy())
    index, inside = np.array([[1, 0]]), np.array([[True, False]])
    found = Gatherer(runtime)(value, False, 1, index, inside)
    np.testing.assert_array_equal(found, [[2, 0], [4, 0], [6, 0]])
    np.testing.assert_array_equal(value.numpy(), tensor)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_columns_go_where_they_are_wanted(
    last: bool, kind: type[np.floating], runtime: Runtime
) -> None:
    rng = np.random.default_rng(7)
    tensor = rng.standard_normal((3, 6, 4) if last else (3, 4, 6)).astype(np.float32)
    value, gather = OrtValue.ortvalue_from_numpy(tensor), Gatherer(runtime)
    index, inside = rng.integers(6, size=(2, 5)), rng.random((2, 5)) < 0.7
    expected = gather(value, last, 2, index, inside)
    for way in (gather, gather.on_device):
        wide = np.full((2, 4, 30), np.nan, kind)  # two groups, and other columns on both sides
        out = wide[..., 7:17].reshape(8, 10)
        assert way(value, last, 2, index, inside, out) is out
        np.testing.assert_array_equal(wide[..., 7:17].reshape(8, 10), expected)
        assert np.isnan(wide[..., :7]).all()
        assert np.isnan(wide[..., 17:]).all()


def test_one_session_serves_all_tensors_of_a_rank(runtime: Runtime) -> None:
    gather = Gatherer(runtime)
    rng = np.random.default_rng(8)
    for shape in ((2, 3, 5), (4, 7, 2), (1, 1, 9)):
        value = OrtValue.ortvalue_from_numpy(rng.standard_normal(shape).astype(np.float32))
        index = np.array([[0, 1]])
        found = gather.on_device(value, False, 1, index)
        np.testing.assert_array_equal(found, gather(value, False, 1, index))
    assert len(gather._sessions) == 1
