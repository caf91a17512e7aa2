"""Runs that are killed: ``python -m tests.kills --count 100 --seed 0``.

Commands that replace their own outputs of an earlier run are killed by SIGKILL, SIGTERM and SIGINT,
at random moments (``--count`` times) and, in a process that counts what it asks of the file system,
at each step of writing. Of every one it has to hold:

* each output is the old or the new one, whole, and the weights are those of their model;
* after SIGTERM and SIGINT all of them are old, or all are new; the exit status is 143 or 130, with
  one line on stderr;
* inputs are as they were;
* after one more ordinary run all outputs are new, and nothing temporary is left anywhere (of the
  steps, which are many: after what such a run begins with).

Outputs of different kinds (model, report) may differ in age where SIGKILL comes between two
renames: no file system renames several files at once. These are counted. So are signals that came
while Python itself was starting, which nothing in a program can answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from fskd_onnx.serialization.temporary import remove_stale
from tests.networks import NETWORKS
from tests.students import with_noise

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LIMIT = 120  # seconds that a run may take

# Kills itself before or after the n-th call that changes or syncs a file from the moment on at
# which outputs are written; without a signal it says how many calls there are.
_AT_A_STEP = """
import os, signal, sys
number, after, step = int(sys.argv[1]), sys.argv[2] == "after", int(sys.argv[3])
del sys.argv[1:4]
from fskd_onnx.serialization.atomic_files import OutputFiles
calls, pid = [], os.getpid()

def counted(original):
    def call(*arguments, **more):
        calls.append(original)
        if not number or len(calls) != step:
            return original(*arguments, **more)
        if not after:
            os.kill(pid, number)
        result = original(*arguments, **more)
        if after:
            os.kill(pid, number)
        return result
    return call

def begin(files):
    for name in ("open", "write", "fsync", "link", "replace", "rename", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    return files

OutputFiles.__enter__ = begin
from fskd_onnx.cli import main
try:
    main()
finally:
    if not number:
        print("calls", len(calls))
"""


@dataclass(frozen=True)
class Command:
    """A command that writes files.

    Attributes:
        name: what to call it.
        arguments: of the program, in the folder of its files.
        outputs: what it writes.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]


_FIT = ("fit", "teacher.onnx", "student.onnx", "x.npy", "--memory-limit", "1KB")
_REPORTS = ("--report", "out/one.json", "--report", "out/two.json")
COMMANDS = (
    Command("fit", (*_FIT, "-o", "out/fused.onnx"), ("fused.onnx",)),
    Command(
        "fit, external data, reports",
        ("fit", "teacher.onnx", "outside.onnx", "x.npy", "-o", "out/fused.onnx", *_REPORTS),
        ("fused.onnx", "one.json", "two.json"),
    ),
    Command("match", ("match", *_FIT[1:], "--json", "out/map.json"), ("map.json",)),
)


@dataclass
class Outcome:
    """What became of one kill.

    Attributes:
        command: its name.
        signal: the name of the signal.
        moment: seconds after the start, or the step.
        result: where the outputs stood, or that the run was over or had not begun.
        faults: what was wrong.
    """

    command: str
    signal: str
    moment: str
    result: str = ""
    faults: list[str] = field(default_factory=list)


