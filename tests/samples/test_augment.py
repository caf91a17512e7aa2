"""Moved copies of images: seeded, in place where nothing moves, never of what is no image."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.errors import SamplesError
from fskd_onnx.samples.augment import MOVES, Augmented
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

IMAGE = InputSpec("x", (None, 1, 12, 12), np.dtype(np.float32))


def smooth_images(count: int = 4) -> np.ndarray:
    """Images that interpolation hardly changes: (count, 1, 12, 12)."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.arange(12), np.arange(12), indexing="ij")
    slopes = rng.normal(size=(count, 2, 1, 1))
    return (slopes[:, :1] * rows + slopes[:, 1:] * columns).astype(np.float32)


def samples(array: np.ndarray | None = None, spec: InputSpec = IMAGE) -> Samples:
    return load_samples(smooth_images() if array is None else array, [spec])


def test_the_first_copy_is_the_sample_itself() -> None:
    augmented = Augmented(samples(), list(MOVES), seed=0)
    taken = augmented.take(np.array([2, 0]))["x"]
    np.testing.assert_array_equal(taken, smooth_images()[[2, 0]])


@pytest.mark.parametrize("move", MOVES)
def test_a_copy_is_the_same_whenever_it_is_asked_for(move: str) -> None:
    augmented = Augmented(samples(), [move], seed=3)
    copies = np.array([4, 5, 6, 7])
    together = augmented.take(copies)["x"]
    apart = [augmented.take(copies[i : i + 1])["x"][0] for i in range(4)]
    again = Augmented(samples(), [move], seed=3).take(copies)["x"]
    np.testing.assert_array_equal(together, np.stack(apart))
    np.testing.assert_array_equal(together, again)


@pytest.mark.parametrize("move", MOVES)
def test_copies_and_seeds_differ(move: str) -> None:
    first = Augmented(samples(), [move], seed=0)
    one, other = (first.take(np.arange(4) + 4 * copy)["x"] for copy in (1, 2))
    seeded = Augmented(samples(), [move], seed=1).take(np.arange(4) + 4)["x"]
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, seeded)


def test_a_flip_mirrors_the_columns_or_nothing() -> None:
    augmented = Augmented(samples(), ["flip"], seed=0)
    images = smooth_images()
    seen = set()
    for copy in range(1, 9):
        moved = augmented.take(np.array([4 * copy]))["x"][0]
        flipped = bool(np.allclose(moved, images[0, :, :, ::-1], atol=1e-4))
        assert flipped or np.allclose(moved, images[0], atol=1e-4)
        seen.add(flipped)
    assert seen == {True, False}


def test_a_shift_moves_the_picture_as_a_whole() -> None:
    moved = Augmented(samples(), ["shift"], seed=0).take(np.arange(4) + 4)["x"]
    inner = np.s_[:, :, 2:-2, 2:-2]
    # Linear images: moved by a constant, away from the border.
    difference = (moved - smooth_images())[inner]
    np.testing.assert_allclose(difference, difference[:, :, :1, :1] + 0 * difference, atol=1e-3)
    assert np.abs(difference).max() > 0.01


def test_channels_last_images_move_alike() -> None:
    images = smooth_images()
    last = InputSpec("x", (None, 12, 12, 1), np.dtype(np.float32))
    first = Augmented(samples(), list(MOVES), seed=0).take(np.arange(4) + 4)["x"]
    moved = Augmented(samples(np.moveaxis(images, 1, 3), last), list(MOVES), seed=0)
    np.testing.assert_array_equal(moved.take(np.arange(4) + 4)["x"], np.moveaxis(first, 1, 3))


def test_unknown_moves_and_what_is_no_image_are_refused() -> None:
    with pytest.raises(SamplesError, match="'mirror' is not one of flip, shift, crop, rotate"):
        Augmented(samples(), ["mirror"], seed=0)
    rows = InputSpec("x", (None, 5), np.dtype(np.float32))
    with pytest.raises(SamplesError, match="no input of the model is one"):
        Augmented(samples(np.zeros((3, 5), np.float32), rows), ["flip"], seed=0)
