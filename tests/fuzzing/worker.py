"""A process that mutates files and reads them, within limits of time and memory.

A fault is whatever is neither success nor an error of the package that names the file: another
error, more memory or time than the limits allow, a word on stderr, a file that was changed, and the
end of the process. One of the last kind is for the process that started this one to see.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from fskd_onnx.errors import FskdError
from tests.fuzzing.lines import OWN, Line, Lines, own
from tests.fuzzing.mutation import Case, mutate
from tests.fuzzing.targets import TARGETS, Target

SECONDS = 10
"""Time of the processor that reading one case may take."""
_MEMORY = 2**31
# Pictures below the limit of Pillow may be larger than the memory of this process.
_PIXELS = 2**21


@dataclass(frozen=True)
class News:
    """A case that is mutated further.

    Attributes:
        target: name of the target.
        case: the files.
        valid: whether it is one of the valid ones that all others come from.
        lines: lines that it was the first to reach.
        answer: the kind of answer that it gave.
    """

    target: str
    case: Case
    valid: bool
    lines: set[Line]
    answer: str


@dataclass
class Progress:
    """What is known of a target, and outlives a process.

    Attributes:
        valid: number of valid cases that were read.
        corpus: cases that are mutated further.
        lines: lines that have run.
        answers: kinds of answers that were given.
    """

    valid: int = 0
    corpus: list[Case] = field(default_factory=list)
    lines: set[Line] = field(default_factory=set)
    answers: set[str] = field(default_factory=set)

    @property
    def own_lines(self) -> int:
        """Return the number of lines of the package that have run."""
        return sum(file.startswith(OWN) for file, _ in self.lines)

    def add(self, news: News) -> None:
        """Take in a case, where it is valid or is the first of its kind."""
        self.valid += news.valid
        self.corpus.append(news.case)
        self.lines |= news.lines
        self.answers.add(news.answer)


@dataclass(frozen=True)
class Fault:
    """Something that must not happen.

    Attributes:
        target: name of the target.
        kind: what it is, the same for all cases that show it.
        text: what was seen.
        case: the files.
    """

    target: str
    kind: str
    text: str
    case: Case


def work(
    connection: Connection,
    names: Sequence[str],
    progress: dict[str, Progress],
    counts: Any,
    running: Any,
    folder: Path,
    seed: int,
    executions: int | None,
) -> None:
    """Read cases, and send what is new: faults, and the progress of a target.

    Args:
        connection: takes `Fault` and `News`; None says that all is done.
        names: of targets.
        progress: of the targets so far.
        counts: number of cases that were read, by target, in shared memory.
        running: number of the target whose case is being read, in shared memory.
        folder: where the case that is being read lies.
        seed: decides all mutations.
        executions: how many cases of each target are read; None for no end.
    """
    stderr = _prepare()
    seeds = {name: islice(TARGETS[name].seeds(), progress[name].valid, None) for name in names}
    lines = {name: Lines(progress[name].lines) for name in names}
    spent, parent = dict.fromkeys(names, 0.0), os.getppid()
    while left := [n for n in names if executions is None or counts[names.index(n)] < executions]:
        name = min(left, key=lambda name: spent[name])
        number, known = names.index(name), progress[name]
        if os.getppid() != parent:  # which was killed
            return
        running.value, start = number, time.perf_counter()
        counts[number] += 1
        # Valid cases come in turns with mutated ones until there are no more.
        valid = None if known.corpus and counts[number] % 2 else next(seeds[name], None)
        if valid is not None:
            case = valid
        else:
            rng, pool = Random(f"{seed} {name} {counts[number]}"), known.corpus
            case = mutate(rng.choice(pool[-50:] if rng.random() < 0.3 else pool), pool, rng)
        answer, fault = read(TARGETS[name], case, folder, lines[name], stderr)
        if fault:
            connection.send(Fault(name, *fault, case))
        if valid is not None or lines[name].new or answer not in known.answers:
            news = News(name, case, valid is not None, lines[name].new, answer)
            known.add(news)
            connection.send(news)
        spent[name] += (time.perf_counter() - start) / TARGETS[name].share
    connection.send(None)


def _prepare() -> int:
    """Set the limits of this process; return a file in which its stderr ends up."""
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_AS):
        size = 0
        if limit == resource.RLIMIT_AS:
            size = _MEMORY + resource.getpagesize() * int(_statm().split()[0])
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (size, hard))
    Image.MAX_IMAGE_PIXELS = _PIXELS
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")  # the command sends them to its log
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with tempfile.TemporaryFile() as stream:
        os.dup2(stream.fileno(), 2)
    return 2


def _statm() -> str:
    with suppress(OSError):
        return Path("/proc/self/statm").read_text()
    return str(2**22)  # pages; no such file but on Linux


def read(
    target: Target, case: Case, folder: Path, lines: Lines, stderr: int
) -> tuple[str, tuple[str, str] | None]:
    """Read a case; return what kind of answer that gives, and the kind and the text of a fault."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in case.items():
        (folder / name).write_bytes(data)
    answer, fault = "read", None
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with lines:
            target.run(folder)
    except FskdError as error:
        answer, fault = _judge(error, case, folder)
    except BaseException as error:
        answer = f"{type(error).__name__} at {where(error)}"
        fault = answer, _shown(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if fault is None and os.fstat(stderr).st_size:
        os.lseek(stderr, 0, os.SEEK_SET)
        text = os.read(stderr, 2000).decode(errors="replace")
        fault = f"stderr: {normalised(text)}", text
    os.ftruncate(stderr, 0)
    os.lseek(stderr, 0, os.SEEK_SET)
    if fault is None and any((folder / n).read_bytes() != data for n, data in case.items()):
        fault = "a file was changed", str(sorted(case))
    return answer, fault


def _judge(error: FskdError, case: Case, folder: Path) -> tuple[str, tuple[str, str] | None]:
    """Return the kind of an error of the package, and what is wrong with it."""
    message, reason = str(error), error.__cause__ or error.__context__
    answer = normalised(message.replace(str(folder), "").split(";")[0])
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return answer, (f"too much memory at {where(cause)}", _shown(error))
        cause = cause.__cause__ or cause.__context__
    if not any(name in message for name in (folder.name, *case)):
        return answer, (f"no file is named at {where(error)}", _shown(error))
    if len(message.splitlines()) > 1 or len(message) > 20_000:
        return answer, (f"many lines at {where(error)}", _shown(error))
    return f"{answer} {type(reason).__name__}", None


def where(error: BaseException) -> str:
    """Return the line of the package that an error comes out of, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{file}:{f.lineno}" for f in frames if (file := own(f.filename))]
    last = frames[-1] if frames else None
    found = ours[-1:]
    if last is not None and own(last.filename) is None:
        found.append(f"{Path(last.filename).name}:{last.lineno}")
    return " < ".join(reversed(found))


def normalised(message: str) -> str:
    """Return a message without what differs from case to case."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"|\([^()]*\)", "_", message)
    return re.sub(r"[^A-Za-z_ ]+", "#", message)[:80]


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-3000:]
