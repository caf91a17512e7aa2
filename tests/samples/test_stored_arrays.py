"""Arrays come out of their files as NumPy wrote them, and no header claims what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.samples.stored_arrays import ArrayArchive, map_array

ARRAYS: dict[str, NDArray[Any]] = {
    "plain": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(24).reshape(4, 6)),
    "swapped": np.arange(5, dtype=">i2"),
    "scalar": np.array(3, np.float16),
    "empty": np.zeros((0, 7), np.uint8),
    "text": np.array(["a", "bcd"]),
    "records": np.zeros(3, [("a", "f4"), ("b", "i8")]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name])
    found = map_array(tmp_path / "a.npy")
    assert found.dtype == ARRAYS[name].dtype
    np.testing.assert_array_equal(found, ARRAYS[name])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_read_by_name(save: object, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **ARRAYS)  # type: ignore[operator]
    with ArrayArchive(tmp_path / "a.npz") as archive:
        assert list(archive) == list(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(archive[name], array)


def test_large_arrays_of_one_value_are_no_bombs(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", mask=np.ones((4000, 4000), bool))
    with ArrayArchive(tmp_path / "a.npz") as archive:
        assert archive["mask"].all()


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, ARRAYS["plain"])
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\), which takes 96 bytes, and has 95"):
        map_array(path)
    path.write_bytes(data.replace(b"(2, 3, 4)", b"(2, 9, 4)"))
    with pytest.raises(ValueError, match="takes 288 bytes, and has 96"):
        map_array(path)


def test_a_header_longer_than_the_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100)
    with pytest.raises(ValueError, match="begin with 4294967295 bytes of header, and has 112"):
        map_array(path)
