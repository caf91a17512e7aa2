"""Every node that holds weights and is left alone is listed with the reason."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.linear import Refusal, find_linear
from tests.helpers import build

# x ─▶ [one node] ─▶ y
ALONE = {
    "QLinearConv": (
        """g (uint8[N,4,5] x) => (uint8[N,6,5] y) <int8[6,4,1] w, float s, uint8 z, int8 n>
        { [n] y = QLinearConv (x, s, z, w, s, n, s, z) }""",
        "it is quantized",
    ),
    "MatMulInteger": (
        "g (uint8[N,4] x) => (int32[N,6] y) <uint8[4,6] w> { [n] y = MatMulInteger (x, w) }",
        "it is quantized",
    ),
    "DequantizeLinear": (
        """g (float[N,4] x) => (float[N,6] y) <uint8[4,6] w, float s>
        { d = DequantizeLinear (w, s) [n] y = MatMul (x, d) }""",
        "its weight 'd' is quantized",
    ),
    "quantized bias": (
        """g (float[N,4,5] x) => (float[N,6,5] y) <float[6,4,1] w, int32[6] b, float s>
        { d = DequantizeLinear (b, s) [n] y = Conv (x, w, d) }""",
        "its bias 'd' is quantized",
    ),
    "computed": (
        """g (float[N,4] x, float[4,6] w) => (float[N,6] y)
        { v = Exp (w) [n] y = Gemm (x, v) }""",
        "its weight 'v' is computed by Exp, not stored",
    ),
    "vector": (
        "g (float[4] x) => (float[6] y) <float[4,6] w> { [n] y = MatMul (x, w) }",
        "its input 'x' is a vector",
    ),
    "empty": (
        "g (float[N,0] x) => (float[N,6] y) <float[0,6] w> { [n] y = MatMul (x, w) }",
        "its weight 'w' is empty",
    ),
    "embedding": (
        "g (int64[N,5] x) => (float[N,5,6] y) <float[9,6] w> { [n] y = Gather (w, x) }",
        "it looks up rows of its table 'w', which is no linear map",
    ),
    "GRU": (
        """g (float[5,N,3] x) => (float[A,B,C,D] y) <float[1,12,3] w, float[1,12,4] r>
        { [n] y = GRU <hidden_size = 4> (x, w, r) }""",
        "adapters cannot be fused into 'GRU'",
    ),
    "LSTM of computed weights": (
        """g (float[5,N,3] x) => (float[A,B,C,D] y)
        <float[1,8,3] w, float[1,8,3] v, float[1,16,4] r> {
            u = Concat <axis = 1> (w, v)
            [n] y = LSTM <hidden_size = 4> (x, u, r)
        }""",
        "adapters cannot be fused into 'LSTM'",
    ),
    "Einsum": (
        """g (float[N,4] x) => (float[N,6] y) <float[4,6] w>
        { [n] y = Einsum <equation = "bi,io->bo"> (x, w) }""",
        "adapters cannot be fused into 'Einsum'",
    ),
    "If": (
        """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w> {
            [n] y = If (c) <
                then_branch = t () => (float[N,4] p) { p = MatMul (x, w) },
                else_branch = e () => (float[N,4] q) { q = Relu (x) }
            >
        }""",
        "linear nodes in its bodies",
    ),
    "LSTM in a body": (
        """g (float[5,N,3] x, bool c, float[A,B,C,D] s) => (float[A,B,C,D] y)
        <float[1,16,3] w, float[1,16,4] r> {
            [n] y = If (c) <
                then_branch = t () => (float[A,B,C,D] p) { p = LSTM <hidden_size = 4> (x, w, r) },
                else_branch = e () => (float[A,B,C,D] q) {
                    q = If (c) <
                        then_branch = f () => (float[A,B,C,D] o) {
                            h = MatMul (x, x)
                            o = GRU <hidden_size = 4> (h, w, r)
                        },
                        else_branch = h () => (float[A,B,C,D] u) { u = Identity (s) }
                    >
                }
            >
        }""",
        "linear and recurrent nodes in its bodies run",
    ),
    "another domain": (
        """<ir_version: 8, opset_import: ["": 17, "my": 1]>
        g (float[N,4] x) => (float[N,6] y) <float[4,6] w = {1}> { [n] y = my.Dense (x, w) }""",
        "its operator 'my.Dense' is not one of ONNX",
    ),
    "function": (
        """<ir_version: 10, opset_import: ["": 20, "my": 1]>
        g (float[N,4] x) => (float[N,4] y) { [n] y = my.Dense (x) }
        <domain: "my", opset_import: ["": 20]> Dense (a) => (r) {
            w = Constant <value = float[1,1] {2}> ()
            r = Gemm (a, w)
        }""",
        "linear nodes inside of a function",
    ),
    "function that calls another": (
        """<ir_version: 10, opset_import: ["": 20, "my": 1]>
        g (float[5,N,4] x) => (float[A,B,C,D] y) { [n] y = my.Outer (x) }
        <domain: "my", opset_import: ["": 20, "my": 1]> Outer (a) => (r) { r = my.Cell (a) }
        <domain: "my", opset_import: ["": 20]> Cell (a) => (r) {
            w = Constant <value = float[1,4,4] {2}> ()
            r = RNN <hidden_size = 4> (a, w, w)
        }""",
        "recurrent nodes inside of a function",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_left_alone_is_said(name: str) -> None:
    text, reason = ALONE[name]
    model = onnx.parser.parse_model(text) if text.startswith("<") else build(text)
    [refusal] = find_linear(gs.import_onnx(model))
    assert isinstance(refusal, Refusal)
    assert refusal.name == "n"
    assert refusal.reason.startswith(reason)


def test_an_output_that_is_left_out_gives_no_name() -> None:
    # x ─▶ LSTM (only its last state is read) ─▶ y
    model = build("""g (float[5,N,3] x) => (float[A,B,C] y) <float[1,16,3] w, float[1,16,4] r>
        { all, y = LSTM <hidden_size = 4> (x, w, r) }""")
    model.graph.node[0].output[0] = ""
    [refusal] = find_linear(gs.import_onnx(model))
    assert refusal.name == "y"


def test_nodes_without_weights_are_not_listed() -> None:
    # x ─▶ PRelu, Gather (vectors) ─▶ Gather (a column) ─▶ If (no weights) ─▶ y
    model = build("""g (float[N,4] x, bool c, int64[N] ids) => (float[N,4] y)
      <float[4] slope, float[7] numbers, int64[4] order, int64[1] one = {1}> {
        p = PRelu (x, slope)
        e = Gather (numbers, ids)
        i = Gather <axis = 1> (p, order)
        u = Unsqueeze (e, one)
        s = Add (i, u)
        y = If (c) <
            then_branch = t () => (float[N,4] a) { a = Neg (s) },
            else_branch = e () => (float[N,4] b) { b = Abs (s) }
        >
    }""")
    assert find_linear(gs.import_onnx(model)) == []
