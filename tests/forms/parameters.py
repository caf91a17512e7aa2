"""Forms of parameters: versions, where weights are kept, scales beside them, element types."""

from __future__ import annotations

import onnx
from onnx import TensorProto, numpy_helper

from tests.forms.form import Build, Form, one, text


def cast_from(form: Build, kind: int, names: tuple[str, ...]) -> Build:
    """Store some initializers in another type, behind a Cast back to their own."""

    def made() -> onnx.ModelProto:
        model = form()
        for tensor in model.graph.initializer:
            if tensor.name in names:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
                values = numpy_helper.to_array(tensor).astype(dtype)
                stored = numpy_helper.from_array(values, f"{tensor.name}_stored")
                cast = onnx.helper.make_node(
                    "Cast", [stored.name], [tensor.name], to=tensor.data_type
                )
                model.graph.node.insert(0, cast)
                tensor.CopyFrom(stored)
        return model

    return made


def as_constants(form: Build) -> Build:
    """Keep the initializers in Constant nodes."""

    def made() -> onnx.ModelProto:
        model = form()
        for tensor in reversed(model.graph.initializer):
            model.graph.node.insert(
                0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            )
        del model.graph.initializer[:]
        return model

    return made


def chain(opset: int, ir: int) -> Build:
    # x ─▶ Conv ─▶ Relu ─▶ GlobalAveragePool ─▶ Flatten ─▶ Gemm ─▶ z
    return text(
        """g (float[N,3,6,6] x) => (float[N,5] z)
        <float[6,3,3,3] w, float[6] b, float[6,5] k, float[5] c> {
            [conv] y = Conv (x, w, b)
            r = Relu (y)
            p = GlobalAveragePool (r)
            f = Flatten (p)
            [fc] z = Gemm (f, k, c)
        }""",
        opset,
        ir,
    )


CHAIN = chain(17, 8)

VERSIONS = {
    "opset 7, version 3: initializers are inputs": Form(chain(7, 3)),
    "opset 11, version 6": Form(chain(11, 6)),
    "opset 23, version 11": Form(chain(23, 11)),
    "an opset that the runtime does not know": Form(
        chain(99, 8), fails="ONNX Runtime cannot run it"
    ),
}

