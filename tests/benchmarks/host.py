"""Why the host computes as it does: ``python -m tests.benchmarks.host``.

Why columns leave the device before they are summed: on the CPU both steps could be nodes of a graph
as well. Here are gathers and Gram products of the shapes that VGG-16 and ResNet-50 have, by a
session of ONNX Runtime and by NumPy with its BLAS, in the same process; the ratio is that of the
best of several runs.

Why BLAS keeps to one thread, and why those of PyTorch sleep soon: eigenvectors by all threads and
by one, and gradient steps whose threads wait as they do by default and as here, while one other
process keeps a processor busy.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx

from fskd_onnx.linalg.backends import backend
from fskd_onnx.linalg.threads import threads_for
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import upload

_RUNS, _CROWDED_RUNS = 20, 5

# Samples, channels, side of the image, positions per sample, elements of the kernel.
GATHERS = (
    (32, 32, 28, 15, 9),
    (32, 64, 14, 15, 9),
    (32, 128, 7, 15, 9),
    (32, 64, 14, 15, 1),
    (6, 256, 56, 60, 1),
    (6, 1024, 14, 112, 1),
)
# Unknowns.
SYSTEMS = (384, 768)
STEPS = 50
# Unknowns, columns.
PRODUCTS = ((128, 6400), (256, 12800), (1024, 5000))

_GRAM = """<ir_version: 8, opset_import: ["": 17]> gram (double[M,K] x) => (double[M,M] y)
    { t = Transpose (x) y = MatMul (x, t) }"""

# Ends with the process that has started it, however that ends.
_BUSY = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    pass
"""

_STEPS = """
import sys, time, torch
network = torch.nn.Sequential(
    *(layer for _ in range(6) for layer in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()))
)
x = torch.randn(32, 16, 28, 28)
began = time.perf_counter()
for _ in range(int(sys.argv[1])):
    network(x).square().mean().backward()
print(time.perf_counter() - began)
"""


def gather_ratio(runtime: Runtime, shape: tuple[int, int, int, int, int]) -> float:
    """Return how many times longer a session takes for a gather; both give the same bytes."""
    samples, channels, side, k, taps = shape
    rng = np.random.default_rng(0)
    images = rng.standard_normal((samples, channels, side, side), dtype=np.float32)
    tensor = upload({"x": images}, runtime.device)["x"]
    index, inside = rng.integers(0, side**2, (taps, k)), rng.random((taps, k)) < 0.9
    gather, mask = Gatherer(runtime), inside if taps > 1 else None
    ways = (gather.on_device, gather)
    found = [way(tensor, False, samples, index, mask) for way in ways]
    if found[0].tobytes() != found[1].tobytes():
        raise AssertionError(f"the two ways to gather differ for {shape}")
    session, host = (
        _best(lambda way=way: way(tensor, False, samples, index, mask))  # type: ignore[misc]
        for way in ways
    )
    return session / host


def product_ratio(runtime: Runtime, unknowns: int, columns: int) -> float:
    """Return how many times longer a session takes for a Gram product in float64."""
    x = np.random.default_rng(0).standard_normal((unknowns, columns))
    session = runtime.session(onnx.parser.parse_model(_GRAM))
    feeds = upload({"x": x}, runtime.device)
    return _best(lambda: run(session, feeds, ["y"], runtime.device)) / _best(
        lambda: backend().multiply(x, x)
    )


def crowded_ratio(unknowns: int) -> float:
    """Return how many times longer eigenvectors take by all threads of BLAS than by one.

    Another process, of another session as those of other users and services are, keeps one
    processor busy meanwhile.
    """
    matrix = np.random.default_rng(0).standard_normal((unknowns, unknowns))
    matrix += matrix.T

    def seconds() -> float:
        began = time.perf_counter()
        np.linalg.eigh(matrix)
        return time.perf_counter() - began

    with crowd():
        of_all = np.median([seconds() for _ in range(_CROWDED_RUNS)])
        with threads_for():
            return float(of_all / np.median([seconds() for _ in range(_CROWDED_RUNS)]))


def waiting_ratio(steps: int) -> float:
    """Return how many times longer gradient steps take where their threads wait as by default.

    Another process keeps one processor busy meanwhile, as for ``crowded_ratio``.
    """
    ways = ("import torch", "from fskd_onnx.linalg.pytorch import load_torch as f; f('', '')")
    with crowd():
        default, here = (
            float(
                subprocess.run(
                    [sys.executable, "-c", f"{way}\n{_STEPS}", str(steps)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for way in ways
        )
    return default / here


@contextmanager
def crowd() -> Iterator[None]:
    """Keep one processor busy by another process, of a session of its own."""
    command = [sys.executable, "-c", _BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            yield
        finally:
            other.kill()


def _best(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(_RUNS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    """Print the table."""
    runtime = open_runtime(["cpu"])
    print("| step | shape | session over NumPy |\n|---|---|---|")
    for shape in GATHERS:
        print(f"| gather | {' x '.join(map(str, shape))} | {gather_ratio(runtime, shape):.1f} |")
    for unknowns, columns in PRODUCTS:
        ratio = product_ratio(runtime, unknowns, columns)
        print(f"| Gram product | {unknowns} x {columns} | {ratio:.1f} |")
    print("\n| step | unknowns | all threads over one, beside another process |\n|---|---|---|")
    for unknowns in SYSTEMS:
        print(f"| eigenvectors | {unknowns} | {crowded_ratio(unknowns):.1f} |")
    print(
        "\n| step | number | waiting by default over here, beside another process |\n|---|---|---|"
    )
    print(f"| gradient step | {STEPS} | {waiting_ratio(STEPS):.1f} |")


if __name__ == "__main__":
    main()