class Stage:
    """A folder with the inputs of a command, its old outputs, and what new ones are like."""

    def __init__(self, folder: Path, command: Command) -> None:
        """Make the inputs, and run the command twice: for the old outputs and for the new ones."""
        self.folder, self.command = folder, command
        self.out, self.scratch = folder / "out", folder / "scratch"
        for path in (folder, self.out, self.scratch):
            path.mkdir()
        _write_inputs(folder)
        self.inputs = contents(folder)
        self._must_run("--max-samples", "60")
        self.old = contents(self.out)
        start = time.perf_counter()
        self._must_run()
        self.seconds = time.perf_counter() - start
        self.new = contents(self.out)
        if any(self.old[name] == self.new[name] for name in command.outputs):
            raise AssertionError("the outputs of both runs are alike")

    def restore(self) -> None:
        """Put the old outputs in place."""
        for folder in (self.out, self.scratch):
            shutil.rmtree(folder)
            folder.mkdir()
        for name, content in self.old.items():
            (self.out / name).write_bytes(content)

    def start(self, *more: str, program: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start the command, with a folder of its own for temporary files."""
        program = program or (sys.executable, "-m", "fskd_onnx")
        return subprocess.Popen(
            [*program, *self.command.arguments, "-q", *more],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _must_run(self, *more: str) -> None:
        done = self.start(*more)
        _, errors = done.communicate(timeout=_LIMIT)
        if done.returncode:
            raise AssertionError(f"{self.command.name}: status {done.returncode}: {errors}")

    def ages(self) -> tuple[set[str], list[str]]:
        """Give how old the outputs are, and what is wrong with them."""
        found, ages, faults = contents(self.out), set(), []
        for name in self.command.outputs:
            own = _comparable(found.get(name, b""))
            like = {"old": self.old, "new": self.new}
            age = next((age for age in like if own == _comparable(like[age][name])), "broken")
            ages.add(age)
            if age == "broken":
                faults.append(f"{name} is neither the old nor the new one")
            elif name.endswith(".onnx"):
                expected = like[age]
                data = [n for n in expected if n.endswith(".data")]
                if any(found.get(n) != expected[n] for n in data):
                    faults.append(f"the weights of {name} are not beside it")
                else:
                    faults += _runs(self.out / name, self.folder / "x.npy")
        return ages, faults

    def faults_afterwards(self) -> list[str]:
        """Run once more; give what is wrong after that."""
        self._must_run()
        ages, faults = self.ages()
        if ages != {"new"}:
            faults.append(f"after the next run the outputs are {', '.join(sorted(ages))}")
        return faults + self.left_behind(self.new)

    def left_behind(self, expected: Iterable[str]) -> list[str]:
        """Give a fault for each file that is of no use."""
        names = {*contents(self.out)} - {*expected}
        # ONNX Runtime keeps a file of its own among the temporary ones.
        names |= {path.name for path in self.scratch.iterdir()} - {".ses"}
        return [f"left behind: {name}" for name in sorted(names)]


def contents(folder: Path) -> dict[str, bytes]:
    """Give the bytes of the files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _comparable(content: bytes) -> bytes:
    """Leave out how long a fit took: all else is the same each time."""
    return re.sub(rb'"seconds": \{[^}]*\}', b"", content)


def _runs(model: Path, samples: Path) -> list[str]:
    """Run a model on its samples; give what is wrong with it."""
    try:
        onnx.checker.check_model(model, full_check=True)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        finite = all(
            np.isfinite(output).all() for output in session.run(None, {"x": np.load(samples)[:3]})
        )
    except Exception as error:
        return [f"{model.name} does not run: {error}"]
    return [] if finite else [f"{model.name} gives values that are not finite"]


def _write_inputs(folder: Path) -> None:
    """Write a teacher, a student, the same with weights in a file of their own, and samples."""
    network = NETWORKS["chain"]
    student = with_noise(network.student(), 1.5)  # so that samples are needed to match as well
    onnx.save_model(network.teacher(), folder / "teacher.onnx")
    onnx.save_model(student, folder / "student.onnx")
    onnx.save_model(
        student,
        folder / "outside.onnx",
        save_as_external_data=True,
        location="outside.data",
        size_threshold=0,
    )
    np.save(folder / "x.npy", network.samples(200)["x"])


def killed_at(stage: Stage, number: signal.Signals, seconds: float) -> Outcome:
    """Kill a run after some time."""
    outcome = Outcome(stage.command.name, number.name, f"{seconds:.3f} s")
    stage.restore()
    run = stage.start()
    time.sleep(seconds)
    run.send_signal(number)
    _judge(stage, run, number, outcome)
    outcome.faults += stage.faults_afterwards()
    return outcome


def killed_in(stage: Stage, number: signal.Signals, when: str, step: int) -> Outcome:
    """Kill a run before or after a step of writing."""
    outcome = Outcome(stage.command.name, number.name, f"{when} step {step}")
    stage.restore()
    options = str(int(number)), when, str(step)
    run = stage.start(program=(sys.executable, "-c", _AT_A_STEP, *options))
    _judge(stage, run, number, outcome)
    for folder in (stage.out, stage.scratch):
        remove_stale(folder)  # what the next run begins with
    outcome.faults += stage.left_behind({*stage.old, *stage.new})
    return outcome


def steps_of(stage: Stage) -> int:
    """Give the number of steps in which a command writes."""
    stage.restore()
    run = stage.start(program=(sys.executable, "-c", _AT_A_STEP, "0", "before", "0"))
    out, errors = run.communicate(timeout=_LIMIT)
    found = re.search(r"calls (\d+)", out)
    if found is None:
        raise AssertionError(errors)
    return int(found[1])


def _judge(
    stage: Stage, run: subprocess.Popen[str], number: signal.Signals, outcome: Outcome
) -> None:
    """Judge what a killed run has left, and what the next one makes of it."""
    try:
        _, errors = run.communicate(timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        run.kill()
        outcome.faults.append("it hangs")
        return
    lines = [line for line in errors.splitlines() if "onnxruntime:" not in line]
    ages, faults = stage.ages()
    outcome.faults += faults
    outcome.result = " and ".join(sorted(ages))
    if run.returncode == 0:
        outcome.result = "over before"
    elif number == signal.SIGKILL:
        if run.returncode != -signal.SIGKILL:
            outcome.faults.append(f"status {run.returncode}: {errors}")
    else:
        in_python = "/fskd_onnx/" not in errors and "Traceback" in errors
        if run.returncode == -number or in_python:
            outcome.result = "not begun"
        elif run.returncode != STATUS[number] or len(lines) != 1:
            outcome.faults.append(f"status {run.returncode}: {errors}")
        if len(ages) > 1:
            outcome.faults.append("some outputs are old and some are new")
    if {**stage.inputs, **contents(stage.folder)} != stage.inputs:
        outcome.faults.append("an input has changed")


def outcomes(stages: Sequence[Stage], count: int, seed: int, steps: bool) -> Iterator[Outcome]:
    """Kill runs at random moments, then at each step."""
    rng = random.Random(seed)
    for index in range(count):
        stage = stages[index % len(stages)]
        number = SIGNALS[index // len(stages) % len(SIGNALS)]
        yield killed_at(stage, number, rng.uniform(0, stage.seconds))
    for stage in stages if steps else ():
        for step in range(1, steps_of(stage) + 1):
            yield killed_in(stage, signal.SIGKILL, "before", step)
            number = (signal.SIGTERM, signal.SIGINT)[step % 2]
            yield killed_in(stage, number, "after", step)


def table(found: Sequence[Outcome]) -> str:
    """Give how often each result came of each command and signal."""
    results = sorted({outcome.result for outcome in found})
    counts: Mapping[tuple[str, str], Counter[str]] = {
        key: Counter(o.result for o in found if (o.command, o.signal) == key)
        for key in dict.fromkeys((outcome.command, outcome.signal) for outcome in found)
    }
    wrong = Counter((o.command, o.signal) for o in found if o.faults)
    lines = [f"{'command':28} {'signal':8}" + "".join(f"{r:>13}" for r in results) + "  faults"]
    for key, row in counts.items():
        cells = "".join(f"{row[result]:13d}" for result in results)
        lines.append(f"{key[0]:28} {key[1]:8}{cells}{wrong[key]:8d}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill many runs, print what became of them; return 1 if anything was lost or left."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-steps", action="store_true", help="leave out the exact moments")
    parser.add_argument("--json", type=Path, help="file for the outcome of each kill")
    options = parser.parse_args(arguments)
    # A process that is started ignores SIGINT if its parent does, as jobs in the background do.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        stages = [Stage(Path(folder, str(n)), command) for n, command in enumerate(COMMANDS)]
        found = []
        for outcome in outcomes(stages, options.count, options.seed, not options.no_steps):
            found.append(outcome)
            for fault in outcome.faults:
                print(
                    f"{outcome.command}: {outcome.signal} at {outcome.moment}: {fault}", flush=True
                )
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps([vars(o) for o in found]), encoding="utf-8")
    return int(any(outcome.faults for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
