"""Make the reference models: ``python -m models.build demo`` or ``zoo``, from the repository root.

``demo`` writes the files that the repository holds, `DEMO`. ``zoo`` writes the teachers and
students of the benchmarks into the cache. Both train a teacher only if the cache has none, and
print the accuracy of every model on the test images, which are used for nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from models.data import Split, draw_samples, load
from models.decompose import decompose
from models.decompose import recipes as decompositions
from models.export import export
from models.networks import Network
from models.prune import prune, recipes
from models.train import accuracy
from models.zoo import cache_folder, teacher

DEMO = Path(__file__).parent / "demo"
"""The folder of the files that the repository holds."""

DEMO_TESTS = 2000
"""How many test images, the first ones, the demo holds."""

ZOO = ("resnet20", "vgg16", "densenet22", "mobilenetv2")
"""The teachers of the benchmarks."""


def teacher_path(name: str) -> Path:
    """Give the ONNX file of a teacher, made on demand and kept in the cache.

    Args:
        name: a key of `models.zoo.TEACHERS`.
    """
    path = cache_folder() / f"{name}.onnx"
    return path if path.is_file() else export(teacher(name), path)


def student_path(name: str, recipe: str) -> Path:
    """Give the ONNX file of a student that is not retrained, made and kept likewise.

    Args:
        name: a key of `models.zoo.TEACHERS`.
        recipe: one of `models.prune.recipes` or `models.decompose.recipes`.
    """
    path = cache_folder() / f"{name}-{recipe}.onnx"
    return path if path.is_file() else export(compressed(teacher(name), recipe), path)


def compressed(network: Network, recipe: str) -> Network:
    """Give a pruned or decomposed student.

    Args:
        network: the teacher in eval mode; it stays as it is.
        recipe: one of `models.prune.recipes` or `models.decompose.recipes`.
    """
    made = decompose if recipe in decompositions(network) else prune
    return made(network, recipe)


def build_demo(retrain: bool) -> None:
    """Write the teachers, students, samples and test images of `DEMO`.

    Args:
        retrain: train the teachers even if the cache has them.
    """
    test = load("test")
    DEMO.mkdir(exist_ok=True)
    resnet = teacher("resnet20", retrain)
    _write(resnet, DEMO / "teacher.onnx", test)
    _write(prune(resnet, "inner50"), DEMO / "student.onnx", test)
    vgg = teacher("vgg16_small", retrain)
    _write(vgg, DEMO / "vgg16_small.onnx", test)
    _write(prune(vgg, "D"), DEMO / "vgg16_small_D.onnx", test)

    samples = DEMO / "samples"
    samples.mkdir(exist_ok=True)
    drawn = draw_samples(load("train").images)
    for number, image in enumerate(drawn):
        Image.fromarray(image).save(samples / f"{number:04}.png", optimize=True)
    np.savez_compressed(
        DEMO / "test.npz", image=test.images[:DEMO_TESTS], labels=test.labels[:DEMO_TESTS]
    )
    print(f"{samples}: {len(drawn)} unlabelled training images")
    print(f"{DEMO / 'test.npz'}: the first {DEMO_TESTS:,} test images and their labels")


def build_zoo(retrain: bool) -> None:
    """Write the teachers of `ZOO` and all their students into the cache.

    Args:
        retrain: train the teachers even if the cache has them.
    """
    test = load("test")
    for name in ZOO:
        network = teacher(name, retrain)
        _write(network, cache_folder() / f"{name}.onnx", test)
        for recipe in recipes(network):
            _write(prune(network, recipe), cache_folder() / f"{name}-{recipe}.onnx", test)


def _write(network: Network, path: Path, test: Split) -> None:
    export(network, path)
    first = Split(test.images[:DEMO_TESTS], test.labels[:DEMO_TESTS])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{path}: {parameters:,} parameters, {path.stat().st_size:,} bytes, accuracy"
        f" {accuracy(network, test):.2%} ({accuracy(network, first):.2%} on the first"
        f" {DEMO_TESTS:,})",
        flush=True,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.build", description="Make the reference models."
    )
    parser.add_argument("target", choices=("demo", "zoo"), help="what to make")
    parser.add_argument(
        "--retrain", action="store_true", help="train the teachers even if the cache has them"
    )
    arguments = parser.parse_args()
    (build_demo if arguments.target == "demo" else build_zoo)(arguments.retrain)


if __name__ == "__main__":
    main()
