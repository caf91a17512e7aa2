"""Samples are read once, ahead of all else, and kept until batches take them."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.runtime.first_reading import FirstReading
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

INPUTS = input_specs(build("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }"))


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("once", [True, False])
def test_samples_come_as_they_are_and_make_room_once_taken(once: bool, limit: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    with TensorStore(limit) as store:
        reading = FirstReading(load_samples(x, INPUTS), store, taken_once=once)
        assert len(reading) == len(reading.fingerprints) == 6
        order = np.array([4, 0, 5])
        np.testing.assert_array_equal(reading.take(order)["x"], x[order])
        if not once:
            np.testing.assert_array_equal(reading.take(order)["x"], x[order])
            return
        assert store._used == (3 * x[0].nbytes if limit is None else 0)
        with pytest.raises(IndexError, match="sample 0 was taken before"):
            reading.take(np.array([1, 0]))
