"""Command lines in forks of one process that has imported everything: a row costs no start.

No session of ONNX Runtime is made before a fork: its threads would not be there after it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_LONGEST = 20.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status; negative for a signal.
        stdout: what it wrote there.
        stderr: likewise.
        seconds: how long it ran.
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
    import fskd_onnx.cli
    import fskd_onnx.pipeline.fit
    import fskd_onnx.pipeline.match
    import fskd_onnx.reporting.compare
    import fskd_onnx.reporting.terminal  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        ended = _fork(Path(request["folder"]), Path(request["scratch"]), request["arguments"])
        print(json.dumps(asdict(ended)), flush=True)


def _fork(folder: Path, scratch: Path, arguments: list[str]) -> Ended:
    files = scratch / "stdout", scratch / "stderr"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_command(folder, scratch, files, arguments)
    status, usage = _wait(child, start + _LONGEST)
    seconds = time.monotonic() - start
    texts = [file.read_text(encoding="utf-8", errors="surrogateescape") for file in files]
    for file in files:
        file.unlink()
    return Ended(status, texts[0], texts[1], seconds, usage / 1024)


def _wait(child: int, deadline: float) -> tuple[int, int]:
    """Return the exit status of a process, which is killed after a while, and its memory."""
    while True:
        found, status, usage = os.wait4(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _become_command(
    folder: Path, scratch: Path, files: tuple[Path, Path], arguments: list[str]
) -> None:
    """Run the command line in this process, and end it."""
    import tempfile

    status = 70
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
