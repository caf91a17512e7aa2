"""Trained networks of others: ``python -m tests.benchmarks.real_networks``, from the root.

Networks, `tests.benchmarks.real.networks`, come out of published packages. A student is made by
``fskd-onnx compress --no-fit`` and fitted by ``fskd-onnx fit`` as it comes, each in a process of
its own, as a user would; what it then decides is compared with what its teacher does, on inputs
that are made from other sources than those of the fit.

What has been measured is in ``docs/real_networks.json``, from which the table is made. A row stays
until it is measured anew; one of another version of a package does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks.markers import write_between
from tests.benchmarks.real.networks import NETWORKS, Network

KNOWN = Path(__file__).parents[2] / "docs" / "real_networks.json"
JUDGED = 200
_TO_COMPRESS = 20
"""Samples that a student is made with."""
# The largest size of a process counts that of the one that it was started by, which is small here.
_APART = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(pid, 0)
print()
print(status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
_PRINTED = "Printed by `python -m tests.benchmarks.real_networks --known`.\n"


@dataclass(frozen=True)
class Row:
    """A network, and what became of its student.

    Attributes:
        network: its name.
        package: where it comes from.
        method: of the student, as ``compress`` has it.
        reduce: likewise.
        samples: how many it was fitted on.
        before: how alike the decisions of teacher and student were, 0..1.
        after: the same of the fitted student.
        macs: what the student has of the teacher's multiply-adds, 0..1.
        seconds: of the fit by the clock.
        cpu_seconds: the same, of all threads.
        memory: largest resident size of the fit, in bytes.
        refused: why there is no fitted student; empty where there is one.
    """

    network: str
    package: str
    method: str
    reduce: str
    samples: int
    before: float
    after: float | None = None
    macs: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    refused: str = ""


@dataclass(frozen=True)
class Done:
    """What a process came to.

    Attributes:
        status: its exit status.
        error: what it said on its standard error, the last line.
        seconds: by the clock.
        cpu_seconds: of all threads.
        memory: its largest resident size, in bytes.
    """

    status: int
    error: str
    seconds: float
    cpu_seconds: float
    memory: int


def measure(network: Network, judged: int = JUDGED) -> Row:
    """Make a student of a network, fit and judge it.

    Args:
        network: the teacher.
        judged: how many inputs to judge on.

    Raises:
        RuntimeError: there is no student.
    """
    teacher = network.path()
    inputs = network.to_judge(judged)
    expected = network.answers(teacher, inputs)

    def alike(model: Path) -> float:
        return round(network.alike(expected, network.answers(model, inputs)), 4)

    with TemporaryDirectory() as folder:
        student, fused, data, report = (
            Path(folder, name) for name in ("student.onnx", "fused.onnx", "in.npz", "plan.json")
        )
        np.savez(data, **network.to_fit(teacher, network.samples))  # type: ignore[arg-type]
        options = ["--method", network.method, "--reduce", network.reduce, "--no-fit"]
        options += ["--max-samples", str(_TO_COMPRESS)]
        files: list[str | Path] = [teacher, data, "-o", student, "--report", report]
        made = _run(["compress", *files, *options])
        if made.status:
            raise RuntimeError(f"{network.name}: {made.error}")
        row = Row(
            network.name,
            str(network.wheel),
            network.method,
            network.reduce,
            network.samples,
            before=alike(student),
            macs=_macs_left(json.loads(report.read_text(encoding="utf-8"))),
        )
        done = _run(["fit", teacher, student, data, "-o", fused])
        if done.status:
            return replace(row, refused=done.error.replace(f"{folder}/", ""))
        return replace(
            row,
            after=alike(fused),
            seconds=round(done.seconds, 1),
            cpu_seconds=round(done.cpu_seconds, 1),
            memory=done.memory,
        )


def _run(arguments: Sequence[str | Path]) -> Done:
    """Run a command of the tool in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _APART, "-m", "fskd_onnx", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    status, cpu_seconds, kilobytes = done.stdout.split()[-3:]
    said = done.stderr.strip().rpartition("\n")[2]
    return Done(
        os.waitstatus_to_exitcode(int(status)),
        said,
        seconds,
        float(cpu_seconds),
        int(kilobytes) * 1024,
    )


def _macs_left(report: Mapping[str, Any]) -> float:
    macs = report["totals"]["macs"]
    return round(macs["after"] / macs["before"], 3)


def read_known() -> dict[str, Row]:
    """Return the rows of the file by their networks, but for those of other packages."""
    lines = json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else []
    rows = [Row(**line) for line in lines]
    return {
        row.network: row
        for row in rows
        if row.network in NETWORKS and row.package == str(NETWORKS[row.network].wheel)
    }


def save_known(rows: Mapping[str, Row]) -> None:
    """Write the file, the rows in the order of the networks."""
    lines = ",\n ".join(json.dumps(asdict(rows[name])) for name in NETWORKS if name in rows)
    KNOWN.write_text(f"[\n {lines}\n]\n", encoding="utf-8")


def table(rows: Mapping[str, Row]) -> str:
    """Return rows as a table in Markdown."""
    what = ("network", "task", "student", "macs left", "samples")
    head = (*what, "measure", "student as it is", "fitted", "fit, s", "CPU s", "peak memory")
    lines = [_line(head), _line(["---"] * len(head))]
    refused = []
    for name, network in NETWORKS.items():
        row = rows.get(name)
        if row is None:
            continue
        lines.append(
            _line(
                [
                    f"{name}, `{row.package}`",
                    network.task,
                    f"`--method {row.method} --reduce {row.reduce}`",
                    "-" if row.macs is None else f"{row.macs:.0%}",
                    str(row.samples),
                    network.metric,
                    f"{row.before:.3f}",
                    "-" if row.after is None else f"{row.after:.3f}",
                    "-" if row.seconds is None else f"{row.seconds:.0f}",
                    "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}",
                    "-" if row.memory is None else f"{row.memory / 1e6:,.0f} MB",
                ]
            )
        )
        if row.refused:
            refused.append(f"- {name}: {row.refused}")
    return "\n".join([*lines, *(["", "No fitted student:", "", *refused] if refused else []), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and show or write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.real_networks",
        description="Students of trained networks out of published packages.",
    )
    parser.add_argument("--only", default="", help=f"by commas, of {', '.join(NETWORKS)}")
    parser.add_argument("--known", action="store_true", help="measure nothing: show the file")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the table between its markers, real"
    )
    given = parser.parse_args(arguments)
    wanted = given.only.split(",") if given.only else list(NETWORKS)
    if unknown := [name for name in wanted if name not in NETWORKS]:
        parser.error(f"no network is called {unknown[0]!r}; there are {', '.join(NETWORKS)}")
    rows = read_known()
    for name in () if given.known else wanted:
        rows[name] = measure(NETWORKS[name])
        save_known(rows)
        print(table({name: rows[name]}), flush=True)
    if given.write is not None:
        write_between(given.write, "real", f"{table(rows)}\n{_PRINTED}")
    elif given.known:
        print(table(rows))


if __name__ == "__main__":
    main()
