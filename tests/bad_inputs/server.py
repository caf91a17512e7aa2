"""Command lines in forks of one process that has imported everything: a row costs no start.

No session of ONNX Runtime is made before a fork: its threads would not be there after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bad_inputs.row import MATCH, write_good_files

_LONGEST = 20.0
# What is too large for a machine is too large for any that runs these tests.
_MOST_MEMORY = 16 * 2**30


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status; negative for a signal.
        stdout: what it wrote there.
        stderr: likewise.
        seconds: how long it kept a processor busy; one that waits for good is killed.
        megabytes: the most memory that it had.
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float


class Server:
    """The process that forks; a context manager."""

    def __enter__(self) -> Server:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bad_inputs.server"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()

    def run(self, folder: Path, scratch: Path, arguments: Sequence[str]) -> Ended:
        """Run one command line.

        Args:
            folder: where it runs.
            scratch: an empty folder for its temporary files and what it says; left empty.
            arguments: of the command.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"folder": str(folder), "scratch": str(scratch), "arguments": list(arguments)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Ended(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    """Run a command line for each request on stdin."""
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        ended = _fork(Path(request["folder"]), Path(request["scratch"]), request["arguments"])
        print(json.dumps(asdict(ended)), flush=True)


def _import_all() -> None:
    """Import what commands import, and what these do only when they parse their arguments."""
    from fskd_onnx.cli import main

    with tempfile.TemporaryDirectory() as folder:
        write_good_files(Path(folder))
        models = (str(Path(folder, name)) for name in MATCH[1:])
        sys.argv = ["fskd-onnx", MATCH[0], *models, "-q"]
        with contextlib.suppress(SystemExit):
            main()


def _fork(folder: Path, scratch: Path, arguments: list[str]) -> Ended:
    files = scratch / "stdout", scratch / "stderr"
    child = os.fork()
    if child == 0:
        _become_command(folder, scratch, files, arguments)
    status, usage = _wait(child, time.monotonic() + _LONGEST)
    texts = [file.read_text(encoding="utf-8", errors="surrogateescape") for file in files]
    for file in files:
        file.unlink()
    seconds = usage.ru_utime + usage.ru_stime
    return Ended(status, texts[0], texts[1], seconds, usage.ru_maxrss / 1024)


def _wait(child: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """Return the exit status of a process, which is killed after a while, and what it used."""
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _become_command(
    folder: Path, scratch: Path, files: tuple[Path, Path], arguments: list[str]
) -> None:
    """Run the command line in this process, and end it."""
    status = 70
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, most))
    try:
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        for file, number in zip(files, (1, 2), strict=True):
            with file.open("wb") as stream:
                os.dup2(stream.fileno(), number)
        os.chdir(folder)
        tempfile.tempdir = str(scratch)
        sys.argv = ["fskd-onnx", *arguments]

        from fskd_onnx.cli import main

        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
