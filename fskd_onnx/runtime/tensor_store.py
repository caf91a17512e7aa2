"""Tensors between stages: in memory or in files, and on their way to a device and back."""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.errors import FskdError
from fskd_onnx.samples.batches import Tensors
from fskd_onnx.serialization.deferred_signals import deferred_signals
from fskd_onnx.serialization.temporary import TemporaryFolder, remove_stale


class StoredTensor(Protocol):
    """A tensor of the cut, wherever it is at the moment."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extents."""

    @property
    def element_type(self) -> int:
        """Its type, as ONNX numbers them."""

    def value(self) -> OrtValue:
        """Bring it where sessions read it."""


class TensorStore:
    """Keeps tensors between stages: where they are up to a limit, past it in temporary files.

    Whoever drops a tensor makes room for others. The files are in one temporary folder, which goes
    with the ``with`` block; one that a killed process has left goes when the next store begins.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Start empty.

        Args:
            limit: bytes to keep where they are, all tensors together; ``None`` keeps everything.
        """
        self._limit = limit
        self._used = 0
        self._files = 0
        self._folder: TemporaryFolder | None = None
        remove_stale()

    def keep(self, value: OrtValue) -> StoredTensor:
        """Keep a tensor for as long as what is returned is referred to.

        Raises:
            FskdError: it has to go to a file, and that cannot be written.
        """
        if not is_plain(value):
            return _InMemory(value)  # strings, or no tensor at all: small, and no bytes to write
        size, device = value.tensor_size_in_bytes(), value.device_name()
        if self._limit is None or self._used + size <= self._limit:
            self._used += size
            if self._limit is not None and device == "cpu":
                # Sessions hand out slices of an arena that is never smaller than the largest
                # moment needed; a copy lets the arena serve the next batch.
                value = OrtValue.ortvalue_from_numpy(download(value), device)
            in_memory = _InMemory(value)
            weakref.finalize(in_memory, self._release, size)
            return in_memory
        try:
            if self._folder is None:
                with deferred_signals():  # nothing may come between the folder and its removal
                    self._folder = TemporaryFolder()
            self._files += 1
            path = self._folder.path / str(self._files)
            array = value.numpy()
            # Written, not mapped: on a full disk a write raises, a mapping kills the process. Not
            # by NumPy's tofile, which does not hear of what fails when its file is closed.
            with path.open("wb") as stream:
                stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise FskdError(
                f"activations past the memory limit cannot be written to {tempfile.gettempdir()} "
                f"({error.strerror or error}); make room, set TMPDIR or raise --memory-limit"
            ) from error
        in_file = _InFile(path, array.dtype, array.shape, value.element_type(), device)
        weakref.finalize(in_file, path.unlink, missing_ok=True)
        return in_file

    def __enter__(self) -> TensorStore:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the files, whatever happened; what was kept in them is lost."""
        if self._folder is not None:
            with deferred_signals():
                self._folder.remove()

    def _release(self, size: int) -> None:
        self._used -= size


class _InMemory:
    """A tensor where sessions read it."""

    def __init__(self, value: OrtValue) -> None:
        self._value = value
        self.shape = tuple(value.shape())
        self.element_type = int(value.element_type())

    def value(self) -> OrtValue:
        return self._value


@dataclass(frozen=True)
class _InFile:
    """A tensor in a file; its pages are in memory only while somebody holds its value."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    element_type: int
    device: str

    def value(self) -> OrtValue:
        if 0 in self.shape:  # an empty file cannot be mapped
            return OrtValue.ortvalue_from_numpy(np.empty(self.shape, self.dtype), self.device)
        array = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return OrtValue.ortvalue_from_numpy(array, self.device)


def upload(tensors: Tensors, device: str) -> dict[str, OrtValue]:
    """Put arrays where sessions read them; on the CPU that copies nothing."""
    return {
        name: OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device)
        for name, array in tensors.items()
    }


def download(value: OrtValue) -> NDArray[Any]:
    """Copy a tensor to an array of its own; what ``OrtValue.numpy`` gives may be on loan."""
    return np.array(value.numpy())


def is_plain(value: OrtValue) -> bool:
    """Whether a value is a tensor whose elements lie in memory one after another."""
    return bool(value.is_tensor()) and value.data_type() != "tensor(string)"
