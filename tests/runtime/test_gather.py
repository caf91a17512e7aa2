"""Columns are the same ones whoever gathers them, and are where they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnxruntime import OrtValue

from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime, open_runtime


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(["cpu"])


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
def test_columns_go_where_they_should(
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("contiguous", [True, False])
def test_columns_are_put_where_they_are_wanted(
    dtype: type[np.floating], contiguous: bool, runtime: Runtime
) -> None:
    tensor = np.random.default_rng(7).standard_normal((3, 4, 6)).astype(np.float32)
    value, index = OrtValue.ortvalue_from_numpy(tensor), np.array([[1, 4], [0, 5]])
    gather = Gatherer(runtime)
    for call in (gather, gather.on_device):
        room = np.zeros((8, 4 if contiguous else 8), dtype)
        out = room if contiguous else room[:, ::2]
        assert call(value, False, 2, index, out=out) is out
        seen = tensor[:2][:, :, index]
        np.testing.assert_array_equal(out, np.moveaxis(seen, 0, 2).reshape(8, 4))
