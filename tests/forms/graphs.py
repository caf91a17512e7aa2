"""Forms of whole graphs: topologies, interfaces, scopes, quantized parts, and the model zoo."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx

from tests.forms.form import Form, noisy, one, text
from tests.helpers import build, initializers, zoo_model

_CONV4 = "[one] y = Conv <pads = [1,1,1,1]> (x, w)"
_TWO = "float[4,4,3,3] w, float[4,4,1,1] k"

TOPOLOGIES = {
    "residual, Sum": Form(one(f"{_CONV4} r = Relu (y) s = Sum (r, x) [two] z = Conv (s, k)", _TWO)),
    "residual, Add": Form(one(f"{_CONV4} s = Add (y, x) r = Relu (s) [two] z = Conv (r, k)", _TWO)),
    "dense, Concat": Form(
        one(
            f"{_CONV4} r = Relu (y) c = Concat <axis = 1> (x, r) [two] z = Conv (c, k)",
            _TWO.replace("4,4,1,1", "4,8,1,1"),
        )
    ),
    "channel shuffle": Form(
        one(
            """[one] y = Conv <group = 2, pads = [1,1,1,1]> (x, w) a = Reshape (y, split)
            b = Transpose <perm = [0,2,1,3,4]> (a) c = Reshape (b, join)
            [two] z = Conv <group = 2> (c, k)""",
            """float[4,2,3,3] w, float[6,2,3,3] k, int64[5] split = {0,2,2,6,6},
            int64[4] join = {0,4,6,6}""",
        )
    ),
    "squeeze and excitation": Form(
        one(
            f"""{_CONV4} p = GlobalAveragePool (y) [s] q = Conv (p, d, e) r = Relu (q)
            [e] g = Conv (r, u, v) h = Sigmoid (g) m = Mul (y, h) [two] z = Conv (m, k)""",
            f"{_TWO}, float[2,4,1,1] d, float[2] e, float[4,2,1,1] u, float[4] v",
        )
    ),
    "Swish written out": Form(
        one(f"{_CONV4} s = Sigmoid (y) m = Mul (y, s) [two] z = Conv (m, k)", _TWO)
    ),
    "HardSwish written out": Form(
        one(
            f"""{_CONV4} a = Add (y, three) c = Clip (a, low, six) m = Mul (y, c) d = Div (m, six)
            [two] z = Conv (d, k)""",
            f"{_TWO}, float three = {{3}}, float low = {{0}}, float six = {{6}}",
        )
    ),
    "split, and joined by Add": Form(
        one(
            """l, r = Split <axis = 1> (x) [one] y = Conv (l, w) [two] h = Conv (r, k)
            z = Add (y, h)""",
            "float[5,2,1,1] w, float[5,2,1,1] k",
        )
    ),
    "pixel shuffle": Form(
        one(
            "[n] y = Conv <pads = [1,1,1,1]> (x, w) z = DepthToSpace <blocksize = 2> (y)",
            "float[8,4,3,3] w",
        )
    ),
    "LayerNormalization and Gelu": Form(
        text(
            """g (float[N,5,4] x) => (float[N,5,4] z)
            <float[4] s, float[4] t, float[4,8] w, float[8,4] k> {
                n = LayerNormalization (x, s, t)
                [up] u = MatMul (n, w)
                a = Gelu (u)
                [down] d = MatMul (a, k)
                z = Add (d, x)
            }""",
            opset=20,
        )
    ),
    "Clip written out": Form(
        one(
            f"{_CONV4} a = Max (y, low) c = Min (a, six) [two] z = Conv (c, k)",
            f"{_TWO}, float low = {{0}}, float six = {{6}}",
        )
    ),
    "pads that are put in order": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,3,6,6] z)
            <float[5,4,3,3] w, float[3,5,1,1] k, int64[4] given = {0,2,1,1}, int64[1] missing = {4},
             int64[2] pairs = {-1,2}, int64[1] zero = {0}, int64[1] last = {-1},
             int64[1] far = {-100}, int64[1] flat = {-1}> {
                none = ConstantOfShape <value = int64[1] {0}> (missing)
                ends = Concat <axis = 0> (given, none)
                by_axis = Reshape (ends, pairs)
                turned = Slice (by_axis, last, far, zero, last)
                in_order = Transpose <perm = [1,0]> (turned)
                pads = Reshape (in_order, flat)
                [one] y = Conv (x, w)
                p = Pad (y, pads)
                r = Relu (p)
                [two] z = Conv (r, k)
            }"""
        )
    ),
}

