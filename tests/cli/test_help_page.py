"""Commands of the help run as they stand, and quiet ones say nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from fskd_onnx.cli.app import app
from fskd_onnx.cli.help_page import EXAMPLES
from tests.helpers import build, initializers

TEXT = """g (float[N,3,12,12] x) => (float[N,5] y)
<float[{w},3,3,3] w1, float[{w}] b1, float[8,{w},3,3] w2, float[8] b2, float[5,8] w3> {{
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv (r1, w2, b2)
    r2 = Relu (c2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3)
}}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: two networks, and a folder of photos."""
    place = tmp_path_factory.mktemp("examples")
    teacher = build(TEXT.format(w=16))
    whole, kept = initializers(teacher), np.arange(0, 16, 2)
    narrow = {"w1": whole["w1"][kept], "b1": whole["b1"][kept], "w2": whole["w2"][:, kept]}
    onnx.save(teacher, place / "teacher.onnx")
    onnx.save(build(TEXT.format(w=8), whole | narrow), place / "student.onnx")
    (place / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(place / "photos" / f"{number}.png")
    return place


def test_examples_of_the_help_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for command in EXAMPLES.values():
        program, *arguments = shlex.split(command)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code, result.stderr) == ("fskd-onnx", 0, ""), command
        assert result.stdout
    assert {path.name for path in folder.glob("*")} >= {"fused.onnx", "fit.html", "small.onnx"}


@pytest.mark.parametrize("command", ["fit", "match"])
def test_quiet_commands_say_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, [*shlex.split(EXAMPLES[command])[1:], "-q"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("comp", "compress compare"),
        ("fit --ad", "--adapter"),
        ("fit --preprocess ima", "imagenet"),
        ("match --layout ", "NCHW NHWC"),
    ],
)
def test_a_shell_completes_commands_options_and_values(typed: str, completed: str) -> None:
    """What bash asks of the installed program while its user types."""
    words = f"fskd-onnx {typed}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [Path(sys.executable).with_name("fskd-onnx")],
        env=os.environ | asked | {"_FSKD_ONNX_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (completed.split(), "")
