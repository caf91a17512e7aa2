"""The command: starts the process that reads cases, and another where that one ends."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzzing.targets import TARGETS
from tests.fuzzing.worker import SECONDS, Fault, News, Progress, work

# Of the clock, without a sign of life: reading a case waits for something that does not come.
_HANG = 6 * SECONDS


@dataclass
class Result:
    """What came out of a run.

    Attributes:
        seconds: that it took.
        executions: number of cases that were read, by target.
        progress: by target.
        faults: the first fault of each kind, by target and kind.
        numbers: how many there were of each.
    """

    seconds: float = 0.0
    executions: dict[str, int] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, fault: Fault) -> bool:
        """Count a fault; return whether it is the first of its kind."""
        key = fault.target, fault.kind
        self.numbers[key] = self.numbers.get(key, 0) + 1
        return self.faults.setdefault(key, fault) is fault


def fuzz(
    names: Sequence[str],
    seed: int,
    seconds: float | None,
    executions: int | None,
    keep: Path | None = None,
) -> Result:
    """Read mutated files.

    Args:
        names: of targets.
        seed: decides all mutations.
        seconds: how long; None for no end.
        executions: how many cases of each target; None for no end.
        keep: folder for the cases that show a fault, one of each kind.
    """
    context = multiprocessing.get_context("spawn")
    counts, running = context.Array("q", len(names), lock=False), context.Value("i", 0, lock=False)
    result = Result(progress={name: Progress() for name in names})
    start, shown = time.monotonic(), time.monotonic()
    done = False

    def said(fault: Fault) -> None:
        if result.add(fault):
            print(f"{fault.target}: {fault.kind}\n{_indented(fault.text)}", flush=True)
            if keep is not None:
                _keep(fault, keep)

    with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
        folder = Path(parent) / "case"
        while not done:
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, names, result.progress, counts, running, folder, seed, executions)
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            sender.close()
            life, seen = time.monotonic(), 0
            while True:
                now, total = time.monotonic(), sum(counts)
                if total != seen:
                    life, seen = now, total
                if now - shown > 60:
                    shown = now
                    print(_line(names, counts, result, now - start), flush=True)
                if seconds is not None and now - start > seconds:
                    done = True
                    process.kill()
                elif now - life > _HANG:
                    process.kill()
                try:
                    message = receiver.recv() if receiver.poll(0.2) else ...
                except EOFError:
                    break
                if message is None:
                    done = True
                elif isinstance(message, Fault):
                    said(message)
                elif isinstance(message, News):
                    result.progress[message.target].add(message)
            process.join()
            if not done:
                kind = end(process.exitcode, time.monotonic() - life > _HANG)
                case = {file.name: file.read_bytes() for file in folder.glob("*")}
                said(Fault(names[running.value], kind, "", case))
    result.seconds = time.monotonic() - start
    result.executions = dict(zip(names, counts, strict=True))
    return result


def end(status: int | None, hung: bool) -> str:
    """Return what ended a process."""
    if hung:
        return f"no answer within {_HANG} s"
    if status == -signal.SIGPROF:
        return f"more than {SECONDS} s of the processor"
    number = -(status or 0)
    name = signal.Signals(number).name if number > 0 else f"status {status}"
    return f"the process ended: {name}"


def _keep(fault: Fault, keep: Path) -> None:
    """Write the files of a fault to a folder of its own."""
    folder = keep / fault.target / re.sub(r"[^A-Za-z0-9.]+", "-", fault.kind)[:100]
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in fault.case.items():
        (folder / name).write_bytes(data)
    (folder / "fault.log").write_text(f"{fault.kind}\n{fault.text}\n", encoding="utf-8")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def _line(names: Sequence[str], counts: Sequence[int], result: Result, seconds: float) -> str:
    lines = ", ".join(f"{name} {result.progress[name].own_lines}" for name in names)
    return (
        f"{seconds:6.0f} s: {sum(counts)} executions, lines: {lines}; "
        f"{len(result.faults)} kinds of faults"
    )


def summary(result: Result) -> str:
    """Give the figures of a run, a line for each target and each kind of fault."""
    total = sum(result.executions.values())
    rate = total / max(result.seconds, 1e-9)
    lines = [f"executions {total}, seconds {result.seconds:.0f}, executions per second {rate:.0f}"]
    for name, count in result.executions.items():
        known = result.progress[name]
        lines.append(
            f"{name:8} executions {count:8d}, lines {known.own_lines:5d}, "
            f"cases kept {len(known.corpus):4d}, answers {len(known.answers):4d}"
        )
    lines.append(f"faults: {len(result.faults)} kinds")
    for (target, kind), number in sorted(result.numbers.items(), key=lambda item: -item[1]):
        lines.append(f"{number:6d} {target}: {kind}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, print the figures; return 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long; 1 unless --executions is given")
    parser.add_argument("--executions", type=int, help="how many cases of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--json", type=Path, help="file for the figures and faults")
    parser.add_argument("--keep", type=Path, help="folder for the files that show a fault")
    options = parser.parse_args(arguments)
    minutes = options.minutes
    if minutes is None and options.executions is None:
        minutes = 1.0
    seconds = None if minutes is None else 60 * minutes
    names = options.target or list(TARGETS)
    result = fuzz(names, options.seed, seconds, options.executions, options.keep)
    print(summary(result))
    if options.json:
        record = {
            "seconds": result.seconds,
            "executions": result.executions,
            "lines": {name: known.own_lines for name, known in result.progress.items()},
            "faults": [
                {"target": f.target, "kind": f.kind, "number": result.numbers[key], "text": f.text}
                for key, f in result.faults.items()
            ],
        }
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
