"""Gradient steps as their users ask for them: a process of its own on small files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.test_contract import assert_fails, fskd_onnx, said
from tests.networks import NETWORKS
from tests.reports import read_report

NETWORK = NETWORKS["rank 3"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Teacher, student and samples."""
    found = [tmp_path / name for name in ("teacher.onnx", "student.onnx", "samples.npz")]
    onnx.save_model(NETWORK.teacher(), found[0])
    onnx.save_model(NETWORK.student(), found[1])
    np.savez(found[2], **NETWORK.samples(70))  # type: ignore[arg-type]
    return found


def test_steps_are_made_and_reported(files: list[Path], tmp_path: Path) -> None:
    reports = [tmp_path / "r.json", tmp_path / "r.html"]
    options = [option for path in reports for option in ("--report", path)]
    done = fskd_onnx("fit", *files, "--refine", 24, "--providers", "cpu", *options)
    assert done.returncode == 0, done.stderr
    assert said(done) == []
    report = json.loads(reports[0].read_text())
    refine = report["refine"]
    assert refine["steps"] == report["options"]["refine"] == 24
    assert refine["kept"] is True
    assert refine["reason"] == ""
    assert refine["error_after"] == report["end_to_end"]["after"]["relative_mse"]
    assert refine["error_before"] > refine["error_after"]
    assert report["seconds"]["refine"] > 0
    line = f"{refine['steps_taken']} of 24 kept"
    assert re.search(f"gradient steps +{line}", done.stdout)
    assert line in reports[1].read_text()
    onnx.checker.check_model(onnx.load(tmp_path / "student.fskd.onnx"), full_check=True)


def test_all_adapters_at_once(files: list[Path], tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    done = fskd_onnx("fit", *files, "--optimizer", "sgd", "--providers", "cpu", "--report", report)
    assert done.returncode == 0, done.stderr
    assert said(done) == []
    document = read_report(report)
    assert document["options"]["optimizer"] == "sgd"
    end = document["end_to_end"]
    assert end["after"]["relative_mse"] < end["before"]["relative_mse"]
    onnx.checker.check_model(onnx.load(tmp_path / "student.fskd.onnx"), full_check=True)


def test_what_it_excludes_is_wrong_usage(files: list[Path]) -> None:
    done = fskd_onnx("fit", *files, "--optimizer", "sgd", "--adapter", "kernel")
    assert_fails(done, 2, "optimizer sgd fits pointwise adapters, not kernel")


@pytest.mark.parametrize("option", [("--refine", "5"), ("--optimizer", "sgd")])
def test_without_pytorch_the_extra_is_named(
    option: tuple[str, str], files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from fskd_onnx.cli import main; main()"
    arguments = ["compress", str(files[0]), str(files[2]), *option]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert_fails(
        done, 1, "gradient steps need PyTorch", "python -m pip install torch", "the extra 'torch'"
    )
