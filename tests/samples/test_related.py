"""Related samples are found, and independent ones are not taken for related."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fskd_onnx.samples.related import Fingerprint, find_groups
from tests.helpers import DEMO, Array


def groups_of(samples: Array, given: Array | None = None) -> list[list[int]]:
    prints = [Fingerprint.of({"x": sample}) for sample in samples]
    return [group.tolist() for group in find_groups(prints, given)]


def pictures(count: int, side: int, seed: int = 0, channels: int = 3) -> Array:
    """Independent ones whose neighbouring pixels are alike, as in photos."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, np.newaxis], np.fft.rfftfreq(side)
    frequency = np.maximum(np.hypot(rows, columns), 1 / side)
    noise = np.fft.rfft2(rng.standard_normal((count, channels, side, side)))
    drawn = np.fft.irfft2(noise / frequency, s=(side, side))
    smooth = np.empty(drawn.shape, np.float32)
    smooth[:] = drawn
    return smooth


def garments(count: int) -> Array:
    """Centred objects of ten kinds."""
    paths = sorted((DEMO / "samples").glob("*.png"))[:count]
    images = np.stack([np.asarray(Image.open(path), np.float32)[np.newaxis] for path in paths])
    images /= 255
    return images


def moved(samples: Array, way: str) -> Array:
    rng = np.random.default_rng(1)
    if way == "noise":
        noise = 0.05 * np.ptp(samples) * rng.standard_normal(samples.shape)
        return (samples + noise).astype(np.float32)
    if way == "shift":
        return np.roll(samples, (3, -2), (2, 3))
    return samples[..., ::-1] if way == "flip" else samples.copy()


@pytest.mark.parametrize("count", [5, 100, 300])
@pytest.mark.parametrize("shape", [(5,), (12,), (100,), (7, 5), (3, 4, 4), (3, 6, 6), (3, 32, 32)])
def test_independent_noise_is_not_related(shape: tuple[int, ...], count: int) -> None:
    samples = np.random.default_rng(count).standard_normal((count, *shape)).astype(np.float32)
    assert len(groups_of(samples)) == count


def test_objects_of_a_kind_and_pictures_are_not_related() -> None:
    assert len(groups_of(garments(300))) >= 295
    assert len(groups_of(pictures(150, 32))) == 150
    assert len(groups_of(pictures(40, 128))) == 40


@pytest.mark.parametrize("way", ["copy", "noise", "shift", "flip"])
def test_copies_are_in_the_group_of_their_source(way: str) -> None:
    for samples in (pictures(60, 32), pictures(5, 64), garments(60)):
        count = len(samples)
        if way == "noise" and samples.shape[1] == 1:
            continue  # white noise on a plain ground hides what garments differ by
        groups = groups_of(np.concatenate([samples, moved(samples, way)]))
        together = {index: number for number, group in enumerate(groups) for index in group}
        for index in range(count):
            assert together.get(index + count, together[index]) == together[index]
        assert 0.9 * count < len(groups) <= count


def test_crops_of_a_picture_are_a_group() -> None:
    rng = np.random.default_rng(2)
    whole = pictures(4, 160)
    corners = rng.integers(0, 50, (48, 2))
    crops = [whole[i % 4][:, y : y + 110, x : x + 110] for i, (y, x) in enumerate(corners)]
    groups = groups_of(np.stack(crops))
    assert all(len({index % 4 for index in group}) == 1 for group in groups)
    assert len(groups) == 4


def test_frames_of_a_camera_that_moves_or_stands_are_a_group() -> None:
    rng = np.random.default_rng(3)
    whole = pictures(1, 160)[0]
    panned = np.stack([whole[:, 2 * i : 2 * i + 64, i : i + 64] for i in range(30)])
    standing = np.stack([whole[:, :64, :64]] * 30)
    for frame in standing:
        y, x = rng.integers(0, 50, 2)
        frame[:, y : y + 12, x : x + 12] = 3 * rng.standard_normal()
    standing += 0.02 * rng.standard_normal(standing.shape).astype(np.float32)
    for frames in (panned, standing):
        assert len(groups_of(np.concatenate([frames, pictures(10, 64, seed=9)]))) == 11


def test_windows_of_a_signal_that_overlap_are_a_group() -> None:
    signal = np.random.default_rng(4).standard_normal((2, 4000)).astype(np.float32)
    windows = np.stack([signal[:, start : start + 512] for start in range(0, 3000, 200)])
    assert len(groups_of(windows)) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e30, 1e200])
def test_large_values_are_no_reason_to_warn(scale: float) -> None:
    samples = np.random.default_rng(0).standard_normal((12, 8)) * scale
    assert groups_of(samples) == [[number] for number in range(12)]


def test_identical_samples_are_there_once() -> None:
    ids = np.array([[1, 2], [3, 4], [1, 2], [1, 2]])
    assert groups_of(ids) == [[0], [1]]
    assert groups_of(ids, np.array([0, 0, 1, 2])) == [[0, 1]]


def test_given_groups_are_taken() -> None:
    samples = np.random.default_rng(5).standard_normal((5, 3, 8, 8)).astype(np.float32)
    assert groups_of(samples, np.array([4, 0, 4, 2, 0])) == [[0, 2], [1, 4], [3]]
    copies = np.concatenate([samples, samples + 1e-3])
    assert len(groups_of(copies, np.arange(10))) == 10


def test_the_largest_input_that_varies_is_compared() -> None:
    rng = np.random.default_rng(6)
    small = rng.standard_normal((4, 2, 8, 8)).astype(np.float32)
    small = np.concatenate([small, small[..., ::-1] + 1e-4])
    prints = [
        Fingerprint.of({"mask": np.ones((4, 16, 16), np.float32), "x": x, "id": np.array([i])})
        for i, x in enumerate(small)
    ]
    assert [group.tolist() for group in find_groups(prints, None)] == [[i, i + 4] for i in range(4)]
