"""Samples are drawn by a seed, and labels follow the draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.errors import SamplesError
from fskd_onnx.samples.reader import Samples, draw
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

VECTOR = (InputSpec("x", (None, 6), np.dtype(np.float32)),)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@given(st.integers(1, 200), st.integers(1, 250), st.integers(0, 2**32))
def test_draws(count: int, wanted: int, seed: int) -> None:
    drawn = draw(count, wanted, seed)
    assert len(drawn) == min(count, wanted)
    assert (np.diff(drawn) > 0).all()
    assert drawn[0] >= 0
    assert drawn[-1] < count
    np.testing.assert_array_equal(drawn, draw(count, wanted, seed))
    np.testing.assert_array_equal(draw(count, None, seed), np.arange(count))


def test_different_seeds_draw_differently() -> None:
    assert len({tuple(draw(100, 10, seed)) for seed in range(20)}) == 20


def test_labels_follow_the_draw(tmp_path: Path) -> None:
    array = random(50, 6)
    labels = np.arange(50, dtype=np.int32) * 2
    np.save(tmp_path / "labels.npy", labels)
    samples = load_samples(array, VECTOR, max_samples=8, seed=3)
    assert len(samples) == 8
    assert samples.source_count == 50
    np.testing.assert_array_equal(samples.take(np.arange(8))["x"], array[samples.source_indices])
    picked = samples.labels(tmp_path / "labels.npy")
    np.testing.assert_array_equal(picked, samples.source_indices * 2)


def test_a_draw_of_nothing_is_refused() -> None:
    with pytest.raises(SamplesError, match="at least one sample"):
        load_samples(random(2, 6), VECTOR, max_samples=0)


class CountedPart:
    """One part of three samples that counts how often each is decoded."""

    count = 3

    def __init__(self) -> None:
        self.reads: list[int] = []

    def describe(self, index: int) -> str:
        return f"sample {index}"

    def read(self, spec: InputSpec, index: int) -> np.ndarray:
        self.reads.append(index % 3)
        return random(3, 6)[index]


def test_each_sample_is_decoded_once_when_it_is_taken_once() -> None:
    part = CountedPart()
    samples = Samples([part], VECTOR, None, 0)
    assert part.reads == [0]  # for the shapes
    np.testing.assert_array_equal(samples.take(np.array([2, 0, 1]))["x"], random(3, 6)[[2, 0, 1]])
    assert sorted(part.reads) == [0, 1, 2]