WEIGHTS = {
    "Constant nodes": Form(as_constants(CHAIN)),
    "ConstantOfShape": Form(
        one(
            "k = ConstantOfShape <value = float[1] {0.2}> (s) [conv] z = Conv (x, k)",
            "int64[4] s = {5,4,3,3}",
        )
    ),
    "Identity": Form(
        one(
            "k = Identity (w) c = Identity (b) [conv] z = Conv (x, k, c)",
            "float[5,4,3,3] w, float[5] b",
        )
    ),
    "float16 behind Cast": Form(cast_from(CHAIN, TensorProto.FLOAT16, ("w", "k", "b"))),
    "bfloat16 behind Cast": Form(cast_from(CHAIN, TensorProto.BFLOAT16, ("w", "k", "b"))),
    "float16 behind Cast and Transpose": Form(
        text(
            """g (float[N,4] x) => (float[N,5] z) <float16[5,4] w, float[5] b> {
                k = Cast <to = 1> (w)
                t = Transpose <perm = [1,0]> (k)
                [fc] h = MatMul (x, t)
                z = Add (h, b)
            }"""
        )
    ),
    "Identity of another's": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,4,2,2] z)
            <float[4,4,3,3] w, float[4] s, float[4] t, float[4] v, float[4,4,3,3] k> {
                [one] y = Conv (x, w)
                n1 = BatchNormalization (y, s, t, t, v)
                s2 = Identity (s)
                t2 = Identity (t)
                v2 = Identity (s2)
                [two] h = Conv (n1, k)
                z = BatchNormalization (h, s2, t2, t2, v2)
            }"""
        )
    ),
    "Transpose, Reshape, Unsqueeze": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,5,6,6] z)
            <float[4,5] w, int64[2] axes = {2,3}, float[1,5] b, int64[1] flat = {-1}> {
                t = Transpose <perm = [1,0]> (w)
                k = Unsqueeze (t, axes)
                c = Reshape (b, flat)
                [conv] z = Conv (x, k, c)
            }"""
        )
    ),
    "weight normalisation": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,5,4,4] z)
            <float[5,4,3,3] v, float[5,1,1,1] gain> {
                norm = ReduceL2 <axes = [1,2,3]> (v)
                unit = Div (v, norm)
                k = Mul (gain, unit)
                [conv] z = Conv (x, k)
            }"""
        )
    ),
    "weight standardisation": Form(
        text(
            """g (float[N,3,6,6] x) => (float[N,6,4,4] z)
            <float[6,3,3,3] w, float[6] s, float[6] t, float[6] m, float[6] v,
             int64[3] rows = {1,6,27}, int64[4] kernel = {6,3,3,3}> {
                r = Reshape (w, rows)
                n, mean, variance = BatchNormalization <training_mode = 1> (r, s, t, m, v)
                k = Reshape (n, kernel)
                [conv] z = Conv (x, k)
            }"""
        )
    ),
    "shared by two nodes": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,4,6,6] z)
            <float[4,4,3,3] w, float[4,4,1,1] k> {
                [one] y = Conv <pads = [1,1,1,1]> (x, w)
                i = Identity (w)
                [two] h = Conv <pads = [1,1,1,1]> (y, i)
                [three] z = Conv (h, k)
            }"""
        )
    ),
    "head on two scales": Form(
        text(
            """g (float[N,3,8,8] x) => (float[N,5,T] z)
            <float[6,3,3,3] a, float[6] ab, float[6,6,3,3] b, float[6] bb,
             float[6,6,3,3] h, float[6] hb, float[5,6,1,1] c, int64[3] flat = {0, 5, -1}> {
                [fine] p1 = Conv <pads = [1,1,1,1]> (x, a, ab)
                q1 = Relu (p1)
                [coarse] p2 = Conv <pads = [1,1,1,1], strides = [2,2]> (q1, b, bb)
                q2 = Relu (p2)
                [inner1] t1 = Conv <pads = [1,1,1,1]> (q1, h, hb)
                [inner2] t2 = Conv <pads = [1,1,1,1]> (q2, h, hb)
                r1 = Relu (t1)
                r2 = Relu (t2)
                [outer1] o1 = Conv (r1, c)
                [outer2] o2 = Conv (r2, c)
                z1 = Reshape (o1, flat)
                z2 = Reshape (o2, flat)
                z = Concat <axis = 2> (z1, z2)
            }"""
        )
    ),
    "siamese branches": Form(
        text(
            """g (float[N,6] x1, float[N,6] x2) => (float[N,3] z)
            <float[8,6] w, float[8] b, float[5,8] k, float[5] c, float[10,3] m, float[3] d> {
                [left1] y1 = Gemm <transB = 1, alpha: float = 0.5> (x1, w, b)
                r1 = Relu (y1)
                [left2] f1 = Gemm <transB = 1> (r1, k, c)
                [right1] y2 = Gemm <transB = 1, alpha: float = 0.5> (x2, w, b)
                r2 = Relu (y2)
                [right2] f2 = Gemm <transB = 1> (r2, k, c)
                f = Concat <axis = 1> (f1, f2)
                [out] z = Gemm (f, m, d)
            }"""
        )
    ),
    "shared behind a Cast": Form(
        cast_from(
            text(
                """g (float[N,5,4] x1, float[N,7,4] x2) => (float[N,T,3] z)
                <float[4,6] w, float[6,3] k> {
                    [one] y1 = MatMul (x1, w)
                    [two] y2 = MatMul (x2, w)
                    y = Concat <axis = 1> (y1, y2)
                    r = Relu (y)
                    [out] z = MatMul (r, k)
                }"""
            ),
            TensorProto.FLOAT16,
            ("w",),
        )
    ),
    "tied to an embedding": Form(
        text(
            """g (int64[N,T] ids) => (float[N,T,7] z) <float[7,4] table, float[4,4] w, float[4] b> {
                e = Gather (table, ids)
                [mix] y = MatMul (e, w)
                h = Add (y, b)
                t = Transpose <perm = [1,0]> (table)
                [head] z = MatMul (h, t)
            }"""
        )
    ),
    "fed by the user": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,6,6,6] z) <float[5,4,1,1] w, float[6,5] k> {
                [conv] y = Conv (x, w)
                m = ReduceMean <axes = [2,3], keepdims = 0> (y)
                u = Unsqueeze (m, a)
                [dynamic] q = MatMul (k, u)
                v = Unsqueeze (q, b)
                z = Expand (v, s)
            }""".replace("k> {", "k, int64[1] a = {2}, int64[1] b = {3}, int64[4] s = {1,6,6,6}> {")
        )
    ),
}

_BN = "float[5] s, float[5] t, float[5] m, float[5] v"
_CONV5 = "float[5,4,3,3] w"

SCALES = {
    "BatchNormalization": Form(
        one("[conv] y = Conv (x, w) z = BatchNormalization (y, s, t, m, v)", f"{_CONV5}, {_BN}")
    ),
    "Mul and Add of unsqueezed constants": Form(
        one(
            """[conv] y = Conv (x, w) us = Unsqueeze (s, axes) ut = Unsqueeze (t, axes)
            h = Mul (y, us) z = Add (ut, h)""",
            f"{_CONV5}, {_BN}, int64[2] axes = {{1,2}}",
        )
    ),
    "BatchNormalization, Mul and Add": Form(
        one(
            """[conv] y = Conv (x, w) us = Unsqueeze (s, axes) ut = Unsqueeze (t, axes)
            n = BatchNormalization (y, s, t, m, v) h = Mul (n, us) z = Add (h, ut)""",
            f"{_CONV5}, {_BN}, int64[2] axes = {{1,2}}",
        )
    ),
    "Mul, Add and BatchNormalization": Form(
        one(
            """[conv] y = Conv (x, w) h = Mul (y, q) k = Add (h, r)
            z = BatchNormalization (k, s, t, m, v)""",
            f"{_CONV5}, {_BN}, float[5,1,1] q, float[1,5,1,1] r",
        )
    ),
    "Sub and Div": Form(
        one(
            "[conv] y = Conv (x, w) h = Sub (y, q) z = Div (h, r)",
            f"{_CONV5}, float[5,1,1] q, float[1] r",
        )
    ),
    "BatchNormalization in front, no padding": Form(
        one(
            "n = BatchNormalization (x, s, t, m, v) [conv] z = Conv (n, w)",
            f"{_CONV5}, {_BN}".replace("float[5] ", "float[4] "),
        )
    ),
    "BatchNormalization in front, padding": Form(
        one(
            "n = BatchNormalization (x, s, t, m, v) [conv] z = Conv <pads = [1,1,1,1]> (n, w)",
            f"{_CONV5}, {_BN}".replace("float[5] ", "float[4] "),
        )
    ),
    "pre-activation": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,4,6,6] z)
            <float[4,4,3,3] w, float[4] s, float[4] t, float[4] v, float[4,4,3,3] k> {
                n1 = BatchNormalization (x, s, t, t, v)
                r1 = Relu (n1)
                [one] y = Conv <pads = [1,1,1,1]> (r1, w)
                n2 = BatchNormalization (y, s, t, t, v)
                r2 = Relu (n2)
                [two] h = Conv <pads = [1,1,1,1]> (r2, k)
                z = Add (h, x)
            }"""
        )
    ),
    "layer scale behind a projection": Form(
        text(
            """g (float[N,T,4] x) => (float[N,T,4] z) <float[4,4] w, float[4] b, float[4] gamma> {
                [mix] y = MatMul (x, w)
                h = Add (y, b)
                q = Mul (h, gamma)
                z = Add (q, x)
            }"""
        )
    ),
}

TYPES = {
    "float16": Form(
        text(
            "g (float16[N,4,6,6] x) => (float16[N,5,4,4] z) <float16[5,4,3,3] w>"
            "{ [n] z = Conv (x, w) }"
        )
    ),
    "float16 inside of float32": Form(
        text(
            """g (float[N,4,6,6] x) => (float[N,5,4,4] z) <float16[4,4,3,3] w, float[5,4,1,1] k> {
                h = Cast <to = 10> (x)
                [half] y = Conv (h, w)
                s = Cast <to = 1> (y)
                [single] z = Conv (s, k)
            }"""
        )
    ),
    "float64": Form(
        text("g (double[N,4] x) => (double[N,5] z) <double[4,5] w> { [n] z = MatMul (x, w) }")
    ),
    "bfloat16": Form(
        text(
            "g (bfloat16[N,4] x) => (bfloat16[N,5] z) <bfloat16[4,5] w> { [n] z = MatMul (x, w) }"
        ),
        fails="no block has a counterpart",
    ),
}
