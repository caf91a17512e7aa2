"""What libraries warn of goes to the log, never to the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WARN = """
import sys, warnings
from pathlib import Path
from fskd_onnx.cli.shared_options import LogSettings
LogSettings(int(sys.argv[1]), False, Path(sys.argv[2])).start()
warnings.warn("overflow\\x1b[31m\\nencountered", RuntimeWarning)
"""


def test_warnings_of_libraries_are_for_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    command = [sys.executable, "-c", _WARN, "0", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (line,) = log.read_text().splitlines()
    assert "RuntimeWarning in <string>:6: overflow\\x1b[31m\\nencountered" in line
