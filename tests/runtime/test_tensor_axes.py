"""Tensors inside of a network: shapes tell, or two runs of the network up to them."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.runtime import tensor_axes
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.sample_axis import Failing, FoundAxis, SampleAxis
from fskd_onnx.runtime.tensor_axes import find_axes
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.helpers import build

# Images, then tokens, which are joined with the samples, once in front of them and once behind.
TEXT = """net (float[{n},2,3,3] x, float[3,4] shared) => (float[{n},4] y)
  <float[4,2,1,1] w, float[4,4] v, int64[2] flat = {{-1,4}}, int64[3] apart = {{-1,9,4}}> {{
    a = Conv (x, w)
    f = Flatten (a)
    tokens = Transpose <perm = [0,2,3,1]> (a)
    rows = Reshape (tokens, flat)
    first = Transpose <perm = [2,3,0,1]> (a)
    interleaved = Reshape (first, flat)
    b = MatMul (rows, v)
    c = Reshape (b, apart)
    time = Transpose <perm = [1,0,2]> (c)
    table = MatMul (shared, v)
    mean = ReduceMean <axes = [0]> (c)
    y = ReduceMean <axes = [1], keepdims = 0> (c)
}}"""
EXPECTED: dict[str, FoundAxis] = {
    "x": SampleAxis(),
    "shared": Failing.CONSTANT,
    "a": SampleAxis(),
    "f": SampleAxis(),
    "rows": SampleAxis(0, 9),
    "interleaved": SampleAxis(0, 9, interleaved=True),
    "c": SampleAxis(),
    "time": SampleAxis(1),
    "table": Failing.CONSTANT,
    "mean": Failing.MIXED,
    "y": SampleAxis(),
}


def axes(text: str, names: list[str], size: int | None = None, **arrays: Any) -> Any:
    model = build(text, opset=13)
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((11, 2, 3, 3)), "shared": rng.standard_normal((3, 4))}
    given |= arrays
    specs = input_specs(model)
    samples = load_samples({k: v.astype(np.float32) for k, v in given.items()}, specs)
    runtime, folds = open_runtime(["cpu"]), np.array_split(np.arange(11), 3)
    batches = plan_batches(folds, 2, size or fixed_batch_size(samples.inputs))
    decoded = DecodedSamples(samples, batches, TensorStore(), runtime.device)
    return find_axes(runtime, gs.import_onnx(model), decoded, batches, names)


@pytest.mark.parametrize(("n", "size"), [("N", None), ("N", 3), (2, None)])
def test_samples_are_found(n: object, size: int | None) -> None:
    assert axes(TEXT.format(n=n), list(EXPECTED), size) == EXPECTED


def test_a_network_of_one_sample_at_once() -> None:
    found = axes(TEXT.format(n=1), ["a", "rows", "time", "table"])
    assert found == {
        "a": SampleAxis(),
        "rows": SampleAxis(0, 9),
        "time": SampleAxis(0, 9),
        "table": Failing.CONSTANT,
    }


def test_nothing_runs_where_shapes_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_axes, "_from_runs", None)
    assert set(axes(TEXT.format(n="N"), ["x", "a", "f", "shared"]).values()) == {
        SampleAxis(),
        Failing.CONSTANT,
    }


def test_what_does_not_run_is_named() -> None:
    written = TEXT.format(n="N").replace("{-1,4}", "{36,4}")
    with pytest.raises(ModelError, match=r"^net: ONNX Runtime cannot run it: .*--batch-size") as e:
        axes(written, ["b"])
    assert "\n" not in str(e.value)
    assert axes(written, ["b", "time"], 4) == {"b": SampleAxis(0, 9), "time": SampleAxis(1)}


def test_a_vector_of_all_samples_takes_no_more_memory_than_a_matrix() -> None:
    """As exporters write strides; inference of shapes keeps the values of vectors."""
    text = """net (float[N,2,3,3] x, float[3,4] shared) => (float[N,300] y)
      <float[18,300] w, int64[1] all = {-1}, int64 zero, int64 one = {1}, int64[1] last = {1},
       int64 stride = {300}, int64[300] within> {
        f = Flatten (x)
        h = MatMul (f, w)
        vector = Reshape (h, all)
        extents = Shape (x)
        n = Gather (extents, zero)
        numbers = Range (zero, n, one)
        begins = Mul (numbers, stride)
        rows = Unsqueeze (begins, last)
        places = Add (rows, within)
        y = Gather (vector, places)
    }"""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30, hard))
    try:
        assert axes(text, ["h", "y"]) == {"h": SampleAxis(), "y": SampleAxis()}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
