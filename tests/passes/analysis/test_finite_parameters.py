"""Parameters that are not finite are found by the initializer; masks are none."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.finite_parameters import find_not_finite
from tests.helpers import build

FORMS = [
    ("Gemm", "float[4,4] w", "[n] y = Gemm (x, w)"),
    ("bias of Gemm", "float[4,4] v, float[4] w", "[n] y = Gemm (x, v, w)"),
    ("MatMul", "float16[4,4] w", "c = Cast <to = 1> (w)  [n] y = MatMul (x, c)"),
    ("bfloat16", "bfloat16[4,4] w", "c = Cast <to = 1> (w)  [n] y = MatMul (x, c)"),
    ("bias of MatMul", "float[4,4] v, float[4] w", "[n] h = MatMul (x, v)  y = Add (h, w)"),
    ("computed", "float[4,4] w", "t = Transpose (w)  i = Identity (t)  [n] y = MatMul (x, i)"),
    (
        "BatchNormalization",
        "float[4] s, float[4] b, float[4] m, float[4] w",
        "[n] y = BatchNormalization (x, s, b, m, w)",
    ),
    ("LayerNormalization", "float[4] w", "[n] y = LayerNormalization (x, w)"),
]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("weights", "body"), [f[1:] for f in FORMS], ids=[f[0] for f in FORMS])
def test_the_initializer_and_its_node_are_named(weights: str, body: str, bad: float) -> None:
    text = f"g (float[N,4] x) => (float[N,4] y) <{weights}> {{ {body} }}"
    assert find_not_finite(gs.import_onnx(build(text))) == []
    shape = [4] if "[4] w" in weights else [4, 4]
    values = np.ones(shape)
    values[..., 1] = bad
    assert find_not_finite(gs.import_onnx(build(text, {"w": values}))) == [("w", "n")]


@pytest.mark.parametrize(
    "body",
    [
        "h = Add (x, w)  s = Softmax (h)  y = MatMul (s, v)",
        "c = Greater (x, v)  h = Where (c, x, w)  s = Softmax (h)  y = MatMul (s, v)",
        "h = MatMul (x, v)  c = Max (h, w)  y = Relu (c)",
    ],
)
def test_masks_are_legitimate(body: str) -> None:
    text = f"g (float[4,4] x) => (float[4,4] y) <float[4,4] v, float[4,4] w> {{ {body} }}"
    model = build(text, {"w": np.full((4, 4), -np.inf)})
    assert find_not_finite(gs.import_onnx(model)) == []


def test_double_precision_may_not_be_used_to_the_full() -> None:
    text = "g (double[N,4] x) => (double[N,4] y) <double[4,4] w> { [n] y = MatMul (x, w) }"
    for value, found in ((3e38, []), (-3e38, []), (1e39, [("w", "n")]), (-1e300, [("w", "n")])):
        model = build(text, {"w": np.full((4, 4), value)})
        assert find_not_finite(gs.import_onnx(model)) == found
