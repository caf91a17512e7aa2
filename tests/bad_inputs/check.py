"""What has to hold of every bad input."""

from __future__ import annotations

import functools
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from fskd_onnx.runtime.providers import working_providers
from tests.bad_inputs.row import Row, write_good_files
from tests.bad_inputs.server import Ended, Server

_SECONDS, _MEGABYTES = 5, 700
_MEGABYTES_OF_CUDA = 500  # its libraries
# Text of libraries, or of this program's inside, which says nothing to a user.
_FOREIGN = (
    "Traceback",
    "onnxruntime::",
    "[ONNXRuntimeError]",
    "ONNXRuntimeError",
    "google.protobuf",
    "this was not foreseen",
    "numpy.",
    "<class",
    " object at 0x",
    "__",
    "None",
)
_SOURCE_POSITION = re.compile(r"\w\.(?:py|cc|cpp|h|hpp)\b(?::\d+|\(\d+\))?")


@dataclass(frozen=True)
class Trial:
    """A row that is ready to run.

    Attributes:
        folder: the files.
        scratch: an empty folder for temporary files.
    """

    folder: Path
    scratch: Path

    @classmethod
    def prepare(cls, row: Row, place: Path) -> Trial:
        """Write the files of a row into two new folders."""
        trial = cls(place / "files", place / "scratch")
        trial.folder.mkdir()
        trial.scratch.mkdir()
        write_good_files(trial.folder)
        row.spoil(trial.folder)
        return trial


def complaints(row: Row, trial: Trial, server: Server) -> tuple[Ended, list[str]]:
    """Run a row; return how it ended, and what is not as it should be."""
    before = _content(trial.folder)
    ended = server.run(trial.folder, trial.scratch, row.arguments)
    found = []
    if ended.status != row.status:
        found.append(f"exit status {ended.status}, not {row.status}")
    lines = ended.stderr.splitlines()
    # Wrong usage is said in several lines by the library that reads the command line.
    said = lines[-1] if lines and row.status == 2 else ended.stderr.removesuffix("\n")
    if not said.lower().startswith("error: ") or len(said.splitlines()) != 1:
        found.append(f"{len(lines)} lines on stderr, not one that begins with 'error: '")
    found += [f"no word of {word!r}" for word in row.words if word not in said]
    found += [f"foreign text: {text}" for text in _FOREIGN if text in ended.stderr]
    found += [f"source position: {text}" for text in _SOURCE_POSITION.findall(ended.stderr)]
    if not said.isprintable():
        found.append("characters that are not to be shown")
    if ended.stdout:
        found.append(f"stdout: {ended.stdout!r}")
    if _content(trial.folder) != before:
        found.append("files have changed")
    if any(trial.scratch.iterdir()):
        found.append("temporary files are left")
    if ended.seconds > _SECONDS:
        found.append(f"kept a processor busy for {ended.seconds:.1f} s")
    if ended.megabytes > _most_megabytes():
        found.append(f"took {ended.megabytes:.0f} MB")
    return ended, found


@functools.cache
def _most_megabytes() -> int:
    on_gpu = "CUDAExecutionProvider" in working_providers()
    return _MEGABYTES + (_MEGABYTES_OF_CUDA if on_gpu else 0)


def _content(folder: Path) -> dict[str, object]:
    """Return all that lies in a folder: kinds, times, and the bytes of files."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        small = stat.S_ISREG(state.st_mode) and state.st_size < 2**26
        found[os.fspath(path)] = (
            state.st_mode,
            state.st_size,
            state.st_mtime_ns,
            path.read_bytes() if small else b"",
        )
    return found
