"""Samples are found in folders of folders, by a list, and by no other way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import FOLDERS, Preprocess
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

RAW = Preprocess(preset="raw")
INPUT = (InputSpec("x", (None, 1, 2, 2), np.dtype(np.float32)),)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes, one of them in folders of its own."""
    folder = tmp_path / "photos"
    for value, name in enumerate(("dog/10.png", "cat/b/1.png", "cat/a/2.png", "cat/0.png")):
        picture(folder / name, value + 1)
    (folder / "notes").mkdir()
    (folder / ".hidden").mkdir()
    picture(folder / ".hidden" / "no.png", 9)
    return folder


def values(folder: Path, **given: str) -> list[int]:
    samples = load_samples(folder, INPUT, RAW, **given)  # type: ignore[arg-type]
    taken = samples.take(np.arange(len(samples)))["x"]
    return [int(value) for value in taken[:, 0, 0, 0]]


def test_folders_in_folders_are_read_in_the_order_of_names(photos: Path) -> None:
    assert values(photos) == [4, 3, 2, 1]


def test_a_link_that_leads_back_is_not_followed_for_ever(photos: Path) -> None:
    (photos / "cat" / "back").symlink_to(photos, target_is_directory=True)
    assert values(photos) == [4, 3, 2, 1]


def test_a_folder_with_samples_of_its_own_says_what_it_leaves_out(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(photos / "own.png", 7)
    with caplog.at_level(logging.WARNING):
        assert values(photos) == [7]
    (said,) = caplog.messages
    assert "those of the folders in it are not read: cat, dog" in said


def test_kinds_are_not_mixed_across_folders(photos: Path) -> None:
    np.save(photos / "dog" / "x.npy", np.zeros((1, 1, 2, 2), np.float32))
    with pytest.raises(SamplesError, match=r"mixes \.npy files and images"):
        values(photos)


def test_a_list_names_samples_and_their_order(photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_text("dog/10.png\ncat/a/2.png\n", encoding="utf-8")
    assert values(photos, listed=str(names)) == [1, 3]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dog/11.png", "line 1 names dog/11.png, which .* does not hold"),
        ("dog/10.png\ndog/10.png", "line 2 names .*10.png for the second time"),
        ("dog/10.png\n\ncat/0.png", "line 2 has to name a file"),
        ("../photos/dog/10.png", "line 1 has to name a file"),
        ("notes", "line 1 names .*notes, which is no file of samples"),
        ("", "names no samples"),
    ],
)
def test_a_list_that_is_wrong_is_refused(
    photos: Path, tmp_path: Path, text: str, reason: str
) -> None:
    names = tmp_path / "list.txt"
    names.write_text(text, encoding="utf-8")
    with pytest.raises(SamplesError, match=reason):
        values(photos, listed=str(names))


def test_a_list_that_waits_for_a_writer_is_refused(photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(SamplesError, match="named pipe"):
        values(photos, listed=str(tmp_path / "list.txt"))


def test_a_list_is_for_folders(tmp_path: Path) -> None:
    names = tmp_path / "list.txt"
    names.write_text("a", encoding="utf-8")
    with pytest.raises(SamplesError, match="is no folder"):
        values(names, listed=str(names))
    with pytest.raises(SamplesError, match="the samples are no folder"):
        load_samples(np.zeros((1, 1, 2, 2), np.float32), INPUT, listed=str(names))


def test_names_of_folders_are_classes(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_samples(photos, INPUT, RAW).labels(FOLDERS).tolist() == [0, 0, 0, 1]
    (said,) = caplog.messages
    assert "taken as classes: cat 0, dog 1" in said
    drawn = load_samples(photos, INPUT, RAW, max_samples=2, seed=1)
    expected = np.array([0, 0, 0, 1])[drawn.source_indices]
    assert drawn.labels(FOLDERS).tolist() == expected.tolist()


def test_folders_called_by_numbers_are_these_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("10/a.png", "2/a.png"):
        picture(tmp_path / name, 1)
    with caplog.at_level(logging.WARNING):
        samples = load_samples(tmp_path, INPUT, RAW, groups=FOLDERS)
        assert samples.labels(FOLDERS).tolist() == [10, 2]
    assert caplog.messages == []
    assert samples.groups is not None
    assert len(set(samples.groups.tolist())) == 2
    picture(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(SamplesError, match="'10' is called by a number and 'cat' is not"):
        load_samples(tmp_path, INPUT, RAW).labels(FOLDERS)


def test_samples_outside_of_folders_have_no_class(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    for source in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(SamplesError, match="not all samples lie in folders"):
            load_samples(source, INPUT, RAW).labels(FOLDERS)
