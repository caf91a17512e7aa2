"""Samples that are images have small pictures, others none."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fskd_onnx.reporting.thumbnails import thumbnail


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


def test_a_small_picture_is_sent_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    address = thumbnail(str(path))
    assert address.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(picture(address)), pixels)


def test_a_large_picture_is_made_small(tmp_path: Path) -> None:
    path = tmp_path / "a.PNG"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200), np.uint8)).save(path)
    address = thumbnail(str(path))
    assert address.startswith("data:image/jpeg;base64,")
    assert picture(address).size == (160, 120)
    assert len(address) < 20_000


@pytest.mark.parametrize("name", ["a.npy, sample 3", "broken.png", "missing.jpg", "folder.png", ""])
def test_what_is_no_picture_has_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_bytes(b"no picture")
    Path("folder.png").mkdir()
    assert thumbnail(name) == ""
