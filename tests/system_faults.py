"""Faults of the system: ``python -m tests.system_faults``.

Each is made for a run of the program by a shell (limits, closed streams, files without permission)
or a small file system in memory, which needs a user who may mount one, and is left out elsewhere. A
table of the outcomes is printed; the exit status is 1 where one is not as it has to be: the right
status, at most one line on stderr that says what is wrong, no output or whole ones, inputs as they
were, nothing left among the temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from fskd_onnx.cli.memory_limit import least_memory
from tests.helpers import build
from tests.kills import contents
from tests.networks import NETWORKS
from tests.students import with_noise

_LIMIT = 200  # seconds
_WITHOUT_PRIVILEGE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")

FIT = "$RUN fit teacher.onnx student.onnx x.npy -o out/fused.onnx --report out/report.json"
_SMALL_MEMORY = "--memory-limit 1KB"
_COMPARE_WIDE = "$RUN compare wide.onnx wide.onnx wide.npy"
_HALVED = "so the work began anew"


@dataclass(frozen=True)
class Fault:
    """A fault, and what has to become of a run.

    Attributes:
        name: what it is.
        script: of a shell; ``$RUN`` is the program.
        status: the exit status.
        says: part of the one line on stderr; "" for none.
        written: whether the outputs are there afterwards.
        mounts: a folder that is a small file system of its own meanwhile, if any.
        size: of that.
        denies: whether it is that a file's permissions forbid something.
        quick: whether it is also one of the tests.
    """

    name: str
    script: str
    status: int = 0
    says: str = ""
    written: bool = False
    mounts: str = ""
    size: str = "4k"
    denies: bool = False
    quick: bool = False


_FILL = "head -c 4096 /dev/zero > log/l;"
_NO_SPACE = "No space left on device"
FAULTS = (
    Fault("full disk, outputs", f"{FIT} -q", 1, _NO_SPACE, mounts="out"),
    Fault("full disk, log", f"{_FILL} {FIT} --log-file log/l", 0, "the log", True, mounts="log"),
    Fault(
        "full disk, temporary files",
        f"{FIT} {_SMALL_MEMORY}",
        1,
        _NO_SPACE,
        mounts="scratch",
        size="16k",
    ),
    Fault("limit of file sizes", f"ulimit -f 1; {FIT}", 1, "File too large", quick=True),
    Fault("unwritable output folder", f"chmod 555 out; {FIT}", 1, "not writable", denies=True),
    Fault(
        "read-only output",
        f"echo old > out/fused.onnx; chmod 444 out/fused.onnx; {FIT}",
        1,
        "write-protected",
        denies=True,
    ),
    Fault(
        "read-only log", f"touch l; chmod 444 l; {FIT} --log-file l", 1, "protected", denies=True
    ),
    Fault("missing TMPDIR", f"TMPDIR=/nowhere {FIT} {_SMALL_MEMORY}", written=True),
    Fault(
        "unwritable TMPDIR",
        f"chmod 555 scratch; {FIT} {_SMALL_MEMORY}",
        0,
        "",
        True,
        denies=True,
    ),
    *(
        Fault(f"{count} files", f"ulimit -n {count}; {FIT} {_SMALL_MEMORY}", written=True)
        for count in (20, 32, 64)
    ),
    Fault("/dev/full as stdout", f"{FIT} > /dev/full", written=True),
    Fault("/dev/full, help", "$RUN --help > /dev/full", quick=True),
    Fault(
        "/dev/full, no improvement",
        "$RUN fit teacher.onnx teacher.onnx x.npy -o out/fused.onnx > /dev/full",
        3,
        "no closer",
    ),
    Fault("closed stdout", f"{FIT} >&-", written=True),
    Fault("closed stdout, help", "$RUN fit --help >&-", quick=True),
    Fault("closed stderr", f"{FIT} 2>&-", written=True),
    Fault("closed stderr, missing file", "$RUN fit no.onnx no.onnx x.npy 2>&-", 1, quick=True),
    Fault("closed stderr, wrong usage", "$RUN fit 2>&-", 2, quick=True),
    Fault("/dev/full as stderr", "$RUN fit no.onnx no.onnx x.npy 2> /dev/full", 1, quick=True),
    Fault("all streams closed", f"{FIT} <&- >&- 2>&-", written=True, quick=True),
    Fault("broken pipe", f"{FIT} | true; exit ${{PIPESTATUS[0]}}", written=True),
    Fault("broken pipe, help", "$RUN --help | true; exit ${PIPESTATUS[0]}", quick=True),
    Fault("20 MB of address space", f"ulimit -v 20000; {FIT}", 1, "cannot be loaded", quick=True),
    Fault("240 MB of address space", f"ulimit -v 240000; {FIT}", 1, "ulimit -v", quick=True),
    Fault("500 MB of address space", f"ulimit -v 500000; {FIT}", 1, "ulimit -v"),
    Fault("memory for fewer samples", f"ulimit -v $ROOM; {_COMPARE_WIDE}", 0, _HALVED),
    Fault(
        "memory for fewer samples, not said with -q",
        f"ulimit -v $ROOM; {_COMPARE_WIDE} -q",
    ),
    Fault(
        "memory for fewer samples, size given",
        f"ulimit -v $ROOM; {_COMPARE_WIDE} --batch-size 32",
        1,
        "give a smaller --batch-size",
    ),
)


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        name: of the fault.
        status: the exit status.
        said: on stderr.
        faults: what is not as it has to be.
    """

    name: str
    status: int = -1
    said: str = ""
    faults: list[str] = field(default_factory=list)