INTERFACES = {
    "dynamic dimensions": Form(
        text(
            "g (float[batch,4,h,w] x) => (float[batch,5,a,b] z) <float[5,4,3,3] k>"
            "{ [n] z = Conv (x, k) }"
        ),
        {"h": 7, "w": 5},
    ),
    "fixed batch": Form(
        text(
            "g (float[4,4,6,6] x) => (float[4,5,4,4] z) <float[5,4,3,3] k> { [n] z = Conv (x, k) }"
        )
    ),
    "several inputs and outputs": Form(
        text(
            """g (float[N,4,6,6] x, float[N,3] u) => (float[N,5,6,6] z, float[N,5] v)
            <float[5,4,1,1] w, float[3,5] k, int64[2] axes = {2,3}> {
                [conv] y = Conv (x, w)
                [fc] v = Gemm (u, k)
                b = Unsqueeze (v, axes)
                z = Add (y, b)
            }"""
        )
    ),
    "NHWC": Form(
        text(
            """g (float[N,6,6,4] x) => (float[N,4,4,5] z) <float[5,4,3,3] w> {
                t = Transpose <perm = [0,3,1,2]> (x)
                [conv] y = Conv (t, w)
                z = Transpose <perm = [0,2,3,1]> (y)
            }"""
        )
    ),
    "whole numbers in, embedding": Form(
        text(
            """g (int64[N,5] ids) => (float[N,5,4] z) <float[9,6] table, float[6,4] w, float[4] b> {
                e = Gather (table, ids)
                [n] h = MatMul (e, w)
                z = Add (h, b)
            }"""
        )
    ),
}

SCOPES = {
    "If": Form(
        text(
            """g (float[N,4] x) => (float[N,5] z) <float[4,4] w, float[4,5] k, float zero> {
                [before] y = Gemm (x, w)
                m = ReduceMax <keepdims = 0> (y)
                c = Less (zero, m)
                z = If (c) <
                    then_branch = t () => (float[N,5] p) { [inside] p = Gemm (y, k) },
                    else_branch = e () => (float[N,5] q) { [other] q = MatMul (y, k) }
                >
            }"""
        )
    ),
    "Loop": Form(
        text(
            """g (float[N,4] x) => (float[N,5] z) <float[4,4] w, float[4,4] l, float[4,5] k,
            int64 times = {2}, bool go = {1}> {
                [before] y = Gemm (x, w)
                u = Loop (times, go, y) <
                    body = b (int64 i, bool c, float[N,4] v) => (bool d, float[N,4] o) {
                        d = Identity (c)
                        [inside] o = MatMul (v, l)
                    }
                >
                [behind] z = Gemm (u, k)
            }"""
        )
    ),
    "Scan": Form(
        text(
            """g (float[N,5,4] x) => (float[N,5,4] z) <float[4,4] w, float[4,4] k, float[4,4] q> {
                [before] y = MatMul (x, w)
                t = Transpose <perm = [1,0,2]> (y)
                u = Scan <
                    num_scan_inputs = 1,
                    body = b (float[N,4] step) => (float[N,4] o) { [inside] o = MatMul (step, k) }
                > (t)
                v = Transpose <perm = [1,0,2]> (u)
                [behind] z = MatMul (v, q)
            }"""
        )
    ),
    "function of the model": Form(
        lambda: build(
            """<ir_version: 10, opset_import: ["": 20, "local": 1]>
            g (float[N,4] x) => (float[N,5] z) <float[4,4] w, float[4,4] l, float[4,5] k> {
                [before] y = Gemm (x, w)
                [call] u = local.Dense (y, l)
                [behind] z = Gemm (u, k)
            }
            <domain: "local", opset_import: ["": 20]> Dense (a, b) => (r) {
                m = MatMul (a, b)
                r = Relu (m)
            }"""
        )
    ),
    "operator of the runtime": Form(
        lambda: build(
            """<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>
            g (float[N,4] x) => (float[N,5] z) <float[4,4] w, float[4,4] l, float[4,5] k> {
                [before] y = Gemm (x, w)
                [fused] u = com.microsoft.FusedMatMul <alpha = 0.5> (y, l)
                [behind] z = Gemm (u, k)
            }"""
        )
    ),
    "operator that the runtime lacks": Form(
        lambda: build(
            """<ir_version: 10, opset_import: ["": 20, "my": 1]>
            g (float[N,4] x) => (float[N,5] z) <float[4,4] w, float[4,5] k> {
                [before] y = Gemm (x, w)
                u = my.Op (y)
                [behind] z = Gemm (u, k)
            }"""
        ),
        fails="ONNX Runtime cannot run it",
    ),
}


