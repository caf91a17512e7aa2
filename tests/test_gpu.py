"""The check of a GPU: it finds what differs, and says where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from tests import gpu
from tests.benchmarks.speed import Case


def test_the_cpu_is_as_the_cpu() -> None:
    found = list(gpu.checks(gpu.CPU, 40))
    assert [check.what.split(",")[0] for check in found] == [
        *("block outputs", "outputs fitted", "error reported", "outputs fitted", "error reported")
    ]
    assert all(check.holds for check in found), list(map(str, found))
    assert found[0].found == 0.0


def test_what_differs_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, calls = gpu.block_outputs, []

    def spoilt(runtime: object, count: int) -> object:
        names, values = outputs(runtime, count)  # type: ignore[arg-type]
        calls.append(runtime)
        if len(calls) == 2:
            values[3] = values[3] + np.float32(1.0)
        return names, values

    monkeypatch.setattr(gpu, "block_outputs", spoilt)
    monkeypatch.setattr(gpu, "GPU", gpu.CPU)
    monkeypatch.setattr(gpu, "_SPEED", (Case("chain-2", 40, "pointwise"),))
    monkeypatch.setattr(gpu.checks, "__defaults__", (24,))
    assert gpu.main() == 1
    out = capsys.readouterr().out
    assert out.count("NOT AS ON THE CPU") == 1
    assert "| chain-2 | 40 | pointwise |" in out


def test_a_machine_without_a_gpu_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "GPU", ("nonesuch",))
    assert gpu.main() == 0
    assert "no GPU, so nothing is checked: provider 'nonesuch'" in capsys.readouterr().out
