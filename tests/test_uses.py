"""The uses that docs/ tells of work as they stand, with files as a user has them."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.helpers import Array, build, initializers
from tests.reports import read_report

USES = Path(__file__).parents[1] / "docs" / "uses"

CLASSIFIER = """g (float[N,3,H,W] x) => (float[N,5] y)
<float[{w},3,3,3] w1, float[{w}] b1, float[8,{w},3,3] w2, float[8] b2, float[5,8] w3> {{
    c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <strides = [2,2]> (r1, w2, b2)
    r2 = Relu (c2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, w3)
}}"""
# Boxes are scaled by the size of the picture, which is an integer.
DETECTOR = """g (float[N,3,24,24] image, int64[N,2] size)
    => (float[N,4,121] boxes, float[N,3,121] scores)
<float[{w},3,3,3] w1, float[{w}] b1, float[8,{w},3,3] w2, float[8] b2, float[4,8,1,1] w3,
 float[3,8,1,1] w4, int64[3] s1 = {{0,4,121}}, int64[3] s2 = {{0,3,121}}, int64[1] two = {{2}},
 float t> {{
    c1 = Conv <pads = [1,1,1,1], strides = [2,2]> (image, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [0,0,1,1]> (r1, w2, b2)
    r2 = Relu (c2)
    c3 = Conv (r2, w3)
    b3 = Reshape (c3, s1)
    f = Cast <to = 1> (size)
    m = ReduceMean <axes = [1], keepdims = 1> (f)
    u = Unsqueeze (m, two)
    boxes = Mul (b3, u)
    c4 = Conv (r2, w4)
    scores = Reshape (c4, s2)
}}"""


def loader() -> Iterator[tuple[Array, Array]]:
    """Give samples as the loader of a user does."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        yield rng.standard_normal((3, 24, 24), np.float32), rng.integers(8, 12, 2)


# How the page calls it.
LOADER = (
    "import numpy as np\nfrom collections.abc import Iterator\nArray = np.ndarray\n"
    + inspect.getsource(loader)
    + "some_of_the_loader = loader\n"
)


def save_networks(folder: Path, text: str, values: Mapping[str, Any]) -> None:
    """A teacher, and a student of which half of the first channels are gone."""
    teacher = build(text.format(w=16), values)
    whole, kept = initializers(teacher), np.arange(0, 16, 2)
    narrow = {"w1": whole["w1"][kept], "b1": whole["b1"][kept], "w2": whole["w2"][:, kept]}
    onnx.save(teacher, folder / "teacher.onnx")
    onnx.save(build(text.format(w=8), whole | narrow), folder / "student.onnx")


def blocks(page: str) -> list[tuple[str, str]]:
    """Give the language and the text of each block of a page that is there to be run."""
    text = (USES / page).read_text(encoding="utf-8")
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_page(page: str, folder: Path, prelude: str = "") -> str:
    """Run all blocks of a page, one after another, in a folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    said = []
    for language, text in blocks(page):
        command = (
            ["bash", "-euo", "pipefail", "-c", text]
            if language == "bash"
            else [sys.executable, "-c", prelude + text]
        )
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        said.append(done.stdout + done.stderr)
    return "".join(said)


def test_a_classifier_and_a_folder_of_photos(tmp_path: Path) -> None:
    save_networks(tmp_path, CLASSIFIER, {})
    rng = np.random.default_rng(0)
    for number in range(15):
        folder = tmp_path / "photos" / ("cat", "dog", "emu", "fox", "gnu")[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        contrast = 256 >> number % 3
        photo = Image.fromarray(rng.integers(0, contrast, (130, 150, 3), np.uint8))
        photo.resize((300, 260)).save(folder / f"{number}.jpg", quality=90)
    text = run_page("photos.md", tmp_path)
    assert "teacher accuracy" in text
    assert "departs at" in text
    record = read_report(tmp_path / "fit.json")
    ends = record["end_to_end"]
    assert ends["after"]["relative_mse"] < ends["before"]["relative_mse"]
    assert (tmp_path / "compare.html").stat().st_size > 0


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    save_networks(tmp_path, DETECTOR, {})
    return tmp_path


def test_a_detector_with_samples_as_arrays(detector: Path) -> None:
    text = run_page("detector.md", detector, LOADER)
    rows = [line.split() for line in text.splitlines()]
    before, after = (
        [float(row[1]) for row in rows if row[:1] == [name]] for name in ("boxes", "scores")
    )
    assert before[1] < before[0]
    assert after[1] < after[0]
    assert "top-1 agreement" not in text


def test_a_step_of_a_pipeline(detector: Path) -> None:
    images, sizes = zip(*([*sample] for sample in loader()), strict=True)
    np.savez(detector / "frames.npz", image=np.stack(images), size=np.stack(sizes))
    text = run_page("pipeline.md", detector)
    assert "goes on with fused.onnx" in text
    assert "the greatest error of a block is at" in text


def test_every_use_is_run() -> None:
    assert {path.name for path in USES.iterdir()} == {"photos.md", "detector.md", "pipeline.md"}
