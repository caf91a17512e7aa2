"""Folds share no sample, and no block is fitted on samples that judge the fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.pipeline.splits import SampleSplit, split_samples


def singles(count: int) -> list[NDArray[np.intp]]:
    """Samples that are independent of each other."""
    return list(np.arange(count, dtype=np.intp)[:, np.newaxis])


def folds(split: SampleSplit) -> list[set[int]]:
    """The samples of each fold; each of them has to run once."""
    members: dict[int, list[int]] = {}
    for batch in split.batches:
        members.setdefault(batch.fold, []).extend(batch.samples[: batch.count].tolist())
    assert all(len(set(part)) == len(part) for part in members.values())
    return [set(members[fold]) for fold in range(len(members))]


@given(
    st.integers(3, 90),
    st.integers(1, 20),
    st.integers(0, 3),
    st.none() | st.integers(1, 4),
)
def test_every_sample_is_in_one_fold_or_held_out(
    count: int, size: int, seed: int, fixed: int | None
) -> None:
    found = split_samples(singles(count), count, 1, seed, size, fixed)
    for split in (*found.trials, found.final):
        held_out = set(split.held_out.tolist())
        parts = folds(split)
        everything = [*parts, held_out]
        assert set().union(*everything) == set(range(count))
        assert sum(map(len, everything)) == count
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for batch in split.batches:
            assert not held_out & set(batch.samples.tolist())  # padding repeats the batch's own
            assert len(batch.samples) == (fixed or batch.count)
            assert fixed is not None or len(batch.samples) <= size


@given(st.integers(3, 54))
def test_of_few_samples_every_fold_is_held_out_in_turn(count: int) -> None:
    found = split_samples(singles(count), count, 1, 0, 8, None)
    assert sorted(np.concatenate([t.held_out for t in found.trials])) == list(range(count))
    assert len(found.trials) == min(5, count)
    assert len(found.final.held_out) == 0
    parts = [set(trial.held_out.tolist()) for trial in found.trials]
    assert folds(found.final) == parts
    for index, trial in enumerate(found.trials):
        assert folds(trial) == parts[:index] + parts[index + 1 :]


@pytest.mark.parametrize(("count", "held_out"), [(55, 6), (80, 8)])
def test_of_many_samples_a_tenth_is_held_out(count: int, held_out: int) -> None:
    found = split_samples(singles(count), count, 1, 0, 8, None)
    assert found.trials == (found.final,)
    assert len(found.final.held_out) == held_out
    assert len(folds(found.final)) == 5


@given(st.integers(3, 90), st.integers(1, 4), st.none() | st.integers(1, 4))
def test_copies_are_in_the_fold_of_their_source_and_never_held_out(
    count: int, copies: int, fixed: int | None
) -> None:
    found = split_samples(singles(count), count, copies, 0, 8, fixed)
    plain = split_samples(singles(count), count, 1, 0, 8, fixed)
    for split, alone in zip(
        (*found.trials, found.final), (*plain.trials, plain.final), strict=True
    ):
        np.testing.assert_array_equal(split.held_out, alone.held_out)
        expected = [{s + k * count for s in fold for k in range(copies)} for fold in folds(alone)]
        assert folds(split) == expected


@given(st.integers(3, 90), st.integers(1, 3), st.none() | st.integers(1, 4))
def test_the_batches_of_all_splits_are_among_those_of_all_samples(
    count: int, copies: int, fixed: int | None
) -> None:
    found = split_samples(singles(count), count, copies, 0, 8, fixed)
    counted = np.concatenate([batch.samples[: batch.count] for batch in found.batches])
    assert len(set(counted.tolist())) == len(counted)
    assert set(range(count)) <= set(counted.tolist())
    everything = {batch.samples.tobytes() for batch in found.batches}
    for split in (*found.trials, found.final):
        assert {batch.samples.tobytes() for batch in split.batches} <= everything


@given(st.lists(st.integers(1, 30), min_size=3, max_size=70), st.integers(0, 3))
def test_groups_stay_together(sizes: list[int], seed: int) -> None:
    count = sum(sizes)
    order = np.random.default_rng(seed).permutation(count)
    groups = [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
    found = split_samples(groups, count, 1, seed, 8, None)
    for split in (*found.trials, found.final):
        parts = [part for part in (*folds(split), set(split.held_out.tolist())) if part]
        assert sorted(sample for part in parts for sample in part) == list(range(count))
        for group in groups:
            assert sum(not part.isdisjoint(group.tolist()) for part in parts) == 1
        assert all(folds(split))
        # No fold is larger than its share by more than the largest group.
        filled = [len(part) for part in folds(split)]
        assert max(filled) <= -(-sum(filled) // len(filled)) + max(sizes)


def test_samples_in_no_group_are_left_out() -> None:
    groups = [np.array([0, 2]), np.array([3]), np.array([5])]
    found = split_samples(groups, 6, 2, 0, 8, None)
    used = {sample for part in folds(found.final) for sample in part}
    assert used == {0, 2, 3, 5, 6, 8, 9, 11}


def test_a_large_group_is_not_held_out_where_one_fit_is_made() -> None:
    groups = [np.arange(100), *singles(160)[100:]]
    for seed in range(5):
        (trial,) = split_samples(groups, 160, 1, seed, 8, None).trials
        assert len(trial.held_out) == 6
        assert min(trial.held_out) >= 100
