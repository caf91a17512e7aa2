"""Providers by name, as the user meets them: they work, or one line says why not."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from fskd_onnx.errors import ProviderError
from fskd_onnx.passes.analysis.segments import Segment
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.passes.separate_weights import Separated, separate
from fskd_onnx.runtime import providers
from fskd_onnx.runtime.providers import Runtime, open_runtime
from tests.helpers import DEMO, build, random_feeds

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def compare(names: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "fskd_onnx", "compare"),
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
    with caplog.at_level(logging.INFO, "fskd_onnx.runtime.providers"):
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


def test_only_what_users_run_is_as_the_runtime_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    class Session:
        def __init__(self, *_: object, providers: object) -> None:
            given.append(providers)

        def disable_fallback(self) -> None: ...

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    runtime = Runtime((CUDA, CPU), "cuda")
    model = build("net (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    for one in (runtime, replace(runtime, as_users_run=True)):
        one.session(model)
    settings = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    assert given == [[(CUDA, settings), (CPU, {})], [(CUDA, {}), (CPU, {})]]


# x ─▶ Conv (w) ─▶ BatchNormalization ─▶ Add (u) ─▶ If (MatMul (m) | Identity) ─▶ Cast ─▶ Mul (k)
# The runtime folds w, packs m, and hands u and k to its kernels as they are.
MANY_USES = """g (float[N,32,8,64] x, bool c) => (float16[N,32,8,64] z)
  <float[32,32,3,3] w, float[32] scale, float[32] shift, float[32] mean, float[32] var,
   float[32,8,64] u, float[64,64] m, float16[32,8,64] k> {
    a = Conv <pads = [1,1,1,1]> (x, w)
    n = BatchNormalization (a, scale, shift, mean, var)
    s = Add (n, u)
    i = If (c) <
        then_branch = one () => (float[N,32,8,64] p) { p = MatMul (s, m) },
        else_branch = two () => (float[N,32,8,64] q) { q = Identity (s) }>
    h = Cast <to = 10> (i)
    z = Mul (h, k)
}"""


def test_weights_that_are_on_loan_may_change_once_there_is_a_session() -> None:
    model = build(MANY_USES)
    feeds = random_feeds(model) | {"c": np.array(True)}
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    expected = plain.run(None, feeds)
    apart = separate(model)
    weights = {name: values.copy() for name, values in apart.weights.items()}
    assert set(weights) == {"w", "u", "m", "k"}
    session = open_runtime(["cpu"]).session(Separated(apart.model, weights))
    for values in weights.values():
        values[...] = 0
    for value, other in zip(session.run(None, feeds), expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_weights_of_bfloat16_are_handed_over_as_bits() -> None:
    # x ─▶ Gather (w) ─▶ Cast ─▶ z
    model = build("""g (int64[N] x) => (float[N,64] z) <float[256,64] w> {
        h = Gather (w, x)
        z = Cast <to = 1> (h)
    }""")
    bits = np.arange(256 * 64, dtype="<u2").reshape(256, 64)
    model.graph.initializer[0].CopyFrom(
        onnx.helper.make_tensor(
            "w", onnx.TensorProto.BFLOAT16, bits.shape, bits.tobytes(), raw=True
        )
    )
    assert list(separate(model).weights) == ["w"]
    [found] = open_runtime(["cpu"]).session(model).run(None, {"x": np.array([1, 200])})
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found, expected[[1, 200]])


def test_weights_that_are_transposed_in_memory_are_handed_over_in_order() -> None:
    model = build("g (float[N,64] x) => (float[N,128] z) <float[64,128] w> { z = MatMul (x, w) }")
    graph = gs.import_onnx(model)
    constant = graph.tensors()["w"]
    constant.values = np.asfortranarray(constant.values)
    part = extract(graph, Segment(("x",), ("z",), ()), {"x": model.graph.input[0].type})
    assert list(part.weights) == ["w"]
    feeds = random_feeds(model)
    runtime = open_runtime(["cpu"])
    [found] = runtime.session(part).run(None, feeds)
    np.testing.assert_array_equal(found, runtime.session(model).run(None, feeds)[0])


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


def test_dropouts_in_training_mode_run_as_inference() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float r> {
        t = Constant <value = bool {1}> ()
        y = Dropout (x, r, t)
    }"""
    model = build(text, {"r": 0.5})
    before = model.SerializeToString()
    x = np.ones((32, 4), np.float32)
    session = open_runtime(["cpu"]).session(model)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)
    assert model.SerializeToString() == before
