"""What surrounds the program changes nothing about its rows: locale, terminal, home folder."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.helpers import build

NAME = "a_név_" + "x" * 150
MATCH = [sys.executable, "-m", "fskd_onnx", "match", "teacher.onnx", "student.onnx"]
BARE = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    text = "g (float[N,3] x) => (float[N,4] z) <float[3,{a}] v, float[{a},4] w> {{"
    text += "[first] y = MatMul (x, v) r = Relu (y) [second] z = MatMul (r, w) }}"
    for name, width in (("teacher", 8), ("student", 8)):
        model = build(text.format(a=width))
        model.graph.node[0].name = NAME
        onnx.save_model(model, folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize(
    "variables",
    [
        {"NO_COLOR": "1", "TERM": "dumb", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"HOME": "/nowhere", "COLUMNS": "20", "PYTHONUTF8": "1"},
    ],
)
def test_rows_in_a_pipe_are_never_wrapped(folder: Path, variables: dict[str, str]) -> None:
    done = subprocess.run(MATCH, cwd=folder, env=BARE | variables, capture_output=True, check=True)
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    rows, summary = map(str.splitlines, done.stdout.decode(encoding).split("\n\n"))
    name = NAME.encode(encoding, "backslashreplace").decode(encoding)
    assert [row.split()[0] for row in rows] == ["student", name, "second"]
    assert [line.split()[0] for line in summary] == ["blocks", "channels"]
    assert "\x1b" not in done.stdout.decode(encoding)


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_narrow_terminal_gets_a_row_a_line(folder: Path, term: str) -> None:
    reader, writer = pty.openpty()
    variables = BARE | {"TERM": term, "COLUMNS": "20", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        MATCH, cwd=folder, env=variables, stdout=writer, stderr=subprocess.PIPE, check=True
    )
    os.close(writer)
    shown = os.read(reader, 2**16).decode()
    os.close(reader)
    lines = shown.splitlines()
    assert lines.index("") == 3  # what is below is the summary
    assert NAME not in shown  # it is cut
    assert b"Traceback" not in done.stderr
