"""Graphs as exporters, converters and other tools write them: one small network for each form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.helpers import Array, build, initializers, zoo_model

Build = Callable[[], onnx.ModelProto]


@dataclass(frozen=True)
class Form:
    """A way to write a network.

    Attributes:
        teacher: builds it.
        sizes: of its open dimensions, by name; 6 where nothing is said.
        student: turns the teacher into its student; noise on all weights where nothing is said.
        adapter: the family that is fitted.
        count: number of samples.
        fails: how the one sentence begins that refuses it, where that is what should happen.
    """

    teacher: Build
    sizes: Mapping[str, int] = field(default_factory=dict)
    student: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    adapter: str = "auto"
    count: int = 12
    fails: str = ""

    def pair(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """Build teacher and student."""
        teacher = self.teacher()
        return teacher, (self.student or noisy)(teacher)

    def samples(self, seed: int) -> dict[str, Array]:
        """Draw values for all inputs: small whole numbers where it takes integers."""
        model, rng = self.teacher(), np.random.default_rng(seed)
        given = {tensor.name for tensor in model.graph.initializer}
        drawn: dict[str, Array] = {}
        for value in model.graph.input:
            if value.name in given:
                continue
            tensor = value.type.tensor_type
            shape = [d.dim_value or self.sizes.get(d.dim_param, 6) for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            shape = [self.count, *shape[1:]]
            whole = dtype.kind in "iub"
            values = rng.integers(0, 5, shape) if whole else rng.standard_normal(shape)
            drawn[value.name] = values.astype(dtype)
        return drawn


def noisy(model: onnx.ModelProto, amount: float = 0.1, seed: int = 9) -> onnx.ModelProto:
    """Copy a model with noise on its matrices and kernels, wherever the graph keeps them."""
    rng = np.random.default_rng(seed)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = [a.t for n in copy.graph.node if n.op_type == "Constant" for a in n.attribute]
    for tensor in [*copy.graph.initializer, *constants]:
        floats = tensor.data_type in (1, 10, 11, 16)
        if floats and sum(extent > 1 for extent in tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            exact = values.astype(np.float64)
            exact += amount * exact.std() * rng.standard_normal(values.shape)
            changed = numpy_helper.from_array(exact.astype(values.dtype), tensor.name)
            tensor.CopyFrom(changed)
    for node in copy.graph.node:
        if node.op_type == "ConstantOfShape" and node.attribute:
            value = numpy_helper.to_array(node.attribute[0].t)
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(value * value.dtype.type(1.2)))
    return copy


def _text(text: str, opset: int = 17, ir: int = 8, **values: Any) -> Build:
    return lambda: build(text, values, 0, opset, ir)


def _one(node: str, weights: str, x: str = "float[N,4,6,6]", z: str = "float[N,A,B,C]") -> Build:
    """x ─▶ the node ─▶ z."""
    return _text(f"g ({x} x) => ({z} z) <{weights}> {{ {node} }}")


def _cast(form: Build, kind: int, names: tuple[str, ...]) -> Build:
    """Store some initializers in another type, behind a Cast back to their own."""

    def made() -> onnx.ModelProto:
        model = form()
        for tensor in model.graph.initializer:
            if tensor.name in names:
                values = numpy_helper.to_array(tensor)
                stored = onnx.helper.make_tensor(
                    f"{tensor.name}_stored", kind, values.shape, values.reshape(-1).tolist()
                )
                cast = onnx.helper.make_node(
                    "Cast", [stored.name], [tensor.name], to=tensor.data_type
                )
                model.graph.node.insert(0, cast)
                tensor.CopyFrom(stored)
        return model

    return made


def _constants(form: Build) -> Build:
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


def _chain(opset: int, ir: int) -> Build:
    # x ─▶ Conv ─▶ Relu ─▶ GlobalAveragePool ─▶ Flatten ─▶ Gemm ─▶ z
    return _text(
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


CHAIN = _chain(17, 8)

VERSIONS = {
    "opset 7, version 3: initializers are inputs": Form(_chain(7, 3)),
    "opset 11, version 6": Form(_chain(11, 6)),
    "opset 23, version 11": Form(_chain(23, 11)),
    "an opset that the runtime does not know": Form(_chain(99, 8), fails="g: "),
}

WEIGHTS = {
    "Constant nodes": Form(_constants(CHAIN)),
    "ConstantOfShape": Form(
        _one(
            "k = ConstantOfShape <value = float[1] {0.2}> (s) [conv] z = Conv (x, k)",
            "int64[4] s = {5,4,3,3}",
        )
    ),
    "Identity": Form(
        _one(
            "k = Identity (w) c = Identity (b) [conv] z = Conv (x, k, c)",
            "float[5,4,3,3] w, float[5] b",
        )
    ),
    "float16 behind Cast": Form(_cast(CHAIN, TensorProto.FLOAT16, ("w", "k", "b"))),
    "bfloat16 behind Cast": Form(_cast(CHAIN, TensorProto.BFLOAT16, ("w", "k", "b"))),
    "float16 behind Cast and Transpose": Form(
        _text(
            """g (float[N,4] x) => (float[N,5] z) <float16[5,4] w, float[5] b> {
                k = Cast <to = 1> (w)
                t = Transpose <perm = [1,0]> (k)
                [fc] h = MatMul (x, t)
                z = Add (h, b)
            }"""
        )
    ),
    "Transpose, Reshape, Unsqueeze": Form(
        _text(
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
        _text(
            """g (float[N,4,6,6] x) => (float[N,5,4,4] z)
            <float[5,4,3,3] v, float[5,1,1,1] gain> {
                norm = ReduceL2 <axes = [1,2,3]> (v)
                unit = Div (v, norm)
                k = Mul (gain, unit)
                [conv] z = Conv (x, k)
            }"""
        )
    ),
    "shared by two nodes": Form(
        _text(
            """g (float[N,4,6,6] x) => (float[N,4,6,6] z)
            <float[4,4,3,3] w, float[4,4,1,1] k> {
                [one] y = Conv <pads = [1,1,1,1]> (x, w)
                i = Identity (w)
                [two] h = Conv <pads = [1,1,1,1]> (y, i)
                [three] z = Conv (h, k)
            }"""
        )
    ),
    "tied to an embedding": Form(
        _text(
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
        _text(
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
        _one("[conv] y = Conv (x, w) z = BatchNormalization (y, s, t, m, v)", f"{_CONV5}, {_BN}")
    ),
    "Mul and Add of unsqueezed constants": Form(
        _one(
            """[conv] y = Conv (x, w) us = Unsqueeze (s, axes) ut = Unsqueeze (t, axes)
            h = Mul (y, us) z = Add (ut, h)""",
            f"{_CONV5}, {_BN}, int64[2] axes = {{1,2}}",
        )
    ),
    "BatchNormalization, Mul and Add": Form(
        _one(
            """[conv] y = Conv (x, w) us = Unsqueeze (s, axes) ut = Unsqueeze (t, axes)
            n = BatchNormalization (y, s, t, m, v) h = Mul (n, us) z = Add (h, ut)""",
            f"{_CONV5}, {_BN}, int64[2] axes = {{1,2}}",
        )
    ),
    "Mul, Add and BatchNormalization": Form(
        _one(
            """[conv] y = Conv (x, w) h = Mul (y, q) k = Add (h, r)
            z = BatchNormalization (k, s, t, m, v)""",
            f"{_CONV5}, {_BN}, float[5,1,1] q, float[1,5,1,1] r",
        )
    ),
    "Sub and Div": Form(
        _one(
            "[conv] y = Conv (x, w) h = Sub (y, q) z = Div (h, r)",
            f"{_CONV5}, float[5,1,1] q, float[1] r",
        )
    ),
    "BatchNormalization in front, no padding": Form(
        _one(
            "n = BatchNormalization (x, s, t, m, v) [conv] z = Conv (n, w)",
            f"{_CONV5}, {_BN}".replace("float[5] ", "float[4] "),
        )
    ),
    "BatchNormalization in front, padding": Form(
        _one(
            "n = BatchNormalization (x, s, t, m, v) [conv] z = Conv <pads = [1,1,1,1]> (n, w)",
            f"{_CONV5}, {_BN}".replace("float[5] ", "float[4] "),
        )
    ),
    "pre-activation": Form(
        _text(
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
        _text(
            """g (float[N,T,4] x) => (float[N,T,4] z) <float[4,4] w, float[4] b, float[4] gamma> {
                [mix] y = MatMul (x, w)
                h = Add (y, b)
                q = Mul (h, gamma)
                z = Add (q, x)
            }"""
        )
    ),
}

CONVOLUTIONS = {
    "rank 1": Form(
        _one(
            "[n] z = Conv <strides = [2]> (x, w)", "float[5,4,3] w", "float[N,4,9]", "float[N,A,B]"
        )
    ),
    "rank 3": Form(
        _one("[n] z = Conv (x, w)", "float[5,4,2,2,2] w", "float[N,4,3,4,3]", "float[N,A,B,C,D]")
    ),
    "grouped": Form(_one("[n] z = Conv <group = 2> (x, w)", "float[6,2,3,3] w")),
    "depthwise": Form(_one("[n] z = Conv <group = 4> (x, w)", "float[8,1,3,3] w")),
    "dilated": Form(_one("[n] z = Conv <dilations = [2,1], pads = [2,0,2,0]> (x, w)", _CONV5)),
    "SAME_UPPER": Form(
        _one('[n] z = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (x, w)', _CONV5)
    ),
    "SAME_LOWER": Form(
        _one('[n] z = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w)', _CONV5)
    ),
    "VALID": Form(_one('[n] z = Conv <auto_pad = "VALID"> (x, w)', _CONV5)),
    "ConvTranspose": Form(
        _one(
            "[n] z = ConvTranspose <strides = [2,2], group = 2> (x, w, b)",
            "float[4,3,3,3] w, float[6] b",
        )
    ),
}

MATRICES = {
    "Gemm, transB, alpha and beta": Form(
        _one(
            "[n] z = Gemm <transB = 1, alpha: float = 0.5, beta: float = 2.0> (x, w, b)",
            "float[5,4] w, float[1,5] b",
            "float[N,4]",
            "float[N,A]",
        )
    ),
    "Gemm, transA": Form(
        _text(
            """g (float[N,4] x) => (float[N,5] z) <float[4,4] k, float[4,5] w> {
                [one] y = Gemm (x, k)
                t = Transpose <perm = [1,0]> (y)
                [two] z = Gemm <transA = 1> (t, w)
            }"""
        )
    ),
    "MatMul and Add": Form(
        _one(
            "[n] h = MatMul (x, w) z = Add (b, h)",
            "float[4,5] w, float[5] b",
            "float[N,4]",
            "float[N,A]",
        )
    ),
    "MatMul of rank 4": Form(
        _one("[n] h = MatMul (x, w) z = Add (h, b)", "float[6,5] w, float[5] b")
    ),
    "a weight on the left": Form(
        _text(
            """g (float[N,6,4] x) => (float[N,5,3] z) <float[5,6] k, float[4,3] w> {
                [left] y = MatMul (k, x)
                [right] z = MatMul (y, w)
            }"""
        )
    ),
    "attention": Form(
        _text(
            """g (float[N,5,8] x) => (float[N,5,8] z)
            <float[8,8] wq, float[8] bq, float[8,8] wk, float[8,8] wv, float[8] bv, float[8,8] wo,
             float[8] bo, int64[4] split = {0,0,2,4}, int64[3] join = {0,0,8},
             float scale = {0.5}> {
                [q] hq = MatMul (x, wq)
                aq = Add (hq, bq)
                sq = Mul (aq, scale)
                [k] hk = MatMul (x, wk)
                [v] hv = MatMul (x, wv)
                av = Add (hv, bv)
                rq = Reshape (sq, split)
                rk = Reshape (hk, split)
                rv = Reshape (av, split)
                q = Transpose <perm = [0,2,1,3]> (rq)
                k = Transpose <perm = [0,2,3,1]> (rk)
                v = Transpose <perm = [0,2,1,3]> (rv)
                scores = MatMul (q, k)
                p = Softmax <axis = -1> (scores)
                o = MatMul (p, v)
                t = Transpose <perm = [0,2,1,3]> (o)
                c = Reshape (t, join)
                [o] ho = MatMul (c, wo)
                ao = Add (ho, bo)
                z = Add (ao, x)
            }"""
        )
    ),
    "tokens joined with the batch": Form(
        _text(
            """g (float[N,3,4] x) => (float[N,3,5] z)
            <float[4,5] w, float[5] b, int64[2] flat = {-1,4}, int64[3] back = {-1,3,5}> {
                f = Reshape (x, flat)
                [n] y = Gemm (f, w, b)
                z = Reshape (y, back)
            }"""
        )
    ),
    "LSTM": Form(
        _text(
            """g (float[T,N,3] x) => (float[A,B,C,D] z)
            <float[1,16,3] w, float[1,16,4] r, float[4,5] k> {
                [lstm] h = LSTM <hidden_size = 4> (x, w, r)
                [fc] z = MatMul (h, k)
            }"""
        ),
        {"N": 12},
        fails="",
    ),
}

_CONV4 = "[one] y = Conv <pads = [1,1,1,1]> (x, w)"
_TWO = "float[4,4,3,3] w, float[4,4,1,1] k"

TOPOLOGIES = {
    "residual, Sum": Form(
        _one(f"{_CONV4} r = Relu (y) s = Sum (r, x) [two] z = Conv (s, k)", _TWO)
    ),
    "residual, Add": Form(
        _one(f"{_CONV4} s = Add (y, x) r = Relu (s) [two] z = Conv (r, k)", _TWO)
    ),
    "dense, Concat": Form(
        _one(
            f"{_CONV4} r = Relu (y) c = Concat <axis = 1> (x, r) [two] z = Conv (c, k)",
            _TWO.replace("4,4,1,1", "4,8,1,1"),
        )
    ),
    "channel shuffle": Form(
        _one(
            """[one] y = Conv <group = 2, pads = [1,1,1,1]> (x, w) a = Reshape (y, split)
            b = Transpose <perm = [0,2,1,3,4]> (a) c = Reshape (b, join)
            [two] z = Conv <group = 2> (c, k)""",
            """float[4,2,3,3] w, float[6,2,3,3] k, int64[5] split = {0,2,2,6,6},
            int64[4] join = {0,4,6,6}""",
        )
    ),
    "squeeze and excitation": Form(
        _one(
            f"""{_CONV4} p = GlobalAveragePool (y) [s] q = Conv (p, d, e) r = Relu (q)
            [e] g = Conv (r, u, v) h = Sigmoid (g) m = Mul (y, h) [two] z = Conv (m, k)""",
            f"{_TWO}, float[2,4,1,1] d, float[2] e, float[4,2,1,1] u, float[4] v",
        )
    ),
    "Swish written out": Form(
        _one(f"{_CONV4} s = Sigmoid (y) m = Mul (y, s) [two] z = Conv (m, k)", _TWO)
    ),
    "HardSwish written out": Form(
        _one(
            f"""{_CONV4} a = Add (y, three) c = Clip (a, low, six) m = Mul (y, c) d = Div (m, six)
            [two] z = Conv (d, k)""",
            f"{_TWO}, float three = {{3}}, float low = {{0}}, float six = {{6}}",
        )
    ),
    "Clip written out": Form(
        _one(
            f"{_CONV4} a = Max (y, low) c = Min (a, six) [two] z = Conv (c, k)",
            f"{_TWO}, float low = {{0}}, float six = {{6}}",
        )
    ),
}

INTERFACES = {
    "dynamic dimensions": Form(
        _text(
            "g (float[batch,4,h,w] x) => (float[batch,5,a,b] z) <float[5,4,3,3] k>"
            "{ [n] z = Conv (x, k) }"
        ),
        {"h": 7, "w": 5},
    ),
    "fixed batch": Form(
        _text(
            "g (float[4,4,6,6] x) => (float[4,5,4,4] z) <float[5,4,3,3] k> { [n] z = Conv (x, k) }"
        )
    ),
    "several inputs and outputs": Form(
        _text(
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
        _text(
            """g (float[N,6,6,4] x) => (float[N,4,4,5] z) <float[5,4,3,3] w> {
                t = Transpose <perm = [0,3,1,2]> (x)
                [conv] y = Conv (t, w)
                z = Transpose <perm = [0,2,3,1]> (y)
            }"""
        )
    ),
    "whole numbers in, embedding": Form(
        _text(
            """g (int64[N,5] ids) => (float[N,5,4] z) <float[9,6] table, float[6,4] w, float[4] b> {
                e = Gather (table, ids)
                [n] h = MatMul (e, w)
                z = Add (h, b)
            }"""
        )
    ),
}

TYPES = {
    "float16": Form(
        _text(
            "g (float16[N,4,6,6] x) => (float16[N,5,4,4] z) <float16[5,4,3,3] w>"
            "{ [n] z = Conv (x, w) }"
        )
    ),
    "float16 inside of float32": Form(
        _text(
            """g (float[N,4,6,6] x) => (float[N,5,4,4] z) <float16[4,4,3,3] w, float[5,4,1,1] k> {
                h = Cast <to = 10> (x)
                [half] y = Conv (h, w)
                s = Cast <to = 1> (y)
                [single] z = Conv (s, k)
            }"""
        )
    ),
    "float64": Form(
        _text("g (double[N,4] x) => (double[N,5] z) <double[4,5] w> { [n] z = MatMul (x, w) }")
    ),
    "bfloat16": Form(
        _text(
            "g (bfloat16[N,4] x) => (bfloat16[N,5] z) <bfloat16[4,5] w> { [n] z = MatMul (x, w) }"
        ),
        fails="g: ",
    ),
}


SCOPES = {
    "If": Form(
        _text(
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
        _text(
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
        _text(
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
        fails="g: ",
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
_QOPERATOR = """[two] hq = QLinearConv (rq, s, zero, kq, whole, none, s, zero)
        h = DequantizeLinear (hq, s, zero)"""


def _quantize(two: str, teacher: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize the second convolution to eight bits, symmetrically; noise on the others."""
    weights = initializers(noisy(teacher))
    kernel = initializers(teacher)["k"]
    per_channel = np.abs(kernel).max(axis=(1, 2, 3)) / 127
    whole = np.abs(kernel).max() / 127
    scale = per_channel.reshape(-1, 1, 1, 1) if two is _QDQ else whole
    values = {"w": weights["w"], "l": weights["l"], "kq": np.round(kernel / scale)}
    return build(_QUANTIZED.replace("TWO", two), values | {"ks": per_channel, "whole": whole})


QUANTIZED = {
    "QDQ": Form(_text(_FLOAT), student=partial(_quantize, _QDQ)),
    "QOperator": Form(_text(_FLOAT), student=partial(_quantize, _QOPERATOR)),
}

ZOO = {
    name: Form(partial(zoo_model, name), adapter="pointwise", count=8)
    for name in (
        "bvlc_alexnet",
        "densenet121",
        "inception_v1",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "squeezenet",
        "vgg19",
        "zfnet512",
    )
}
