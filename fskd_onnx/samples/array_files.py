"""The formats ``.npy`` and ``.npz``: samples along the first axis of arrays in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import UNNAMED, ArrayPart, by_input, open_array_items
from fskd_onnx.samples.files import files_with_suffix, open_npz, read_npy
from fskd_onnx.samples.labels import LABEL_NAMES
from fskd_onnx.serialization.interface import InputSpec


class ArrayFiles:
    """Files of arrays with one suffix, see `SampleFormat`."""

    def __init__(
        self,
        suffix: str,
        read: Callable[[Path, tuple[InputSpec, ...]], Mapping[str, NDArray[Any]]],
    ) -> None:
        """Take the suffix and a reader of such files.

        Args:
            suffix: in lower case, with its dot.
            read: returns the arrays of a file by input name.
        """
        self.name, self.words = f"{suffix} files", suffix
        self._suffix, self._read = suffix, read

    def find(self, source: Path) -> list[Path]:
        """Return the file itself, or those of a folder but for files of labels."""
        files = files_with_suffix(source, {self._suffix})
        return [file for file in files if file == source or file.stem.lower() not in LABEL_NAMES]

    def open(
        self, items: Sequence[Path], inputs: tuple[InputSpec, ...], preprocess: Preprocess
    ) -> list[ArrayPart]:
        """Open files, see `SampleFormat.open`."""
        return open_array_items(items, self._read, inputs, preprocess)


def _read_npy(path: Path, inputs: tuple[InputSpec, ...]) -> dict[str, NDArray[Any]]:
    return by_input({UNNAMED: read_npy(path)}, inputs, str(path))


def _read_npz(path: Path, inputs: tuple[InputSpec, ...]) -> dict[str, NDArray[Any]]:
    with open_npz(path) as archive:
        return by_input(archive, inputs, str(path))


NPY_FILES, NPZ_FILES = ArrayFiles(".npy", _read_npy), ArrayFiles(".npz", _read_npz)
