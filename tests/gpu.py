"""Whether a GPU gives what the CPU gives, and how fast: ``make gpu``.

The networks of ``models/demo`` run on both: cut into segments, with every block output read back,
and fitted, with either solver, and with gradient steps. What differs is printed beside what may.
Then come the seconds of fits next to those of plain forward passes on the same device, and next to
fits on the CPU of the same machine. The exit status is 1 where more differs. Where ONNX Runtime
finds no GPU nothing can be checked: that is said, and the status is 0.

``--write FILE`` also writes what is printed between the markers, gpu, of a file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fskd_onnx import FitOptions, FitResult, Preprocess, RunOptions, fit
from fskd_onnx.errors import FskdError, ProviderError
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.divided_samples import open_samples
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import TensorStore, download
from fskd_onnx.samples.batches import plan_batches
from tests.benchmarks.markers import write_between
from tests.benchmarks.speed import Case, measure
from tests.helpers import run

GPU, CPU = ("cuda",), ("cpu",)
DEMO = Path(__file__).parents[1] / "models" / "demo"
TEACHER, STUDENT, SAMPLES = DEMO / "teacher.onnx", DEMO / "student.onnx", DEMO / "samples"

# Squared errors, relative: of block outputs, of the outputs of fitted students; and by which part
# the error that a fit reports may be another one, without and with gradient steps.
BLOCKS, OUTPUTS, REPORTED, STEPPED = 1e-6, 1e-4, 0.01, 0.1
_BATCH = 32
_STEPS = 100
_SPEED = (
    Case("mobilenet_v2", 64, "pointwise"),
    Case("resnet50", 64, "pointwise"),
    Case("resnet50", 512, "pointwise"),
)
_HEAD = (
    "| network | samples | method | forward, s | fit, s | ratio | fit on CPU, s | CPU by GPU |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Check:
    """How far a GPU is from the CPU.

    Attributes:
        what: was compared.
        found: the difference.
        allowed: how much it may be.
    """

    what: str
    found: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether it is no more than it may be."""
        return self.found <= self.allowed

    def __str__(self) -> str:
        """Say so in a line."""
        verdict = "as on the CPU" if self.holds else "NOT AS ON THE CPU"
        return f"{self.what:<32} {self.found:8.1e} of {self.allowed:.0e} allowed: {verdict}"


def checks(providers: Sequence[str], count: int = 200, adapter: str = "auto") -> Iterator[Check]:
    """Compare execution providers with the CPU.

    Args:
        providers: of the GPU.
        count: of samples.
        adapter: as of ``fit``.

    Raises:
        FskdError: something that has to run does not.
    """
    names, expected = block_outputs(open_runtime(CPU), count)
    _, found = block_outputs(open_runtime(providers), count)
    differences = map(_difference, found, expected)
    name, worst = max(zip(names, differences, strict=True), key=lambda pair: pair[1])
    yield Check(f"block outputs, most at {name}"[:32], worst, BLOCKS)
    reference = _fitted(CPU, "numpy", count, adapter)
    for solver in ("numpy", "torch"):
        result = _fitted(providers, solver, count, adapter)
        outputs = [_answers(one.model) for one in (result, reference)]
        yield Check(f"outputs fitted, solver {solver}", _difference(*outputs), OUTPUTS)
        one, other = (r.report.after.relative_mse for r in (result, reference))
        yield Check(f"error reported, solver {solver}", abs(one / other - 1), REPORTED)
    yield _check_of_steps(count, adapter)


def _check_of_steps(count: int, adapter: str) -> Check:
    """Compare the error that gradient steps leave; PyTorch takes its GPU where it has one."""
    found = _fitted(CPU, "numpy", count, adapter, _STEPS).report
    with mock.patch("torch.cuda.is_available", return_value=False):
        expected = _fitted(CPU, "numpy", count, adapter, _STEPS).report
    one, other = (report.after.relative_mse for report in (found, expected))
    faster = expected.seconds.refine / found.seconds.refine
    what = f"error, {_STEPS} steps at {faster:.1f}x speed"
    return Check(what, abs(one / other - 1), STEPPED)


def block_outputs(runtime: Runtime, count: int) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Return names and values of all block outputs of the student, run segment by segment.

    Args:
        runtime: where to run.
        count: of samples.
    """
    model = LoadedModel.load(STUDENT)
    samples = open_samples(str(SAMPLES), model, _run_options(CPU, count))
    batches = plan_batches([np.arange(count)], _BATCH, None)
    graph = model.graph()
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    stops = [[view.output.name] for view in views]
    found = []
    with TensorStore(None) as store:
        decoded = DecodedSamples(samples, batches, store, runtime.device)
        runner = SegmentRunner(runtime, graph, stops, batches, decoded)
        for (name,) in stops:
            with runner.next_stage(name) as stage:
                parts = [download(stage.tensors(at)[name]) for at in range(len(batches))]
            found.append(np.concatenate(parts))
    return [view.name for view in views], found


def _run_options(providers: Sequence[str], count: int) -> RunOptions:
    preprocess = Preprocess(preset="fashion-mnist")
    return RunOptions(tuple(providers), preprocess=preprocess, max_samples=count)


def _fitted(
    providers: Sequence[str], solver: str, count: int, adapter: str, steps: int = 0
) -> FitResult:
    options = FitOptions(_run_options(providers, count), adapter, solver=solver, refine=steps)
    return fit(TEACHER, STUDENT, SAMPLES, options)


def _answers(model: onnx.ModelProto) -> NDArray[np.float32]:
    """Return what a model says of images that no fit has seen, on the CPU."""
    spec = LoadedModel.load(TEACHER)
    test = open_samples(str(DEMO / "test.npz"), spec, _run_options(CPU, 500))
    (values,) = run(model, test.take(np.arange(500))).values()
    return values


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return ||found - expected||^2 / ||expected - mean||^2."""
    exact = expected.astype(np.float64)
    energy = np.sum((exact - exact.mean(axis=0)) ** 2)
    return float(np.sum((found - exact) ** 2) / (energy or 1.0))


def speed(case: Case) -> str:
    """Return a line of the table: fits on the GPU and on the CPU."""
    on_gpu, on_cpu = measure(case, GPU), measure(case, CPU)
    return (
        f"| {case.network} | {case.samples:,} | {case.method} | {on_gpu.floor:.2f} | "
        f"{on_gpu.seconds:.2f} | {on_gpu.seconds / on_gpu.floor:.2f} | {on_cpu.seconds:.2f} | "
        f"{on_cpu.seconds / on_gpu.seconds:.2f} |"
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Print the checks and the table of speed; return 1 if a check does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write between markers, gpu")
    file: Path | None = parser.parse_args(arguments).write
    try:
        runtime = open_runtime(GPU)
    except ProviderError as error:
        print(f"no GPU, so nothing is checked: {error}")
        return 0
    lines = [f"{torch.cuda.get_device_name()}, beside {os.cpu_count()} processors", "", "```"]
    print(f"checked on {', '.join(runtime.providers)}", lines[0], sep="\n")
    good = True
    try:
        for check in checks(GPU):
            lines.append(str(check))
            print(check, flush=True)
            good = good and check.holds
    except FskdError as error:
        print(f"does not run: {error}")
        return 1
    lines += ["```", "", _HEAD]
    print(f"\n{_HEAD}")
    for case in _SPEED:
        lines.append(speed(case))
        print(lines[-1], flush=True)
    if file is not None:
        printed = f"Printed by `python -m tests.gpu --write {file}`."
        write_between(file, "gpu", "\n".join([*lines, "", printed, ""]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
