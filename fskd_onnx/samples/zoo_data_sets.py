"""The format of the ONNX model zoo: ``test_data_set_*/input_*.pb``, a file per input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import ArrayPart, open_array_items
from fskd_onnx.samples.files import reading
from fskd_onnx.serialization.interface import InputSpec
from fskd_onnx.serialization.tensor_check import why_impossible

_INPUTS = "input_*.pb"
_FOLDERS = "test_data_set_*"


class ZooDataSets:
    """Folders of tensors, see `SampleFormat`."""

    name = "test data sets"
    words = f"{_FOLDERS} folders"

    def find(self, source: Path) -> list[Path]:
        """Return the folder itself, or those in it, in the order of their numbers."""
        if any(source.glob(_INPUTS)):
            return [source]
        folders = (entry for entry in source.glob(_FOLDERS) if entry.is_dir())
        return sorted(folders, key=lambda folder: (len(folder.name), folder.name))

    def open(
        self, items: Sequence[Path], inputs: tuple[InputSpec, ...], preprocess: Preprocess
    ) -> list[ArrayPart]:
        """Open folders, see `SampleFormat.open`."""
        return open_array_items(items, _read, inputs, preprocess)


def _read(folder: Path, inputs: tuple[InputSpec, ...]) -> dict[str, NDArray[Any]]:
    """Return the tensors of a folder by input name; files are numbered as the inputs are."""
    files = [folder / _INPUTS.replace("*", str(number)) for number in range(len(inputs))]
    found = len(list(folder.glob(_INPUTS)))
    if found != len(files):
        raise SamplesError(
            f"{folder}: holds {found} {_INPUTS} files and the model has {len(files)} inputs"
        )
    return {spec.name: _read_tensor(file) for spec, file in zip(inputs, files, strict=True)}


def _read_tensor(path: Path) -> NDArray[Any]:
    with reading(path, "a tensor"), path.open("rb") as stream:
        tensor = onnx.load_tensor(stream)
        if uses_external_data(tensor):
            raise SamplesError(
                f"{path}: keeps its values in another file, which is not read; save them in this "
                "one"
            )
        if tensor.data_type == onnx.TensorProto.STRING:
            raise SamplesError(f"{path}: holds strings; give numbers")
        if wrong := why_impossible(tensor):
            raise SamplesError(f"{path}: {wrong}; save it again")
        return numpy_helper.to_array(tensor)