def outcome_of(fault: Fault, folder: Path) -> Outcome:
    """Make a fault in an empty folder, and judge what becomes of a run."""
    for name in ("out", "scratch", "log"):
        (folder / name).mkdir()
    write_inputs(folder)
    before = contents(folder)
    outcome = Outcome(fault.name)
    # What a file's permissions forbid is no obstacle for root unless it gives that up.
    ordinary = (*_WITHOUT_PRIVILEGE, "bash") if os.geteuid() == 0 and fault.denies else ("bash",)
    mounted = folder / fault.mounts
    if fault.mounts:
        _run(["mount", "-t", "tmpfs", "-o", f"size={fault.size}", "none", str(mounted)])
    try:
        done = subprocess.run(
            [*ordinary, "-c", fault.script],
            cwd=folder,
            env=os.environ
            | {
                "RUN": f"{sys.executable} -m fskd_onnx",
                "TMPDIR": str(folder / "scratch"),
                "ROOM": str(_room() // 1024),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=_LIMIT,
        )
        outcome.status, outcome.said = done.returncode, _without_remarks(done.stderr)
        found = contents(folder / "out")
        left = {path.name for path in (folder / "scratch").iterdir()} - {".ses"}
    except subprocess.TimeoutExpired:
        outcome.faults.append("it hangs")
        return outcome
    finally:
        if fault.mounts:
            _run(["umount", str(mounted)])
    lines = outcome.said.splitlines()
    if outcome.status != fault.status:
        outcome.faults.append(f"status {outcome.status}, not {fault.status}")
    if len(lines) != bool(fault.says) or fault.says not in outcome.said:
        outcome.faults.append(f"says {outcome.said!r}")
    names = {"fused.onnx", "report.json"} if fault.written else set()
    if {name for name in found if found[name] != b"old\n"} != names:
        outcome.faults.append(f"wrote {', '.join(found) or 'nothing'}")
    if fault.written:
        try:
            onnx.checker.check_model(folder / "out" / "fused.onnx", full_check=True)
        except Exception as error:
            outcome.faults.append(str(error))
    if {name: contents(folder).get(name) for name in before} != before:
        outcome.faults.append("an input has changed")
    if left:
        outcome.faults.append(f"left {', '.join(left)}")
    return outcome


def write_inputs(folder: Path) -> None:
    """Write networks and samples: some for fits, and some that take much memory to run."""
    network = NETWORKS["chain"]
    onnx.save_model(network.teacher(), folder / "teacher.onnx")
    onnx.save_model(with_noise(network.student(), 0.5), folder / "student.onnx")
    np.save(folder / "x.npy", network.samples(200)["x"])
    wide = build(
        "g (float[N,4,64,64] x) => (float[N,4,64,64] y) <float[1024,4,1,1] a, float[4,1024,1,1] b>"
        "{ h = Conv (x, a) r = Relu (h) y = Conv (r, b) }"
    )
    onnx.save_model(wide, folder / "wide.onnx")
    np.save(folder / "wide.npy", np.random.default_rng(0).random((32, 4, 64, 64), np.float32))


def _room() -> int:
    """Give bytes of address space in which 32 of the large samples do not fit, and 8 do."""
    return least_memory() + 2**26


def may_mount() -> bool:
    """Whether this user may mount a file system."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        _run(["umount", folder])
    return True


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _without_remarks(errors: str) -> str:
    """Leave out ONNX Runtime's own remarks on the machine."""
    return "\n".join(line for line in errors.splitlines() if "onnxruntime:" not in line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make all faults, print what became of them; return 1 if one is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.system_faults", description=__doc__)
    parser.add_argument("--only", help="faults whose names hold this")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    options = parser.parse_args(arguments)
    mounts, found = may_mount(), []
    for fault in FAULTS:
        if options.only and options.only not in fault.name:
            continue
        if fault.mounts and not mounts:
            print(f"left out, as file systems cannot be mounted: {fault.name}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            found.append(outcome_of(fault, Path(folder)))
        outcome = found[-1]
        verdict = "wrong" if outcome.faults else "right"
        print(f"{verdict}  {outcome.name:42} status {outcome.status}  {outcome.said}", flush=True)
        for text in outcome.faults:
            print(f"       {text}")
    if options.json:
        options.json.write_text(json.dumps([vars(o) for o in found]), encoding="utf-8")
    return int(any(outcome.faults for outcome in found))


if __name__ == "__main__":
    sys.exit(main())
