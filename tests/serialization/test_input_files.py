"""Only what ends is opened, and no file that is larger than a model can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.input_files import check_regular, open_regular, read_model


def test_a_file_is_opened_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        assert check_regular(tmp_path / name).st_size == 3
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"abc"


@pytest.mark.parametrize("name", ["nowhere", "a\0b", "a" * 5000])
def test_what_is_not_there_is_an_error_of_the_system(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        open_regular(tmp_path / name)


def test_pipes_and_devices_are_refused_at_once_under_the_name_that_is_given(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, what in (("pipe", "named pipe"), ("link", "named pipe"), ("/dev/null", "device")):
        with pytest.raises(OSError, match=f"it is a {what} and not a regular file") as caught:
            open_regular(tmp_path / path)
        assert caught.value.filename == os.fspath(tmp_path / path)
    with pytest.raises(OSError, match="named pipe") as caught:
        check_regular(tmp_path / "pipe", "model.data")
    assert caught.value.filename == "model.data"


def test_an_empty_model_and_one_that_is_too_large_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.touch()
    with pytest.raises(ModelError, match=r"a\.onnx: is not an ONNX file but empty"):
        read_model(path)
    with path.open("wb") as stream:
        stream.truncate(2**31)  # takes no room
    with pytest.raises(ModelError, match=r"a\.onnx: has 2147483648 bytes, and no ONNX file has"):
        read_model(path)
