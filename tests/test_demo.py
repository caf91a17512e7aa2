"""`make demo` keeps its promise: the accuracy comes back, and the figures are printed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_demo_brings_the_accuracy_back(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    environment.mkdir()
    (environment / "bin").symlink_to(Path(sys.executable).parent)
    (environment / ".installed").touch()  # newer than pyproject.toml, so nothing is installed
    done = subprocess.run(
        [shutil.which("make") or "make", "demo", f"VENV={environment}", f"OUT={tmp_path / 'out'}"],
        cwd=ROOT,
        # Without what an outer make, of the tests, hands down to inner ones.
        env={
            key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFL"))
        },
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "-m venv" not in done.stdout
    *_, images, teacher, untouched, fused, seconds = done.stdout.splitlines()
    assert images.split() == ["test", "images", "2000"]
    percent = {
        name: float(line.removeprefix(name).strip().rstrip("%"))
        for name, line in (
            ("teacher", teacher),
            ("untouched student", untouched),
            ("fused student", fused),
        )
    }
    assert percent["untouched student"] < 20
    assert percent["fused student"] > percent["teacher"] - 2.5 - 0.05  # as printed: rounded
    assert seconds.startswith("time of the fit ")
    assert (tmp_path / "out" / "fused.onnx").is_file()
