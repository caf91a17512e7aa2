import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from models import data


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_load_reads_both_splits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = data.load("train", folder)
    assert train.images.shape == (12, 28, 28)
    assert train.images.dtype == np.uint8
    assert train.labels.tolist() == list(range(12))
    monkeypatch.setenv("FASHION_MNIST", str(folder))
    assert len(data.load("test").labels) == 5


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_missing_dataset_says_what_to_do(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("train", tmp_path if by == "argument" else None)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "dataset-fashion-mnist" in message
    assert "FASHION_MNIST" in message
    assert "t10k-labels-idx1-ubyte.gz" in message


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(8)))
    with pytest.raises(ValueError, match="not an idx file"):
        data.load("train", folder)


def test_images_of_another_size_are_refused(folder: Path) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((12, 32, 32), np.uint8))
    with pytest.raises(ValueError, match="32"):
        data.load("train", folder)


def test_draws_are_repeatable_nested_and_different() -> None:
    images = np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    large = data.draw_samples(images, 40)
    assert np.array_equal(data.draw_samples(images, 10), large[:10])
    assert len(np.unique(large[:, 0, 0])) == 40
    assert not np.array_equal(data.draw_samples(images, 40, draw=1), large)
    with pytest.raises(ValueError, match="101"):
        data.draw_samples(images, 101)


def test_normalise() -> None:
    images = np.array([0, 255], np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    pixels = data.normalise(images)
    assert pixels.shape == (2, 1, 28, 28)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[:, 0, 0, 0], [-0.286 / 0.353, 0.714 / 0.353], rtol=1e-6)
