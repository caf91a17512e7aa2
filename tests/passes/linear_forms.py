"""A graph for each form of a linear node, and what its view says that it computes."""

from __future__ import annotations

import numpy as np

from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear
from tests.helpers import Array

# x ─▶ [one linear node] ─▶ y
FORMS = {
    "Conv": (
        "g (double[N,4,5] x) => (double[N,6,A] y) <double[6,2,3] w, double[6] b>"
        "{ [n] y = Conv <group = 2> (x, w, b) }"
    ),
    "depthwise": (
        "g (double[N,4,5] x) => (double[N,8,A] y) <double[8,1,2] w>"
        "{ [n] y = Conv <group = 4> (x, w) }"
    ),
    "ConvTranspose": (
        "g (double[N,4,5] x) => (double[N,6,A] y) <double[4,6,2] w, double[6] b>"
        "{ [n] y = ConvTranspose <strides = [2]> (x, w, b) }"
    ),
    "Gemm": (
        "g (double[N,4] x) => (double[N,6] y) <double[4,6] w, double[6] b>"
        "{ [n] y = Gemm (x, w, b) }"
    ),
    "transB": (
        "g (double[N,4] x) => (double[N,6] y) <double[6,4] w, double[1,6] b>"
        "{ [n] y = Gemm <transB = 1, alpha: float = 0.5, beta: float = 2.0> (x, w, b) }"
    ),
    "scalar C": (
        "g (double[N,4] x) => (double[N,6] y) <double[4,6] w, double b>"
        "{ [n] y = Gemm <alpha: float = -2.0> (x, w, b) }"
    ),
    "no C": (
        "g (double[N,4] x) => (double[N,6] y) <double[4,6] w>"
        "{ [n] y = Gemm <beta: float = 3.0> (x, w) }"
    ),
    "MatMul": (
        "g (double[N,3,4] x) => (double[N,3,6] y) <double[4,6] w> { [n] y = MatMul (x, w) }"
    ),
    "MatMul + Add": (
        "g (double[N,4] x) => (double[N,6] y) <double[4,6] w, double[6] b>"
        "{ [n] h = MatMul (x, w) y = Add (h, b) }"
    ),
    "Add of higher rank": (
        "g (double[N,4] x) => (double[1,N,6] y) <double[4,6] w, double[1,1,6] b>"
        "{ [n] h = MatMul (x, w) y = Add (b, h) }"
    ),
}


def evaluate(linear: Linear, x: Array) -> Array:
    """The definition in the docstring of ``linear``, on the patches that ``Geometry`` cuts."""
    if not linear.is_convolution:
        return np.asarray(x @ linear.matrix[0].T + linear.bias)
    geometry = Geometry.of(linear, x.shape)
    index, inside = geometry.patches(np.arange(geometry.positions))
    patches = x.reshape(*x.shape[:2], -1)[:, :, index] * inside  # N, C, taps, positions
    patches = patches.reshape(len(x), linear.groups, -1, geometry.positions)
    y = np.einsum("gnp,bgpk->bgnk", linear.matrix, patches)
    return np.asarray(y.reshape(len(x), linear.width, -1) + linear.bias[:, np.newaxis])
