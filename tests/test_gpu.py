"""The check of a GPU: it finds what differs, and says where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import gpu
from tests.benchmarks.speed import Case


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_STEPS", 2)


def test_the_cpu_is_as_the_cpu() -> None:
    found = list(gpu.checks(gpu.CPU, 64, "pointwise"))
    assert [check.what.split(",")[0] for check in found] == [
        *("block outputs", "outputs fitted", "error reported", "outputs fitted", "error reported"),
        "error",
    ]
    assert all(check.holds for check in found), list(map(str, found))
    assert found[0].found == 0.0


def test_what_differs_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
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
    monkeypatch.setattr(gpu.checks, "__defaults__", (64, "pointwise"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "no GPU")
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- /gpu -->\n")
    assert gpu.main(["--write", str(page)]) == 1
    for text in (capsys.readouterr().out, page.read_text()):
        assert text.count("NOT AS ON THE CPU") == 1
        assert "| chain-2 | 40 | pointwise |" in text


def test_a_machine_without_a_gpu_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "GPU", ("nonesuch",))
    assert gpu.main() == 0
    assert "no GPU, so nothing is checked: provider 'nonesuch'" in capsys.readouterr().out
