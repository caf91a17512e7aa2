"""Dropouts run as in inference: in the graph, in bodies, in functions."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.passes.run_as_inference import run_as_inference
from tests.helpers import build, check, run

X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "text",
    [
        """g (float[N,4] x) => (float[N,4] y) <float r> {
            t = Constant <value = bool {1}> ()
            y = Dropout (x, r, t)
        }""",
        """g (float[N,4] x) => (float[N,4] y) <float r> {
            t = Constant <value = bool {1}> ()
            y = If (t) <
                then_branch = one () => (float[N,4] a) { a, mask = Dropout (x, r, t) },
                else_branch = two () => (float[N,4] a) { a = Relu (x) }>
        }""",
        """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[N,4] x) => (float[N,4] y) { y = my.Drop (x) }
        <domain: "my", opset_import: ["": 17]>
        Drop (a) => (b) { t = Constant <value = bool {1}> ()  b = Dropout (a, , t) }""",
    ],
)
def test_nothing_is_dropped(text: str) -> None:
    model = build(text, {"r": np.array(0.5)})
    run_as_inference(model)
    check(model)
    found = run(model, {"x": X})["y"]
    np.testing.assert_array_equal(found, X)
    again = model.SerializeToString()
    run_as_inference(model)
    assert model.SerializeToString() == again
