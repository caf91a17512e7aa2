"""What a killed process leaves behind, the next one removes; what is in use stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fskd_onnx.serialization.temporary import TemporaryFile, TemporaryFolder, remove_stale

MAKES_BOTH = """
import os, signal, sys
from pathlib import Path
from fskd_onnx.serialization.temporary import TemporaryFile, TemporaryFolder
file, folder = TemporaryFile(Path(sys.argv[1], "model.onnx")), TemporaryFolder()
(folder.path / "0").write_text("activations")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def listing(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_a_killed_process_has_left_is_removed(scratch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAKES_BOTH, scratch], env=os.environ | {"TMPDIR": str(scratch)}
    )
    assert done.returncode == -signal.SIGKILL
    assert len(listing(scratch)) == 2
    remove_stale()
    assert listing(scratch) == []


def test_what_is_in_use_stays(scratch: Path) -> None:
    file, folder = TemporaryFile(scratch / "model.onnx"), TemporaryFolder()
    remove_stale(scratch)
    assert file.path.suffix == ".onnx"
    assert listing(scratch) == sorted([file.path, folder.path])
    folder.remove()
    file.remove()
    assert listing(scratch) == []


def test_files_of_others_stay(scratch: Path) -> None:
    others = scratch / "fskd-onnx-notes.txt", scratch / ".hidden"
    for path in others:
        path.touch()
    remove_stale(scratch)
    assert set(listing(scratch)) == set(others)
