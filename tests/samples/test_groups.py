"""Groups of samples from files, from values and from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import FOLDERS
from fskd_onnx.samples.groups import load_groups
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

INPUTS = input_specs(build("g (float[N,2] x) => (float[N,2] y) { y = Relu (x) }"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".txt", ".csv"])
@pytest.mark.parametrize("names", [["b", "a", "b"], [7, -1, 7]])
def test_groups_are_names_or_integers_in_any_format(
    suffix: str, names: list[str | int], tmp_path: Path
) -> None:
    path = tmp_path / f"groups{suffix}"
    if suffix == ".npy":
        np.save(path, names)
    elif suffix == ".npz":
        np.savez(path, groups=names, more=np.arange(3))
    else:
        path.write_text("".join(f"{name}\n" for name in names))
    for given in (str(path), names):
        found = load_groups(given, 3)
        assert found[0] == found[2] != found[1]


def test_impossible_groups_are_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "groups.txt"
    text.write_text("a\n\nb\n")
    other = tmp_path / "groups.json"
    other.write_text("[]")
    impossible: tuple[tuple[Any, str], ...] = (
        (str(text), "line 2 is empty"),
        (str(other), "groups are read from"),
        (str(tmp_path / "none.txt"), "does not exist"),
        (["a", "b"], "2 groups for 3 samples"),
        ([0.5, 1.5, 2.5], "no list of groups"),
    )
    for groups, message in impossible:
        with pytest.raises(SamplesError, match=message) as caught:
            load_groups(groups, 3)
        assert "\n" not in str(caught.value)


def test_subfolders_are_groups_of_the_samples_in_them(tmp_path: Path) -> None:
    for number, (name, count) in enumerate((("first", 2), ("second", 3))):
        (tmp_path / name).mkdir()
        for index in range(count):
            np.save(tmp_path / name / f"{index}.npy", np.full((1, 2), number, np.float32))
    samples = load_samples(tmp_path, INPUTS, groups=FOLDERS)
    assert samples.groups is not None
    assert samples.groups.tolist() == [0, 0, 1, 1, 1]
    assert samples.take(np.arange(5))["x"][:, 0].tolist() == [0, 0, 1, 1, 1]
    drawn = load_samples(tmp_path, INPUTS, max_samples=3, groups=FOLDERS)
    assert drawn.groups is not None
    assert drawn.groups.tolist() == drawn.take(np.arange(3))["x"][:, 0].tolist()


def test_folders_need_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(SamplesError, match="has no subfolders"):
        load_samples(tmp_path, INPUTS, groups=FOLDERS)
    for source in (tmp_path / "x.npy", np.zeros((4, 2), np.float32)):
        with pytest.raises(SamplesError, match="give a folder that holds a folder per group"):
            load_samples(source, INPUTS, groups=FOLDERS)
