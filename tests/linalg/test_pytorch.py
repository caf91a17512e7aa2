"""PyTorch is loaded so that its threads sleep soon; what a user has set for them stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fskd_onnx.errors import FskdError
from fskd_onnx.linalg.pytorch import load_torch

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
# In the place of PyTorch: keeps what its library of threads would read.
FAKE = f"import os\nread = [os.environ.get(name) for name in {VARIABLES}]\n"


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, ["2000", None]),
        ({"GOMP_SPINCOUNT": "7"}, ["7", None]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [None, "ACTIVE"]),
    ],
)
def test_threads_sleep_soon_unless_a_user_has_set_that(
    given: Mapping[str, str],
    read: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "torch.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    loaded = load_torch("steps need", "leave them out")
    assert loaded.read == read
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == given
    assert load_torch("steps need", "leave them out") is loaded
    monkeypatch.delitem(sys.modules, "torch")


def test_without_it_the_extra_and_the_other_way_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    before = dict(os.environ)
    with pytest.raises(
        FskdError, match=r"^steps need PyTorch, which is not installed; .* or leave them out$"
    ):
        load_torch("steps need", "leave them out")
    assert dict(os.environ) == before
