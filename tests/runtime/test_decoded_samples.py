"""Samples are read once, in the batches that they run in, and kept as the store keeps tensors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.tensor_store import TensorStore, download
from fskd_onnx.samples.batches import Batch, plan_batches
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

COUNT = 11
MODEL = build("net (float[N,3] x, float[N,2,2] w) => (float[N,3] y) { y = Relu(x) }")


class CountedSamples(Samples):
    """Samples that note which of them are read."""

    read: list[int]

    def describe(self, index: int) -> str:
        return f"sample {index}"

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
        self.read.extend(indices.tolist())
        return super().take(indices)


@pytest.fixture
def arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shapes = {"x": (COUNT, 3), "w": (COUNT, 2, 2)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture
def samples(arrays: dict[str, NDArray[np.float32]]) -> CountedSamples:
    loaded = load_samples(arrays, input_specs(MODEL))
    loaded.__class__ = CountedSamples
    assert isinstance(loaded, CountedSamples)
    loaded.read = []
    return loaded


def batches(fixed: int | None = None) -> list[Batch]:
    order = np.random.default_rng(1).permutation(COUNT)
    return plan_batches(np.array_split(order, 3), 3, fixed)


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("fixed", [None, 3])
def test_batches_and_rows_of_them_are_those_of_the_source(
    fixed: int | None,
    limit: int | None,
    samples: CountedSamples,
    arrays: dict[str, NDArray[np.float32]],
) -> None:
    with TensorStore(limit) as store:
        decoded = DecodedSamples(samples, batches(fixed), store, "cpu")
        rows = np.array([7, 2, 2, 10, 0])
        for _ in range(2):
            for batch in batches(fixed):
                feeds = decoded.feeds(Batch(batch.samples, batch.count, fold=9))
                for feed, (name, expected) in zip(feeds, arrays.items(), strict=True):
                    assert feed.shape == expected[batch.samples].shape
                    np.testing.assert_array_equal(download(feed.value()), expected[batch.samples])
                    taken = decoded.take(rows)[name]
                    np.testing.assert_array_equal(taken, expected[rows])
                    taken[:] = 9  # a copy
    # Padding repeats rows of its batch, and is not read.
    assert sorted(samples.read) == list(range(COUNT))


def test_only_batches_that_are_asked_for_are_read(samples: CountedSamples) -> None:
    first, second, *_ = batches()
    with TensorStore() as store:
        decoded = DecodedSamples(samples, batches(), store, "cpu")
        feeds = decoded.feeds(first)
        assert (samples.read, store._used) == ([], 0)
        feeds[1].value()
        assert samples.read == first.samples.tolist()
        assert store._used == first.count * 4 * (3 + 4)
        decoded.take(second.samples[:1])
        assert samples.read == [*first.samples, *second.samples]


def test_inputs_are_fed_along_their_own_axis() -> None:
    model = build("net (float[N,3] x, float[2,N,4] s, float g) => (float[N,3] y) { y = Relu(x) }")
    x, s = (
        np.random.default_rng(0).standard_normal(shape) for shape in ((COUNT, 3), (2, COUNT, 4))
    )
    given = {"x": x.astype(np.float32), "s": s.astype(np.float32), "g": np.array(2, np.float32)}
    samples = load_samples(given, input_specs(model))
    with TensorStore() as store:
        decoded = DecodedSamples(samples, batches(4), store, "cpu")
        for batch in batches(4):
            rows, part = batch.samples, slice(1, 3)
            for some, chosen in ((None, rows), (part, rows[part])):
                feeds = decoded.feeds(batch, some)
                expected = given["x"][chosen], given["s"][:, chosen], given["g"]
                for feed, value in zip(feeds, expected, strict=True):
                    assert feed.shape == value.shape
                    assert feed.element_type == 1
                    np.testing.assert_array_equal(download(feed.value()), value)
        rows = np.array([7, 2, 2])
        taken = decoded.take(rows)
    np.testing.assert_array_equal(taken["s"], given["s"][:, rows].swapaxes(0, 1))
    np.testing.assert_array_equal(taken["g"], np.full(3, 2, np.float32))
