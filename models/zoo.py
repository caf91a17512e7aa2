"""The named teachers: how each is built and trained, and the cache that keeps its parameters."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models import data
from models.networks import Network, densenet22, mobilenetv2, resnet20, vgg16, vgg16_widths
from models.train import Recipe, train

THREADS = 1
"""Threads for training: the sums, hence the trained parameters, depend on their number."""


@dataclass(frozen=True)
class Teacher:
    """A network to train.

    Attributes:
        network: builds it, untrained.
        recipe: how to train it.
    """

    network: Callable[[], Network]
    recipe: Recipe


TEACHERS = {
    "densenet22": Teacher(densenet22, Recipe(epochs=6, peak_rate=0.1)),
    "mobilenetv2": Teacher(mobilenetv2, Recipe(epochs=5, peak_rate=0.1)),
    "resnet20": Teacher(resnet20, Recipe(epochs=10, peak_rate=0.1)),
    "vgg16": Teacher(lambda: vgg16(vgg16_widths(2)), Recipe(epochs=8, peak_rate=0.05)),
    "vgg16_small": Teacher(lambda: vgg16(vgg16_widths(8)), Recipe(epochs=4, peak_rate=0.05)),
}
"""Half-width VGG-16 (3.7 million parameters), the other networks as they are, and VGG-16 at an
eighth of its width."""


def cache_folder() -> Path:
    """Give the folder for what is large or slow to make, outside the repository.

    It is the environment variable ``FSKD_ONNX_CACHE``, else ``~/.cache/fskd-onnx``. It is created.
    """
    folder = Path(os.environ.get("FSKD_ONNX_CACHE") or Path.home() / ".cache" / "fskd-onnx")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def teacher(name: str, retrain: bool = False) -> Network:
    """Give a trained teacher, from the cache or by training it.

    Args:
        name: a key of `TEACHERS`.
        retrain: train it even if the cache has it.

    Returns:
        The network in eval mode.
    """
    entry = TEACHERS[name]
    torch.manual_seed(0)
    network = entry.network()
    path = cache_folder() / f"{name}.pt"
    if path.is_file() and not retrain:
        print(f"{name}: reusing {path}", flush=True)
        network.load_state_dict(torch.load(path, weights_only=True))
        network.eval()
        return network
    print(f"{name}: training for {entry.recipe.epochs} epochs", flush=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    train(network, data.load("train"), entry.recipe)
    torch.set_num_threads(threads)
    # Renamed when complete, so that an interrupted run leaves no half file to be reused.
    partial = path.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    # Exports of an earlier training are stale.
    for export in (cache_folder() / f"{name}.onnx", *cache_folder().glob(f"{name}-*.onnx")):
        export.unlink(missing_ok=True)
    partial.replace(path)
    return network
