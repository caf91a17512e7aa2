"""What is kept comes back, from memory or from a file, and makes room once it is dropped."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import OrtValue

from fskd_onnx.errors import FskdError
from fskd_onnx.runtime.tensor_store import TensorStore, download


def tensor(size: int) -> OrtValue:
    return OrtValue.ortvalue_from_numpy(np.full(size, 7, np.uint8))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_what_is_dropped_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = TensorStore(limit=100)
    first, second = store.keep(tensor(60)), store.keep(tensor(60))
    assert len(files(tmp_path)) == 1
    np.testing.assert_array_equal(download(second.value()), np.full(60, 7))
    del first, second
    assert not files(tmp_path)
    kept = store.keep(tensor(100))
    assert not files(tmp_path)
    empty = store.keep(tensor(0)), store.keep(tensor(1)), store.keep(tensor(0))
    assert [held.value().shape() for held in empty] == [[0], [1], [0]]
    assert kept.shape == (100,)
    with store:
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FskdError, match=r"memory limit cannot be written.*--memory-limit"):
        TensorStore(limit=0).keep(tensor(1))


def test_a_full_disk_that_shows_as_a_file_is_closed_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.BytesIO):
        def close(self) -> None:
            if not self.closed:
                super().close()
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with TensorStore(0) as store, pytest.raises(FskdError, match="No space left on device"):
        store.keep(tensor(100))
