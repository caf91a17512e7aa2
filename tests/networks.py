"""Small networks with a pruned student each, for tests of fits and of the choice of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

import numpy as np
import onnx

from tests.helpers import Array, build, initializers


@dataclass(frozen=True)
class Network:
    """A network as text, and how to prune it.

    Attributes:
        text: a graph, with the widths of its channel spaces as $names.
        kept: of each space, the number of its channels and those that the student keeps.
        axes: the space of each axis of a weight, "-" for one that stays. "a*4" has four entries for
            each channel; "a/2" is the part of a that one of two groups reads, the same in both.
    """

    text: str
    kept: Mapping[str, tuple[int, Sequence[int]]]
    axes: Mapping[str, str]
    opset: int = 17
    ir: int = 8
    values: Mapping[str, Any] = field(default_factory=dict)

    def teacher(self, seed: int = 0) -> onnx.ModelProto:
        return self._build({space: total for space, (total, _) in self.kept.items()}, {}, seed)

    def student(self, seed: int = 0) -> onnx.ModelProto:
        weights = initializers(self.teacher(seed))
        for name, axes in self.axes.items():
            for axis, space in enumerate(axes.split()):
                if space != "-":
                    weights[name] = np.take(weights[name], self._entries(space), axis)
        return self._build({s: len(kept) for s, (_, kept) in self.kept.items()}, weights, seed)

    def samples(self, count: int, seed: int = 5, size: int = 6) -> dict[str, Array]:
        """Draw random values for all inputs; open extents get ``size``."""
        rng = np.random.default_rng(seed)
        drawn = {}
        for value in self.teacher().graph.input:
            tensor = value.type.tensor_type
            shape = [dim.dim_value or size for dim in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            drawn[value.name] = rng.standard_normal([count, *shape[1:]]).astype(dtype)
        return drawn

    def _build(
        self, widths: Mapping[str, int], weights: Mapping[str, Array], seed: int
    ) -> onnx.ModelProto:
        text = Template(self.text).substitute(widths)
        return build(text, {**self.values, **weights}, seed, self.opset, self.ir)

    def _entries(self, space: str) -> Array:
        name, repeat, groups = space[0], int(space.partition("*")[2] or 1), space.partition("/")[2]
        total, kept = self.kept[name]
        members = np.array([k for k in kept if k < total // int(groups or 1)])
        return np.asarray((members[:, np.newaxis] * repeat + np.arange(repeat)).reshape(-1))


NETWORKS = {
    # x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ Relu ─▶ MaxPool ─▶ Conv ─▶ GlobalAveragePool ─▶ z
    "chain": Network(
        """g (float[N,3,6,6] x) => (float[N,5,1,1] z) <float[$a,3,3,3] w1, float[$a] b1,
          float[$b,$a,3,3] w2, float[$b] b2, float[5,$b,1,1] w3> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] y2 = Conv <strides = [2,2]> (r1, w2, b2)
            r2 = Relu (y2)
            p = MaxPool <kernel_shape = [2,2]> (r2)
            [c3] y3 = Conv (p, w3)
            z = GlobalAveragePool (y3)
        }""",
        {"a": (8, [0, 2, 3, 5, 7]), "b": (6, [1, 2, 4, 5])},
        {"w1": "a", "b1": "a", "w2": "b a", "b2": "b", "w3": "- b"},
    ),
    # x ─▶ Conv ─▶ r ─▶ Conv ─▶ Relu ─▶ Conv ─▶ + ─▶ Relu ─▶ Conv ─▶ z
    #              └──────────────────────────▶ ┘
    "residual": Network(
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[$a,3,3,3] w1, float[$a] b1,
          float[$b,$a,3,3] w2, float[$b] b2, float[$a,$b,3,3] w3, float[$a] b3,
          float[4,$a,1,1] w4, float[4] b4> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] y2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Relu (y2)
            [c3] y3 = Conv <pads = [1,1,1,1]> (r2, w3, b3)
            s = Add (y3, r1)
            r3 = Relu (s)
            [c4] z = Conv (r3, w4, b4)
        }""",
        {"a": (8, [0, 2, 3, 5, 6, 7]), "b": (6, [1, 2, 4])},
        {"w1": "a", "b1": "a", "w2": "b a", "b2": "b", "w3": "a b", "b3": "a", "w4": "- a"},
    ),
    # x ─▶ Conv ─▶ Clip ─▶ depthwise ─▶ Clip ─▶ Conv ─▶ z
    "depthwise": Network(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] z) <float[$a,3,1,1] w1, float[$a] b1,
          float[$a,1,3,3] w2, float[$a] b2, float[4,$a,1,1] w3, float[4] b3,
          float low, float high> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Clip (y1, low, high)
            [dw] y2 = Conv <group = $a, pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Clip (y2, low, high)
            [c3] z = Conv (r2, w3, b3)
        }""",
        {"a": (10, [0, 2, 3, 5, 7, 9])},
        {"w1": "a", "b1": "a", "w2": "a", "b2": "a", "w3": "- a"},
        values={"low": np.array(0.0), "high": np.array(6.0)},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ Conv (2 groups) ─▶ Relu ─▶ Conv ─▶ z
    "grouped": Network(
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[$a,3,1,1] w1, float[$a] b1,
          float[$b,$h,3,3] w2, float[$b] b2, float[4,$b,1,1] w3> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [gr] y2 = Conv <group = 2, pads = [1,1,1,1]> (r1, w2, b2)
            r2 = Relu (y2)
            [c3] z = Conv (r2, w3)
        }""",
        {"a": (8, [0, 2, 3, 4, 6, 7]), "b": (8, [1, 2, 5, 6]), "h": (4, [0, 2, 3])},
        {"w1": "a", "b1": "a", "w2": "b h", "b2": "b", "w3": "- b"},
    ),
    #        ┌─▶ Conv ─▶ Relu ─┐
    # x ─▶ ──┤                 ├─▶ Concat ─▶ Conv ─▶ z
    #        └─▶ Conv ─▶ Relu ─┘
    "concat": Network(
        """g (float[N,3,5,5] x) => (float[N,4,3,3] z) <float[$a,3,1,1] w1, float[$a] b1,
          float[$b,3,3,3] w2, float[$b] b2, float[4,$t,3,3] w4> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [c2] y2 = Conv <pads = [1,1,1,1]> (x, w2, b2)
            r2 = Relu (y2)
            k = Concat <axis = 1> (r1, r2)
            [c4] z = Conv (k, w4)
        }""",
        {"a": (6, [0, 2, 3]), "b": (8, [1, 2, 4, 5, 7]), "t": (14, [0, 2, 3, 7, 8, 10, 11, 13])},
        {"w1": "a", "b1": "a", "w2": "b", "b2": "b", "w4": "- t"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ AveragePool ─▶ Flatten ─▶ Gemm ─▶ Relu ─▶ Gemm ─▶ z
    "flatten": Network(
        """g (float[N,3,4,4] x) => (float[N,5] z) <float[$a,3,3,3] w1, float[$a] b1,
          float[$f,$b] w2, float[$b] b2, float[5,$b] w3, float[5] b3> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            r1 = Relu (y1)
            p = AveragePool <kernel_shape = [2,2], strides = [2,2]> (r1)
            f = Flatten (p)
            [f1] y2 = Gemm (f, w2, b2)
            r2 = Relu (y2)
            [f2] z = Gemm <transB = 1> (r2, w3, b3)
        }""",
        {
            "a": (6, [0, 2, 3, 5]),
            "b": (12, [1, 2, 4, 5, 7, 8, 9]),
            "f": (24, [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23]),
        },
        {"w1": "a", "b1": "a", "w2": "f b", "b2": "b", "w3": "- b"},
    ),
    # x ─▶ MatMul ─▶ Add ─▶ Relu ─▶ MatMul ─▶ Add ─▶ Relu ─▶ MatMul ─▶ z
    "matmul": Network(
        """g (float[N,7,5] x) => (float[N,7,4] z) <float[5,$a] w1, float[$a] b1, float[$a,$b] w2,
          float[$b] b2, float[$b,4] w3> {
            [m1] h1 = MatMul (x, w1)
            y1 = Add (h1, b1)
            r1 = Relu (y1)
            [m2] h2 = MatMul (r1, w2)
            y2 = Add (b2, h2)
            r2 = Relu (y2)
            [m3] z = MatMul (r2, w3)
        }""",
        {"a": (10, [0, 2, 3, 5, 6, 9]), "b": (8, [1, 2, 4, 6, 7])},
        {"w1": "- a", "b1": "a", "w2": "a b", "b2": "b", "w3": "b -"},
    ),
    # x ─▶ Conv ─▶ Relu ─┬─▶ + ─▶ Conv ─▶ z
    # u ─▶ Conv ─▶ Relu ─┘        └ ▶ Relu ─▶ Conv ─▶ v
    "two inputs, two outputs": Network(
        """g (float[N,3,5,5] x, float[N,2,5,5] u) => (float[N,4,5,5] z, float[N,2,5,5] v)
          <float[$a,3,3,3] w1, float[$a] b1, float[$a,2,1,1] w2, float[$a] b2,
          float[4,$a,1,1] w3, float[2,4,1,1] w4> {
            [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
            [c2] y2 = Conv (u, w2, b2)
            r1 = Relu (y1)
            r2 = Relu (y2)
            s = Add (r1, r2)
            [c3] z = Conv (s, w3)
            r3 = Relu (z)
            [c4] v = Conv (r3, w4)
        }""",
        {"a": (8, [0, 2, 3, 5, 6])},
        {"w1": "a", "b1": "a", "w2": "a", "b2": "a", "w3": "- a"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ z, in batches of 4
    "fixed batch": Network(
        """g (float[4,3,5,5] x) => (float[4,4,3,3] z) <float[$a,3,3,3] w1, float[$a] b1,
          float[4,$a,1,1] w2> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [c2] z = Conv (r1, w2)
        }""",
        {"a": (8, [0, 2, 3, 5, 6])},
        {"w1": "a", "b1": "a", "w2": "- a"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ z, of any height and width
    "dynamic size": Network(
        """g (float[N,3,H,W] x) => (float[N,4,A,B] z) <float[$a,3,3,3] w1, float[$a] b1,
          float[4,$a,2,2] w2> {
            [c1] y1 = Conv <auto_pad = "SAME_LOWER", strides = [2,1]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] z = Conv (r1, w2)
        }""",
        {"a": (8, [0, 2, 3, 5, 6])},
        {"w1": "a", "b1": "a", "w2": "- a"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ ConvTranspose ─▶ Relu ─▶ Conv ─▶ z
    "transposed": Network(
        """g (float[N,3,3,4] x) => (float[N,4,7,9] z) <float[$a,3,1,1] w1, float[$a] b1,
          float[$a,$b,3,3] w2, float[$b] b2, float[4,$b,1,1] w3> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            [t2] y2 = ConvTranspose <strides = [2,2]> (r1, w2, b2)
            r2 = Relu (y2)
            [c3] z = Conv (r2, w3)
        }""",
        {"a": (8, [0, 2, 3, 5, 6]), "b": (6, [0, 1, 3, 5])},
        {"w1": "a", "b1": "a", "w2": "a b", "b2": "b", "w3": "- b"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ z, on signals
    "rank 1": Network(
        """g (float[N,3,12] x) => (float[N,4,A] z) <float[$a,3,3] w1, float[$a] b1,
          float[4,$a,2] w2, float[4] b2> {
            [c1] y1 = Conv <dilations = [2], pads = [2,1]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] z = Conv <strides = [2]> (r1, w2, b2)
        }""",
        {"a": (8, [0, 2, 3, 5, 6])},
        {"w1": "a", "b1": "a", "w2": "- a"},
    ),
    # x ─▶ Conv ─▶ Relu ─▶ Conv ─▶ z, on volumes
    "rank 3": Network(
        """g (float[N,2,4,5,4] x) => (float[N,3,A,B,C] z) <float[$a,2,2,3,2] w1, float[$a] b1,
          float[3,$a,1,1,1] w2, float[3] b2> {
            [c1] y1 = Conv <pads = [1,1,1,0,1,0]> (x, w1, b1)
            r1 = Relu (y1)
            [c2] z = Conv (r1, w2, b2)
        }""",
        {"a": (6, [0, 2, 3, 5])},
        {"w1": "a", "b1": "a", "w2": "- a"},
    ),
}
