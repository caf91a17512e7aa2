"""Providers by name, as the user meets them: they work, or one line says why not."""

from __future__ import annotations

import logging
import subprocess
import sys

import onnxruntime
import pytest

from fskd_onnx import providers
from fskd_onnx.errors import ProviderError
from fskd_onnx.providers import open_runtime
from tests.helpers import DEMO, build

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def compare(names: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "fskd_onnx.cli", "compare"),
            *(DEMO / "teacher.onnx", DEMO / "student.onnx", DEMO / "samples"),
            *("--preprocess", "fashion-mnist", "--max-samples", "2", "--providers", names, *more),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that was built for CUDA on a machine where a library of it is missing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(
        providers, "_why_not", lambda name: "libx.so is missing" if name == CUDA else None
    )


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(providers, "_why_not", lambda name: None)


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_names_are_short_or_full_in_any_case(name: str) -> None:
    runtime = open_runtime([name])
    assert (runtime.providers, runtime.device) == ((CPU,), "cpu")


@pytest.mark.usefixtures("with_cuda")
@pytest.mark.parametrize("names", [["auto"], ["AUTO"], ["cuda"], ["Cuda", "cpu"], [CUDA, CPU]])
def test_tensors_stay_where_the_first_provider_is(names: list[str]) -> None:
    runtime = open_runtime(names)
    assert (runtime.providers, runtime.device) == ((CUDA, CPU), "cuda")


@pytest.mark.usefixtures("with_cuda")
def test_the_order_is_the_users() -> None:
    runtime = open_runtime(["cpu", "cuda"])
    assert (runtime.providers, runtime.device) == ((CPU, CUDA), "cpu")


@pytest.mark.usefixtures("without_cuda")
def test_auto_falls_back_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fskd_onnx.providers"):
        assert open_runtime(["auto"]).providers == (CPU,)
    assert caplog.messages == ["running on the CPU: libx.so is missing"]


@pytest.mark.usefixtures("without_cuda")
def test_what_is_named_never_falls_back() -> None:
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider.*libx\.so is missing"):
        open_runtime(["cuda", "cpu"])


def test_a_provider_that_the_runtime_does_not_have_is_told_from_those_it_has() -> None:
    with pytest.raises(ProviderError, match=r"'abacus' is not part .* it has: .*cpu"):
        open_runtime(["abacus"])


def test_a_session_runs_where_it_was_told() -> None:
    model = build("net (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    assert open_runtime(["cpu"]).session(model).get_providers() == [CPU]


@pytest.mark.parametrize("short", ["cuda", "CUDA,cpu", "tensorrt", "abacus"])
def test_a_provider_that_cannot_be_used_is_exactly_one_line(short: str) -> None:
    done = compare(short)
    if done.returncode == 0:  # this machine has what the provider needs
        assert done.stderr == ""
        return
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: provider '")
    assert short.split(",")[0].lower() in line.lower()


def test_auto_is_silent_unless_asked() -> None:
    quiet, verbose = compare("auto"), compare("auto", "-v")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    (line,) = verbose.stderr.splitlines()
    assert line.startswith("running on ")
