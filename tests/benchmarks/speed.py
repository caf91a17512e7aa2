"""How long a fit takes, next to what it cannot do without: ``python -m tests.benchmarks.speed``.

The floor is one plain forward pass of teacher and student over all samples in ONNX Runtime, in the
same process, with the same batches and threads. Everything above it is the method: cuts, sums,
solves and the check of the result. Floor and fit take turns, three times where that does not take
long, and the median of each counts. Seconds of the processor stand beside those of the clock,
because a machine with other work to do stretches the latter. Each case runs in a process of its
own, so that its peak memory is its own; starting it is not counted.

``--quick`` leaves out what takes minutes; ``--crowded`` keeps one processor busy by another process
meanwhile, as on a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.compress import compress
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import upload
from fskd_onnx.samples.batches import default_batch_size
from fskd_onnx.serialization.model_files import ModelSource, load_model
from tests.benchmarks import shapes
from tests.benchmarks.host import crowd
from tests.benchmarks.markers import write_between
from tests.benchmarks.paper import paper_fit
from tests.helpers import DEMO

Floats = NDArray[np.float32]

_ROOT = Path(__file__).parents[2]
_CPU = ("cpu",)
_SHAPES = {
    "vgg16-D": shapes.vgg16,
    "resnet50": shapes.resnet50,
    "mobilenet_v2": shapes.mobilenet_v2,
    "efficientnet_lite0": shapes.efficientnet_lite0,
    "inception_v1": shapes.inception_v1,
}
_TURNS = 3
_LONG = 20.0  # seconds; a fit that takes longer is timed once


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        network: "resnet20-inner50", that of `models/demo`, one of ``_SHAPES`` or "chain-DEPTH".
        samples: how many.
        adapter: as of ``fit``; "paper" for the paper's way, "compress" for the command of that
            name, which takes the teacher alone.
        targets: as of ``fit``.
        memory_limit: as of ``fit``.
    """

    network: str
    samples: int
    adapter: str
    targets: str = "kept"
    memory_limit: int | None = None

    @property
    def method(self) -> str:
        """What the table calls the method."""
        shown = self.adapter if self.targets == "kept" else f"{self.adapter}, {self.targets}"
        limit = "" if self.memory_limit is None else f", {self.memory_limit / 1e6:.0f} MB"
        return shown + limit


@dataclass(frozen=True)
class Figures:
    """What was measured; ``cpu`` adds up the seconds of all threads.

    Attributes:
        floor: seconds of the forward passes.
        floor_cpu: the same of the processor.
        seconds: of the whole fit.
        seconds_cpu: the same of the processor.
        memory: largest resident size of the process, in bytes.
        stages: of ``compress``, seconds of each of its stages, by name, in the last turn.
    """

    floor: float
    floor_cpu: float
    seconds: float
    seconds_cpu: float
    memory: int
    stages: dict[str, float] = field(default_factory=dict)

    def row(self, case: Case) -> str:
        """Format as a line of the table."""
        return (
            f"| {case.network} | {case.samples:,} | {case.method} | {self.floor:.2f} | "
            f"{self.seconds:.2f} | {self.seconds / self.floor:.2f} | "
            f"{self.seconds_cpu / self.floor_cpu:.2f} | {self.memory / 1e6:,.0f} MB |"
        )

    def line_of_stages(self, case: Case) -> str:
        """Format what stands below the table, empty where no stages are known."""
        shown = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.stages.items())
        return (
            f"- {case.network}, {case.samples:,} samples, {case.method}: {shown}" if shown else ""
        )


HEAD = (
    "| network | samples | method | forward, s | fit, s | ratio | ratio of CPU | peak memory |\n"
    "|---|---|---|---|---|---|---|---|"
)


def cases(quick: bool) -> Iterator[Case]:
    """Yield the rows of the table."""
    for samples in (500,) if quick else (500, 2000, 4000, 8000):
        yield Case("vgg16-D", samples, "pointwise")
    yield Case("vgg16-D", 500 if quick else 8000, "pointwise", memory_limit=200_000_000)
    yield Case("vgg16-D", 500, "paper")
    yield Case("vgg16-D", 500, "auto", "auto")
    large = 500 if quick else 4000
    for network in ("vgg16-D", "resnet20-inner50"):
        for adapter in ("pointwise", "kernel", "auto"):
            if (network, adapter) != ("vgg16-D", "pointwise"):
                yield Case(network, large, adapter)
    for depth in (4, 8) if quick else (4, 8, 16, 32):
        yield Case(f"chain-{depth}", 500, "pointwise")
        yield Case(f"chain-{depth}", 500, "paper")
    for network in () if quick else ("mobilenet_v2", "resnet50"):
        for adapter in ("pointwise", "kernel", "auto"):
            yield Case(network, 64, adapter)
        yield Case(network, 256, "pointwise")
        yield Case(network, 64, "compress")
    if not quick:
        yield Case("efficientnet_lite0", 64, "auto")
        yield Case("efficientnet_lite0", 64, "compress")
        yield Case("efficientnet_lite0", 64, "compress", memory_limit=200_000_000)
    for samples in () if quick else (16, 64):
        yield Case("inception_v1", samples, "auto", "auto")


