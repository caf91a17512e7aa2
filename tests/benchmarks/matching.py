"""Which blocks are found where a student has no names: ``python -m tests.benchmarks.matching``.

Every student has all of its names replaced at random, its initializers shuffled, and its nodes as
far as data flow allows. Its true pairs are known from the names that it had. Students are those of
the accuracy table, convolutions cut into several, and the nine graphs of the model zoo that the
``onnx`` package carries, with random weights: pruned by onnxsim where that prunes anything, else
with noise of 30 % on their weights. Channels are compared with those that are found by names.

The time of matching, channels included, stands next to one forward pass of both networks over the
samples of a fit, in the same process: 500 samples, or 64 of the model zoo.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxsim

from fskd_onnx.matching.channels import match_models
from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.results import Matching
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import upload
from fskd_onnx.serialization.interface import input_specs, output_names
from models.build import student_path, teacher_path
from tests.benchmarks.cells import STUDENTS
from tests.helpers import ZOO, zoo_model
from tests.students import DECOMPOSITIONS, decomposed, is_spatial, renamed, with_noise

HEAD = (
    "| teacher | student | blocks | found | precision | recall | channels as by names | time |\n"
    "|---|---|---|---|---|---|---|---|"
)
_SAMPLES, _ZOO_SAMPLES = 500, 64
_NOISE = 0.3


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        network: name of the teacher.
        kind: of the student.
        teacher: the teacher.
        student: with its names.
        partners: block output of the teacher for each node of the student that has one.
        samples: of a fit.
    """

    network: str
    kind: str
    teacher: onnx.ModelProto
    student: onnx.ModelProto
    partners: Mapping[str, str]
    samples: int

    def row(self) -> str:
        """Match, and format what was found."""
        student = renamed(self.student, seed=0)
        # Before anything is canonical, since that is a part of a fit with names as well.
        graphs = [_canonical(model) for model in (self.teacher, student.model)]
        start = time.perf_counter()
        found = match_models(graphs[0], graphs[1])
        seconds = time.perf_counter() - start
        pairs = {student.old.get(p.student, p.student): p for p in found.pairs}
        given = {name: pair.teacher for name, pair in pairs.items() if pair.teacher is not None}
        right = sum(self.partners.get(name) == output for name, output in given.items())
        named = {pair.student: pair.channels for pair in self._by_names().pairs}
        same = sum(pairs[name].channels == named[name] for name in given)
        ratio = seconds / _forward(self.teacher, student.model, self.samples)
        return (
            f"| {self.network} | {self.kind} | {len(self.partners)} | {len(given)} | "
            f"{right / max(len(given), 1):.0%} | {right / len(self.partners):.0%} | "
            f"{same} of {len(given)} | {ratio:.2f} |"
        )

    def _by_names(self) -> Matching:
        return match_models(_canonical(self.teacher), _canonical(self.student))


def cases() -> Iterator[Case]:
    """Yield the rows of the table."""
    for network, recipe in STUDENTS:
        teacher = onnx.load(teacher_path(network))
        student = onnx.load(student_path(network, recipe))
        yield _of_names(network, recipe, teacher, student, _SAMPLES)
    teacher = Canonicalize()(onnx.load(teacher_path("resnet20"))).model
    for kind, split in DECOMPOSITIONS.items():
        student, partners = decomposed(teacher, split, is_spatial)
        yield Case("resnet20", kind, teacher, student, partners, _SAMPLES)
    for path in sorted(ZOO.glob("light_*.onnx")):
        name = path.stem.removeprefix("light_")
        teacher = zoo_model(name, divisor=1)
        pruned = _pruned(teacher)
        if pruned is not None:
            yield _of_names(name, "pruned by onnxsim", teacher, pruned, _ZOO_SAMPLES)
        noisy = with_noise(teacher, _NOISE)
        yield _of_names(name, f"noise of {_NOISE:.0%}", teacher, noisy, _ZOO_SAMPLES)


def _of_names(
    network: str, kind: str, teacher: onnx.ModelProto, student: onnx.ModelProto, samples: int
) -> Case:
    """Make a case of a student whose nodes have the names of the teacher's."""
    outputs = {view.name: view.output.name for view in _views(teacher)}
    partners = {view.name: outputs[view.name] for view in _views(student)}
    return Case(network, kind, teacher, student, partners, samples)


def _pruned(teacher: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return what onnxsim makes of a teacher; None where it prunes nothing, or what cannot run."""
    simple, _ = onnxsim.simplify(teacher)
    pruned: onnx.ModelProto = onnxsim.apply_structured_pruning(simple, sparsity=0.3)
    try:
        onnx.checker.check_model(pruned, full_check=True)
    except onnx.shape_inference.InferenceError:
        return None
    return None if _widths(pruned) == _widths(teacher) else pruned


def _views(model: onnx.ModelProto) -> list[Linear]:
    return [view for view in find_linear(_canonical(model)) if isinstance(view, Linear)]


def _widths(model: onnx.ModelProto) -> list[int]:
    return [view.width for view in _views(model)]


def _canonical(model: onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(Canonicalize()(model).model)


def _forward(teacher: onnx.ModelProto, student: onnx.ModelProto, samples: int) -> float:
    """Return the seconds that both networks take for so many samples."""
    runtime = open_runtime(("cpu",))
    rng = np.random.default_rng(0)
    seconds = 0.0
    for model in (teacher, student):
        session, outputs = runtime.session(model), output_names(model)
        specs = input_specs(model)
        size = specs[0].shape[0] or 32
        feeds = {
            spec.name: rng.standard_normal([size, *(n or 1 for n in spec.shape[1:])]).astype(
                spec.dtype
            )
            for spec in specs
        }
        values = upload(feeds, runtime.device)
        start = time.perf_counter()
        for _ in range(0, samples, size):
            run(session, values, outputs, runtime.device)
        seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.matching")
    parser.add_argument("--only", default="", help="only teachers whose name begins so")
    only = parser.parse_args().only
    print(HEAD, flush=True)
    for case in cases():
        if case.network.startswith(only):
            print(case.row(), flush=True)


if __name__ == "__main__":
    main()
