"""Labels are read from every kind of file, and what is no list of labels is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fskd_onnx.errors import SamplesError
from fskd_onnx.samples.labels import load_labels


def test_labels_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    labels = np.array([3, 0, 2])
    np.save(tmp_path / "a.npy", labels.astype(np.uint8))
    np.savez(tmp_path / "named.npz", x=np.arange(3), labels=labels)
    np.savez(tmp_path / "single.npz", x=np.ones((3, 2), np.float32), targets=labels)
    (tmp_path / "a.txt").write_text("3\n0\n2\n\n")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf3\r\n0\r\n2")
    for name in ("a.npy", "named.npz", "single.npz", "a.txt", "a.csv"):
        read = load_labels(tmp_path / name, 3)
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, labels, err_msg=name)


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros(3))
    np.save(tmp_path / "matrix.npy", np.zeros((3, 1), int))
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    (tmp_path / "head.csv").write_text("label\n1\n2\n")
    (tmp_path / "labels.pt").touch()
    (tmp_path / "two.txt").write_text("1\n2\n")
    for name, words in (
        ("float.npy", "labels are integers in one dimension"),
        ("matrix.npy", "labels are integers in one dimension"),
        ("two.npz", "holds no array called labels"),
        ("head.csv", "line 1 is 'label'"),
        ("labels.pt", "labels are read from"),
        ("two.txt", "holds 2 labels for 3 samples"),
        ("missing.txt", "does not exist"),
    ):
        with pytest.raises(SamplesError, match=words) as caught:
            load_labels(tmp_path / name, 3)
        assert name in str(caught.value)
