"""Samples are moved and mixed anew at each draw, as their inputs allow."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.samples.fresh import FreshSamples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import Array, build


def fresh(
    text: str, samples: dict[str, Array], indices: list[int], *, as_they_are: bool = False
) -> FreshSamples:
    model = build(f"m {text}")
    loaded = load_samples(samples, input_specs(model))
    return FreshSamples(loaded, np.array(indices), 3, as_they_are=as_they_are)


IMAGE = "(float[n,1,8,8] x) => (float[n,1,8,8] y) { y = Relu(x) }"
ROWS = "(float[n,3] x) => (float[n,3] y) { y = Relu(x) }"


def test_a_draw_is_the_same_whenever_it_is_asked_for_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    drawn = fresh(IMAGE, {"x": rng.random((9, 1, 8, 8)).astype(np.float32)}, list(range(9)))
    one, again, other = (drawn.draw(number, 6)["x"] for number in (1, 1, 2))
    assert one.shape == (6, 1, 8, 8)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_only_the_samples_to_draw_are_drawn_each_as_often_as_the_others() -> None:
    values = np.arange(6, dtype=np.int64)[:, np.newaxis]
    text = "(int64[n,1] x) => (int64[n,1] y) { y = Abs(x) }"
    found = fresh(text, {"x": values}, [1, 2, 5]).draw(1, 6)["x"]
    assert sorted(found.reshape(-1).tolist()) == [1, 1, 2, 2, 5, 5]  # whole numbers are not mixed


def test_floats_are_mixed_in_pairs() -> None:
    values = np.eye(3, dtype=np.float32)
    found = fresh(ROWS, {"x": values}, [0, 1, 2]).draw(1, 64)["x"]
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    mixed = (found > 0).sum(1)
    assert set(mixed.tolist()) == {1, 2}
    assert 12 < np.sum(mixed == 2) < 40  # half of them, a third with themselves


def test_few_of_many_are_mixed() -> None:
    values = np.eye(500, dtype=np.float32)
    text = ROWS.replace("3]", "500]")
    found = fresh(text, {"x": values}, list(range(500))).draw(1, 500)["x"]
    assert 25 < np.sum((found > 0).sum(1) == 2) < 80  # a tenth


def test_one_sample_alone_is_not_mixed() -> None:
    found = fresh(ROWS, {"x": np.eye(3, dtype=np.float32)}, [1]).draw(4, 1)["x"]
    np.testing.assert_array_equal(found, [[0, 1, 0]])


@pytest.mark.parametrize("last", [False, True])
def test_images_are_mirrored_and_shifted_whole_pixels(last: bool) -> None:
    ramp = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    text = IMAGE.replace("1,8,8", "8,8,1") if last else IMAGE
    image = np.moveaxis(ramp, 1, 3) if last else ramp
    found = [fresh(text, {"x": image}, [0]).draw(number, 1)["x"] for number in range(40)]
    moved = {tuple(value.reshape(8, 8)[3].tolist()) for value in found}
    rows = ramp[0, 0]
    possible = set()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row = rows[3 + down][np.clip(np.arange(8) + right, 0, 7)]
            possible |= {tuple(row.tolist()), tuple(row[::-1].tolist())}
    assert moved <= possible
    assert len(moved) > 8


def test_samples_are_drawn_as_they_are_where_that_is_asked_for() -> None:
    images = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    found = fresh(IMAGE, {"x": images}, [0, 2, 4], as_they_are=True).draw(1, 6)["x"]
    given = {image.tobytes() for image in images[[0, 2, 4]]}
    assert {image.tobytes() for image in found} == given
