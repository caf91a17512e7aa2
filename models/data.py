"""Fashion-MNIST from its four ``idx`` files.

The data set is that of H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms" (2017): 60,000 training and 10,000 test images of clothes,
28 x 28 grey levels, ten classes. The ``idx`` format is described at
http://yann.lecun.com/exdb/mnist/: a big-endian header, then the raw bytes.
"""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MEAN = 0.2860
"""Mean of the training pixels, on the scale where black is 0 and white is 1."""

STD = 0.3530
"""Standard deviation of the training pixels, on the same scale."""

CLASSES = 10
SIDE = 28

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package ``dataset-fashion-mnist`` puts the files."""

_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IDX_UINT8 = 0x08


class Split(NamedTuple):
    """One half of the data set.

    Attributes:
        images: grey levels 0..255, uint8, N x 28 x 28.
        labels: class numbers 0..9, int64, N.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def dataset_folder(folder: Path | None = None) -> Path:
    """Find the folder that holds the four files.

    Args:
        folder: the folder to use; else the environment variable ``FASHION_MNIST`` names it, else it
            is the one of the Debian package.

    Returns:
        The folder, in which all four files exist.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    chosen = folder or Path(os.environ.get("FASHION_MNIST") or DEBIAN_FOLDER)
    names = [name for pair in _FILES.values() for name in pair]
    if not all((chosen / name).is_file() for name in names):
        raise FileNotFoundError(
            f"Fashion-MNIST is not in {chosen}: install the Debian package dataset-fashion-mnist,"
            f" or put {', '.join(names)} in a folder and name it in the environment variable"
            " FASHION_MNIST."
        )
    return chosen


def load(split: str, folder: Path | None = None) -> Split:
    """Read one half of the data set.

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000 images).
        folder: see `dataset_folder`.

    Returns:
        The images and labels, in the order of the files.
    """
    where = dataset_folder(folder)
    image_file, label_file = _FILES[split]
    images = _read_idx(where / image_file)
    labels = _read_idx(where / label_file)
    if images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{where}: {image_file} and {label_file} have shapes {images.shape} and {labels.shape},"
            f" not N x {SIDE} x {SIDE} and N."
        )
    return Split(images, labels.astype(np.int64))


def draw_samples(
    images: npt.NDArray[np.uint8], count: int = 500, draw: int = 0
) -> npt.NDArray[np.uint8]:
    """Draw the few unlabelled samples that a recovery may use.

    Args:
        images: the training images, uint8, N x 28 x 28.
        count: how many to draw.
        draw: number of the draw, the seed of the permutation. A smaller ``count`` of the same draw
            is a prefix of a larger one, so a sweep over the sample count is nested.

    Returns:
        ``count`` different images, uint8, count x 28 x 28.
    """
    if not 0 < count <= len(images):
        raise ValueError(f"Cannot draw {count} samples from {len(images)} images.")
    order = np.random.default_rng(draw).permutation(len(images))
    return images[order[:count]]


def normalise(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn grey levels into what the networks take.

    Args:
        images: grey levels 0..255, uint8, N x 28 x 28.

    Returns:
        Zero-mean, unit-variance pixels, float32, N x 1 x 28 x 28.
    """
    scaled = images[:, None].astype(np.float32) / np.float32(255)
    normalised: npt.NDArray[np.float32] = (scaled - np.float32(MEAN)) / np.float32(STD)
    return normalised


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    with gzip.open(path, "rb") as stream:
        content = stream.read()
    zeros, kind, rank = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != _IDX_UINT8:
        raise ValueError(f"{path} is not an idx file of unsigned bytes.")
    shape = struct.unpack_from(f">{rank}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