def measure(case: Case, providers: tuple[str, ...] = _CPU) -> Figures:
    """Run one case in this process, the floor and the fit in turns; the median of each counts.

    Args:
        case: what to run.
        providers: execution providers of both.
    """
    teacher, student, samples = _load(case)
    models = [load_model(teacher), load_model(student)]
    run_options = RunOptions(providers, memory_limit=case.memory_limit)
    stages: dict[str, float] = {}

    def work() -> object:
        if case.adapter == "paper":
            return paper_fit(teacher, student, samples)
        if case.adapter == "compress":
            made = compress(teacher, samples, CompressOptions(run=run_options))
            stages.update(asdict(made.report.seconds))
            return made
        options = FitOptions(run_options, adapter=case.adapter, targets=case.targets)
        return fit(teacher, student, samples, options)

    floors = [_timed(lambda: _forward(models, samples, providers))]
    fits = [_timed(work)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(_TURNS - 1):
        floors.append(_timed(lambda: _forward(models, samples, providers)))
        if fits[0][0] < _LONG:
            fits.append(_timed(work))
    return Figures(*_median(floors), *_median(fits), memory, stages)


def _median(timed: Sequence[tuple[float, float]]) -> tuple[float, float]:
    clock, cpu = (float(np.median(column)) for column in zip(*timed, strict=True))
    return clock, cpu


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def _forward(models: list[onnx.ModelProto], samples: Floats, providers: tuple[str, ...]) -> None:
    """Run both networks over all samples once, and let go of what comes out."""
    runtime = open_runtime(providers)
    name = models[0].graph.input[0].name
    size = default_batch_size({name: samples.shape[1:]})
    sessions = [runtime.session(model) for model in models]
    for start in range(0, len(samples), size):
        feeds = upload({name: samples[start : start + size]}, runtime.device)
        for model, session in zip(models, sessions, strict=True):
            run(session, feeds, [output.name for output in model.graph.output], runtime.device)


def _load(case: Case) -> tuple[ModelSource, ModelSource, Floats]:
    if case.network.startswith("chain-"):
        pair = shapes.chain(int(case.network.removeprefix("chain-")))
    elif case.network in _SHAPES:
        pair = _SHAPES[case.network]()
    else:
        images = shapes.images(case.samples, shapes.SMALL_SIDE, channels=1)
        return DEMO / "teacher.onnx", DEMO / "student.onnx", images
    side = pair[0].graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    return *pair, shapes.images(case.samples, side)


def _measure_apart(case: Case) -> Figures:
    """Run one case in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.speed", "--case", json.dumps(asdict(case))],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed")
    parser.add_argument("--quick", action="store_true", help="leave out what takes minutes")
    parser.add_argument("--only", default="", help="only networks whose name begins so")
    parser.add_argument("--adapter", default="", help="only this one")
    parser.add_argument("--crowded", action="store_true", help="beside another process")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table between its markers, speed"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(asdict(measure(Case(**json.loads(arguments.case))))))
        return
    rows, stages = [HEAD], []
    print(HEAD, flush=True)
    for case in cases(arguments.quick):
        if case.network.startswith(arguments.only) and arguments.adapter in ("", case.adapter):
            with crowd() if arguments.crowded else nullcontext():
                figures = _measure_apart(case)
            rows.append(figures.row(case))
            stages.append(figures.line_of_stages(case))
            print(rows[-1], stages[-1], sep="\n" if stages[-1] else "", flush=True)
    if arguments.write is not None:
        command = f"python -m tests.benchmarks.speed --write {arguments.write}"
        below = [line for line in stages if line]
        text = "\n".join(
            [*rows, "", *below, *([""] if below else []), f"Printed by `{command}`.", ""]
        )
        write_between(arguments.write, "speed", text)


if __name__ == "__main__":
    main()
