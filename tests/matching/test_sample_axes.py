"""Blocks whose tensors hold no samples have no partner, with the tensor and the reason."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.matching.pairing import Partner
from fskd_onnx.matching.sample_axes import leave_without_samples
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

TEXT = """g (float[N,6] x, float[3,6] c) => (float[N,4] y)
  <float[6,8] w, float[6,8] v, float[8,4] u> {
    [a] p = MatMul (x, w)
    [b] q = MatMul (c, v)
    r = ReduceMean <axes = [0]> (q)
    s = Add (p, r)
    m = ReduceMean <axes = [0]> (s)
    [d] t = MatMul (m, u)
    [e] z = MatMul (s, u)
    y = Add (z, t)
}"""


def test_blocks_without_samples_are_left_alone() -> None:
    model = build(TEXT, opset=13)
    arrays = {"x": np.random.default_rng(0).standard_normal((9, 6)), "c": np.ones((3, 6))}
    samples = load_samples(
        {name: array.astype(np.float32) for name, array in arrays.items()}, input_specs(model)
    )
    batches, runtime = plan_batches([np.arange(9)], 2, None), open_runtime(["cpu"])
    decoded = DecodedSamples(samples, batches, TensorStore(), runtime.device)
    graphs = gs.import_onnx(model), gs.import_onnx(model)
    given = [
        Partner(name, output, confidence=0.5) for name, output in zip("abde", "pqtz", strict=True)
    ]
    given.append(Partner("f", None, reason="no counterpart"))
    found = {p.student: p for p in leave_without_samples(given, graphs, runtime, decoded, batches)}
    assert list(found) == list("abdef")
    assert [found[name] for name in "aef"] == [given[0], given[3], given[4]]
    assert found["b"].teacher is found["d"].teacher is None
    assert found["b"].reason == (
        "the teacher's tensor 'c' holds no samples: it is the same for all samples"
    )
    assert found["d"].reason == (
        "the teacher's tensor 'm' holds no samples: it does not keep the samples of a batch apart"
    )
