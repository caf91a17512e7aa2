"""Whole models on samples; what is wrong is said of what it is wrong with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue
from PIL import Image

from fskd_onnx.errors import ModelError, SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.runtime import session_run, whole_network
from fskd_onnx.runtime.forward import ForwardResult, common_outputs, forward
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import upload
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import Array, build


def test_a_sample_that_cannot_be_read_is_no_fault_of_the_model(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    model = build("net (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu(x) }")
    samples = load_samples(tmp_path, input_specs(model), Preprocess(preset="unit"))
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(SamplesError, match=r"^\S*b\.png: "):
        forward(open_runtime(["cpu"]), model, samples, np.arange(2), None, "model.onnx")


# Rows on every axis, rows that are the same, rows that depend on the data, and no numbers at all.
TEXT = """net (float[{n},5,6] x) => ({n_out} y, float[5,{n},6] second, float[{m},6] rows,
    float[{m},6] time, float[3] table, float[K] some, string[{n}] words)
  <int64[2] flat = {{-1,6}}, float[3] t, string[2] names, float zero> {{
    y = ReduceMean <axes = [1,2], keepdims = 0> (x)
    second = Transpose <perm = [1,0,2]> (x)
    rows = Reshape (x, flat)
    time = Reshape (second, flat)
    table = Identity (t)
    positive = Greater (y, zero)
    [some_n] some = Compress <axis = 0> (y, positive)
    index = Cast <to = 7> (positive)
    words = Gather (names, index)
}}"""


def network(n: str | int) -> onnx.ModelProto:
    text = TEXT.format(n=n, m="M" if n == "N" else int(n) * 5, n_out=f"float[{n}]")
    return build(text, {"names": np.array(["a", "b"], object), "zero": 0}, opset=13)


def outputs(n: str | int, count: int, size: int | None = None) -> tuple[ForwardResult, Array]:
    x = np.random.default_rng(0).standard_normal((count, 5, 6)).astype(np.float32)
    model = network(n)
    samples = load_samples(x, input_specs(model))
    everything = np.arange(count)
    return forward(open_runtime(["cpu"]), model, samples, everything, size, "net"), x


@pytest.mark.parametrize(("n", "size"), [("N", None), ("N", 4), (4, None), (3, 4), ("N", 7)])
def test_every_row_of_every_output_comes_sample_by_sample(n: str | int, size: int | None) -> None:
    found, x = outputs(n, 37, size)
    assert list(found.values) == ["y", "second", "rows", "time"]
    for name in ("second", "rows", "time"):
        np.testing.assert_array_equal(found.values[name], x)
    y = np.asarray(found.values["y"], np.float32)
    np.testing.assert_allclose(y, x.mean((1, 2)), rtol=1e-4, atol=1e-6)
    assert found.left_out == {
        "table": "it is the same for all samples",
        "some": "the number of its rows depends on the data (Compress 'some_n')",
        "words": "it holds no numbers",
    }


def test_one_sample_at_once_is_the_whole_output() -> None:
    found, x = outputs(1, 9)
    for name in ("second", "rows", "time"):
        np.testing.assert_array_equal(found.values[name].reshape(x.shape), x)
    assert list(found.left_out) == ["table", "some", "words"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples(count: int) -> None:
    found, x = outputs("N", count)
    np.testing.assert_array_equal(found.values["rows"], x)
    assert "some" in found.left_out


def test_outputs_that_cannot_be_compared_are_left_out_by_both_networks() -> None:
    result = ForwardResult({"a": np.zeros(3), "b": np.zeros(3)}, {}, {"c": "a table"})
    other = ForwardResult({"d": np.zeros(3), "f": np.zeros(3)}, {}, {"e": "some rows"})
    names = [("a", "d"), ("b", "e"), ("c", "f")]
    compared, left_out = common_outputs((result, other), names, "big")
    assert compared == [("a", "d")]
    assert left_out == (("b", "some rows"), ("c", "a table"))
    with pytest.raises(ModelError, match=r"^big: no output can be compared .*'b': some rows") as e:
        common_outputs((result, other), names[1:], "big")
    assert "in front of it" in str(e.value)


def test_an_output_that_mixes_samples_is_refused_by_its_name() -> None:
    model = build("g (float[N,6] x) => (float[N,6] y) { y = Softmax <axis = 0> (x) }")
    samples = load_samples(np.eye(6, dtype=np.float32), input_specs(model))
    with pytest.raises(ModelError, match=r"^g: its output 'y' does not keep samples apart"):
        forward(open_runtime(["cpu"]), model, samples, np.arange(6), None, "g")


def test_known_axes_are_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found, x = outputs("N", 9)
    model, runs = network("N"), []
    samples = load_samples(x, input_specs(model))
    take = samples.take

    def counted(indices: NDArray[np.intp]) -> dict[str, Array]:
        runs.append(len(indices))
        return take(indices)

    monkeypatch.setattr(samples, "take", counted)
    some = {"time": found.axes["time"]}
    again = forward(open_runtime(["cpu"]), model, samples, np.arange(9), 3, "net", axes=some)
    np.testing.assert_array_equal(again.values["time"], x)
    assert (list(again.values), runs) == (["time"], [3, 3, 3])
    wrong = {"some": found.axes["y"]}
    with pytest.raises(ModelError, match="output 'some': the number of its rows depends on the"):
        forward(open_runtime(["cpu"]), model, samples, np.arange(9), 3, "net", axes=wrong)


@pytest.mark.parametrize("written", [1, 4])
def test_a_batch_size_that_a_reshape_states_is_told(
    written: int, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "g (float[N,6] x) => (float[%d,6] y) <int64[3] s = {%d,3,2}, int64[2] t = {%d,6}>"
    model = build(
        text % (written, written, written)
        + " { [r] a = Reshape(x, s) b = Relu(a) y = Reshape(b, t) }"
    )
    x = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    samples, runtime = load_samples(x, input_specs(model)), open_runtime(["cpu"])
    with pytest.raises(ModelError) as caught:
        forward(runtime, model, samples, np.arange(10), None, "a.onnx")
    message = str(caught.value)
    assert message.startswith(f"a.onnx: ONNX Runtime runs it on batches of {written} and not")
    assert "node 'r' (Reshape)" in message
    assert message.endswith(f"give --batch-size {written}")
    assert "\n" not in message
    assert "onnxruntime" not in message
    assert capfd.readouterr().err == ""
    found = forward(runtime, model, samples, np.arange(10), written, "a.onnx")
    np.testing.assert_array_equal(found.values["y"], np.maximum(x, 0))


def on_device(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    x: Array,
    compute: Callable[[Array], Array],
    *,
    also_on_cpu: bool = True,
) -> ForwardResult:
    """Run a network on a device that computes ``y`` of ``x`` by a function."""
    host, make = open_runtime(["cpu"]), Runtime.session

    def session(runtime: Runtime, model: onnx.ModelProto) -> InferenceSession:
        if runtime.device == "cpu" and not also_on_cpu:
            raise RuntimeError("there is no kernel")
        return make(host, model)

    def run(
        session: InferenceSession, feeds: dict[str, OrtValue], outputs: list[str], device: str
    ) -> dict[str, OrtValue]:
        if device == "cpu":
            return session_run.run(session, feeds, outputs, device)
        return {"y": OrtValue.ortvalue_from_numpy(compute(feeds["x"].numpy()))}

    with monkeypatch.context() as patch:
        patch.setattr(whole_network, "run", run)
        patch.setattr(whole_network, "upload", lambda feeds, _: upload(feeds, "cpu"))
        patch.setattr(Runtime, "session", session)
        model = build(text)
        samples = load_samples(x, input_specs(model))
        runtime = replace(host, device="cuda", providers=("SomeExecutionProvider",))
        return forward(runtime, model, samples, np.arange(len(x)), None, "net")


PLAIN = "g (float[N,6] x) => (float[N,6] y) { y = Relu (x) }"


@pytest.mark.parametrize("text", [PLAIN, PLAIN.replace("[N", "[1")])
def test_a_device_gives_what_the_cpu_gives(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)

    def rounded(x: Array) -> Array:
        return np.maximum(x, 0) + np.float32(1e-5)

    found = on_device(monkeypatch, text, x, rounded)
    np.testing.assert_array_equal(found.values["y"].reshape(7, 6), rounded(x))
    with pytest.raises(ModelError, match=r"^net: its output 'y' is not the same on SomeExec.* and"):
        on_device(monkeypatch, text, x, lambda x: 5 - x)


def test_a_device_may_differ_as_integer_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)
    found = on_device(monkeypatch, PLAIN, x, lambda x: np.maximum(x, 0) + np.float32(0.1))
    assert list(found.values) == ["y"]


def test_classes_of_a_device_may_be_others(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,6] x) => (int64[N] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"
    x = np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)
    found = on_device(monkeypatch, text, x, lambda x: np.argmin(x, axis=1))
    np.testing.assert_array_equal(found.values["y"], np.argmin(x, axis=1))


def test_what_only_the_cpu_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[N,6] x) => (float[N,6] y) <float[3,6] table> {
        token = ArgMax <axis = 1, keepdims = 0> (x)
        y = Gather (table, token)
    }"""
    x = np.eye(6, dtype=np.float32)[[5, 0, 1, 2]]
    with pytest.raises(ModelError, match="indices element out of data bounds"):
        on_device(monkeypatch, text, x, lambda x: x)


def test_what_only_a_device_can_run_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).standard_normal((7, 6)).astype(np.float32)
    found = on_device(monkeypatch, PLAIN, x, lambda x: 5 - x, also_on_cpu=False)
    np.testing.assert_array_equal(found.values["y"], 5 - x)
