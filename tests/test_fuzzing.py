"""Mutated files are read or refused by name; the fuzzer sees what is neither."""

from __future__ import annotations

import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from PIL import Image

from fskd_onnx.errors import SamplesError
from fskd_onnx.printable import printable
from tests.fuzzing.__main__ import end, main
from tests.fuzzing.lines import Lines
from tests.fuzzing.mutation import mutate
from tests.fuzzing.targets import TARGETS, Target
from tests.fuzzing.worker import read


def test_a_short_run_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    status = main(["--executions", "30", "--seed", "1", "--json", str(record)])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "faults: 0 kinds" in out
    found = json.loads(record.read_text(encoding="utf-8"))
    assert set(found["executions"]) == set(TARGETS)
    assert set(found["executions"].values()) == {30}
    assert all(count > 30 for count in found["lines"].values())


@pytest.fixture
def stderr() -> Iterator[io.FileIO]:
    with tempfile.TemporaryFile(buffering=0) as stream:
        yield stream


def fault(run: Callable[[Path], object], folder: Path, stderr: io.FileIO) -> tuple[str, str] | None:
    target = Target(lambda: iter(()), run)
    _, found = read(target, {"a.npy": b"abc"}, folder, Lines(set()), stderr.fileno())
    return found


def refused(message: str, cause: Exception | None = None) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        raise SamplesError(message.format(folder)) from cause

    return run


def of_many_lines(folder: Path) -> None:
    class LoudError(SamplesError):
        def __str__(self) -> str:
            return f"{super().__str__()}\n  at somewhere"

    raise LoudError("a.npy: is no array")


def test_success_and_errors_that_name_the_file_are_no_faults(
    tmp_path: Path, stderr: io.FileIO
) -> None:
    folder = tmp_path / "case"
    assert fault(lambda folder: (folder / "a.npy").read_bytes(), folder, stderr) is None
    assert fault(refused("{}/a.npy: is no array"), folder, stderr) is None
    assert fault(refused("a.npy: is no array", ValueError("bad")), folder, stderr) is None


def test_everything_else_is_a_fault(tmp_path: Path, stderr: io.FileIO) -> None:
    def other(folder: Path) -> None:
        printable(3)  # type: ignore[arg-type]

    folder = tmp_path / "case"
    kinds = {
        "AttributeError at fskd_onnx/printable.py": other,
        "no file is named at": refused("is no array"),
        "too much memory at": refused("a.npy: is no array", MemoryError("too large")),
        "many lines at": of_many_lines,
        "stderr: what a library writes": lambda _: stderr.write(b"what a library writes"),
        "a file was changed": lambda folder: (folder / "a.npy").write_bytes(b"abd"),
    }
    for kind, run in kinds.items():
        found = fault(run, folder, stderr)
        assert found is not None, kind
        assert found[0].startswith(kind)
    assert fault(lambda _: None, folder, stderr) is None


@pytest.mark.parametrize(
    ("status", "hung", "kind"),
    [
        (-signal.SIGSEGV, False, "the process ended: SIGSEGV"),
        (-signal.SIGPROF, False, "more than 10 s of the processor"),
        (-signal.SIGKILL, True, "no answer within 60 s"),
        (3, False, "the process ended: status 3"),
    ],
)
def test_how_a_process_ended(status: int, hung: bool, kind: str) -> None:
    assert end(status, hung) == kind


def test_lines_are_seen_once() -> None:
    lines = Lines(set())
    with lines:
        printable("a")
    first = lines.new
    assert {file for file, _ in first} == {"fskd_onnx/printable.py"}
    with lines:
        printable("a")
    assert not lines.new
    with lines:
        printable("\n")
    assert lines.new
    assert lines.seen == first | lines.new


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_decides_the_mutations(name: str) -> None:
    cases = [case for case, _ in zip(TARGETS[name].seeds(), range(5), strict=False)]
    for case in cases:
        one, other = (mutate(case, cases, Random(7)) for _ in range(2))
        assert one == other
        assert any(mutate(case, cases, Random(seed)) != case for seed in range(5))


@pytest.mark.parametrize(
    ("target", "suffix", "parse", "least"),
    [
        ("models", ".onnx", onnx.ModelProto.FromString, 20),
        ("samples", ".npz", lambda data: dict(np.load(io.BytesIO(data))), 5),
        ("images", ".png", lambda data: Image.open(io.BytesIO(data)), 10),
        ("maps", ".json", json.loads, 20),
    ],
)
def test_mutations_know_formats(
    target: str, suffix: str, parse: Callable[[bytes], object], least: int
) -> None:
    files = [file for case in TARGETS[target].seeds() for file in case.items()]
    cases = [{name: data} for name, data in files if name.endswith(suffix)]
    whole = 0
    for seed in range(40):
        (data,) = mutate(cases[0], cases, Random(seed)).values()
        with suppress(Exception):
            parse(data)
            whole += 1
    assert whole > least