_FLOAT = """g (float[N,4,6,6] x) => (float[N,5,6,6] z)
    <float[4,4,3,3] w, float[6,4,1,1] k, float[5,6,1,1] l> {
        [one] y = Conv <pads = [1,1,1,1]> (x, w)
        r = Relu (y)
        [two] h = Conv (r, k)
        [three] z = Conv (h, l)
    }"""
_QUANTIZED = """g (float[N,4,6,6] x) => (float[N,5,6,6] z)
    <float[4,4,3,3] w, int8[6,4,1,1] kq, float[6] ks, float[5,6,1,1] l, float s = {0.05},
     uint8 zero = {128}, int8 none = {0}, float whole> {
        [one] y = Conv <pads = [1,1,1,1]> (x, w)
        r = Relu (y)
        rq = QuantizeLinear (r, s, zero)
        TWO
        [three] z = Conv (h, l)
    }"""
_QDQ = """rd = DequantizeLinear (rq, s, zero)
        kd = DequantizeLinear <axis = 0> (kq, ks)
        [two] h = Conv (rd, kd)"""
_WRITTEN_OUT = """rd = DequantizeLinear (rq, s, zero)
        kc = Cast <to = 1> (kq)
        kd = Mul (kc, whole)
        [two] h = Conv (rd, kd)"""
_QOPERATOR = """[two] hq = QLinearConv (rq, s, zero, kq, whole, none, s, zero)
        h = DequantizeLinear (hq, s, zero)"""


def _quantize(two: str, teacher: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize the second convolution symmetrically; noise on the others.

    Weights take seven of the eight bits, as quantizers offer it ("reduce range", "overflow fix"):
    processors without VNNI add two products of eight bits in sixteen, which full range overflows.
    """
    weights = initializers(noisy(teacher))
    kernel = initializers(teacher)["k"]
    per_channel = np.abs(kernel).max(axis=(1, 2, 3)) / 63
    whole = np.abs(kernel).max() / 63
    scale = per_channel.reshape(-1, 1, 1, 1) if two is _QDQ else whole
    values = {"w": weights["w"], "l": weights["l"], "kq": np.round(kernel / scale)}
    return build(_QUANTIZED.replace("TWO", two), values | {"ks": per_channel, "whole": whole})


QUANTIZED = {
    "QDQ": Form(text(_FLOAT), student=partial(_quantize, _QDQ)),
    "Cast and Mul": Form(text(_FLOAT), student=partial(_quantize, _WRITTEN_OUT)),
    "QOperator": Form(text(_FLOAT), student=partial(_quantize, _QOPERATOR)),
}


def zoo(divisor: int) -> dict[str, Form]:
    """The graphs of the model zoo, all widths but those of input and output divided."""
    names = (
        *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"),
        *("shufflenet", "squeezenet", "vgg19", "zfnet512"),
    )
    build = {name: partial(zoo_model, name, divisor) for name in names}
    return {name: Form(teacher, adapter="pointwise", count=3) for name, teacher in build.items()}
