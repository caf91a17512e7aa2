"""Sampled columns are enough, and from all folds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.runtime import column_sampling
from fskd_onnx.runtime.column_sampling import EvenSampling, RandomSampling, Sampling
from fskd_onnx.samples.batches import Batch, plan_batches

Chosen = tuple[int, NDArray[np.intp]]


def plan(samples: int, folds: int, size: int, fixed: int | None = None) -> list[Batch]:
    order = np.random.default_rng(0).permutation(samples)
    return plan_batches(np.array_split(order, folds), size, fixed)


def choose_all(
    sampling: Sampling, batches: list[Batch], positions: int, repeat: int = 1
) -> list[Chosen]:
    return [
        sampling.choose(offset, len(offset.batch.samples) * repeat, positions)
        for offset in column_sampling.batch_offsets(batches)
    ]


@given(
    columns=st.integers(1, 5000),
    samples=st.integers(2, 60),
    folds=st.integers(2, 5),
    size=st.integers(1, 9),
    padded=st.booleans(),
    positions=st.integers(1, 120),
    repeat=st.integers(1, 3),
)
def test_a_sampling_is_enough_and_from_every_fold(
    columns: int, samples: int, folds: int, size: int, padded: bool, positions: int, repeat: int
) -> None:
    batches = plan(samples, min(folds, samples), size, size if padded else None)
    found = choose_all(RandomSampling(columns, (7,)), batches, positions, repeat)
    columns_of: dict[int, int] = {}
    looked_at: dict[int, list[bool]] = {}
    for batch, (count, chosen) in zip(batches, found, strict=True):
        # Never the padding, nor part of a sample's rows.
        assert 0 <= count <= batch.count * repeat
        assert count % repeat == 0
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert 0 <= chosen[0] <= chosen[-1] < positions
        columns_of[batch.fold] = columns_of.get(batch.fold, 0) + count * len(chosen)
        looked_at.setdefault(batch.fold, []).extend(
            sample < count // repeat for sample in range(batch.count)
        )
    (k,) = {len(chosen) for _, chosen in found}
    assert k >= min(positions, column_sampling._POSITIONS_PER_SAMPLE)
    everything = samples * repeat * positions
    total = sum(columns_of.values())
    assert min(columns, everything) <= total <= everything
    # No more than what one sample more per fold adds.
    assert total <= columns + len(columns_of) * k * repeat
    assert min(columns_of.values()) > 0
    # The first samples of each fold.
    assert all(flags == sorted(flags, reverse=True) for flags in looked_at.values())


def test_columns_are_spread_over_all_folds() -> None:
    batches = plan(300, 3, 16)
    found = choose_all(RandomSampling(1000, (1,)), batches, 100)
    per_fold = [0, 0, 0]
    for batch, (count, chosen) in zip(batches, found, strict=True):
        per_fold[batch.fold] += count * len(chosen)
    # 42 of 100 samples, with 8 positions each.
    assert per_fold == [336] * 3


def test_few_samples_give_many_positions_each() -> None:
    batches = plan(10, 5, 2)
    found = choose_all(RandomSampling(500, (1,)), batches, 1000)
    assert [(count, len(chosen)) for count, chosen in found] == [(2, 50)] * 5
    # Each batch has its own.
    assert len({tuple(chosen) for _, chosen in found}) == 5


def test_of_very_many_samples_some_give_several_positions_each() -> None:
    batches = plan(4000, 4, 32)
    found = choose_all(RandomSampling(4096, (1,)), batches, 49)
    used = [(count, chosen) for count, chosen in found if count]
    assert len(used) == 16 < len(batches)
    assert {len(chosen) for _, chosen in used} == {column_sampling._POSITIONS_PER_SAMPLE}
    assert {batch.fold for batch, (count, _) in zip(batches, found, strict=True) if count} == {
        *range(4)
    }


def test_the_same_seed_chooses_the_same_and_another_does_not() -> None:
    batches = plan(30, 3, 4)

    def positions_of(*seed: int) -> list[list[int]]:
        return [
            chosen.tolist() for _, chosen in choose_all(RandomSampling(600, seed), batches, 100)
        ]

    assert positions_of(3, 1) == positions_of(3, 1)
    assert all(
        one != other for one, other in zip(positions_of(3, 1), positions_of(3, 2), strict=True)
    )
    assert all(
        one != other for one, other in zip(positions_of(3, 1), positions_of(4, 1), strict=True)
    )


def test_how_many_are_enough_follows_from_the_unknowns() -> None:
    enough = [RandomSampling.of_unknowns(unknowns, (0,)).columns for unknowns in (1, 80, 576, 4608)]
    assert enough[:2] == [column_sampling._LEAST_COLUMNS] * 2
    assert enough[2:] == [column_sampling._COLUMNS_PER_UNKNOWN * n for n in (577, 4609)]


@given(st.integers(1, 30), st.integers(1, 9), st.booleans(), st.integers(1, 200), st.integers(1, 3))
def test_even_positions_are_the_same_in_all_samples(
    samples: int, size: int, padded: bool, positions: int, repeat: int
) -> None:
    batches = plan(samples, 1, size, size if padded else None)
    found = choose_all(EvenSampling(7), batches, positions, repeat)
    assert [count for count, _ in found] == [batch.count * repeat for batch in batches]
    for _, chosen in found:
        assert len(chosen) == min(positions, 7)
        assert (chosen[0], chosen[-1]) == (0, positions - 1 if positions > 1 else 0)
        np.testing.assert_array_equal(chosen, found[0][1])
        assert np.ptp(np.diff(chosen)) <= 1 if len(chosen) > 1 else True
