"""Linear nodes of all kinds that can be factorized, and what each form makes of their kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from fskd_onnx.passes import (
    AffineMap,
    Pass,
    ReplaceWeights,
)
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank
from fskd_onnx.passes.factorizations import FACTORIZATIONS
from tests.helpers import Array, build, linears


@dataclass(frozen=True)
class Case:
    """A graph with one node 'n' to factorize, behind a Relu and in front of one.

    Attributes:
        signature: input and output.
        values: the weights.
        node: from r to y.
        opset: version of the operators.
    """

    signature: str
    values: str
    node: str
    opset: int = 17

    def model(self, dtype: str = "float") -> onnx.ModelProto:
        text = f"g ({self.signature}) <{self.values}> {{ r = Relu (x) {self.node} z = Relu (y) }}"
        return build(text.replace("{t}", dtype), opset=self.opset)


_IMAGES = "{t}[N,5,9,8] x) => ({t}[N,6,A,B] z"
_KERNEL = "{t}[6,5,3,3] w, {t}[6] b"
PLANES = {
    "3 x 3": Case(_IMAGES, _KERNEL, "[n] y = Conv <pads = [1,1,1,1]> (r, w, b)"),
    "no bias": Case(_IMAGES, "{t}[6,5,3,3] w", "[n] y = Conv (r, w)"),
    "no name": Case(_IMAGES, _KERNEL, "y = Conv <pads = [1,1,1,1]> (r, w, b)"),
    "all attributes": Case(
        _IMAGES,
        "{t}[6,5,3,2] w, {t}[6] b",
        "[n] y = Conv <kernel_shape = [3,2], strides = [2,1], pads = [0,1,2,3], "
        "dilations = [1,2], group = 1> (r, w, b)",
    ),
    "strides": Case(_IMAGES, _KERNEL, "[n] y = Conv <strides = [2,3], pads = [1,0,1,1]> (r, w, b)"),
    "upper": Case(
        _IMAGES, _KERNEL, '[n] y = Conv <strides = [2,3], auto_pad = "SAME_UPPER"> (r, w, b)'
    ),
    "lower": Case(
        _IMAGES,
        "{t}[6,5,2,4] w, {t}[6] b",
        '[n] y = Conv <strides = [2,1], auto_pad = "SAME_LOWER"> (r, w, b)',
    ),
    "valid": Case(_IMAGES, _KERNEL, '[n] y = Conv <strides = [1,2], auto_pad = "VALID"> (r, w, b)'),
    "any extent": Case(
        "{t}[N,5,H,W] x) => ({t}[N,6,A,B] z",
        _KERNEL,
        "[n] y = Conv <pads = [1,1,1,1]> (r, w, b)",
    ),
}
VOLUMES = {
    "3 x 3 x 2": Case(
        "{t}[N,4,5,6,5] x) => ({t}[N,6,A,B,C] z",
        "{t}[6,4,3,3,2] w, {t}[6] b",
        "[n] y = Conv <strides = [1,2,1], pads = [1,0,1,1,2,0], dilations = [2,1,1]> (r, w, b)",
    ),
    "1 x 3 x 3": Case(
        "{t}[N,4,5,6,5] x) => ({t}[N,6,A,B,C] z",
        "{t}[6,4,1,3,3] w, {t}[6] b",
        "[n] y = Conv <strides = [2,1,2], pads = [1,1,1,0,1,1]> (r, w, b)",
    ),
}
LINES = {
    "signal": Case(
        "{t}[N,5,12] x) => ({t}[N,6,A] z",
        "{t}[6,5,4] w, {t}[6] b",
        "[n] y = Conv <strides = [2], pads = [2,1], dilations = [2]> (r, w, b)",
    ),
    "row": Case(
        _IMAGES, "{t}[6,5,1,4] w", "[n] y = Conv <pads = [0,1,0,2], strides = [2,1]> (r, w)"
    ),
}
POINTS = {
    "1 x 1": Case(_IMAGES, "{t}[6,5,1,1] w, {t}[6] b", "[n] y = Conv <strides = [2,2]> (r, w, b)"),
}
MATRICES = {
    "Gemm": Case("{t}[N,5] x) => ({t}[N,6] z", "{t}[5,6] w, {t}[6] b", "[n] y = Gemm (r, w, b)"),
    "factors of Gemm": Case(
        "{t}[N,5] x) => ({t}[N,6] z",
        "{t}[6,5] w, {t}[1,6] b",
        "[n] y = Gemm <transB = 1, alpha: float = 0.5, beta: float = 2.0> (r, w, b)",
    ),
    "old Gemm": Case(
        "{t}[N,5] x) => ({t}[N,6] z", "{t}[5,6] w, {t}[6] b", "[n] y = Gemm (r, w, b)", opset=9
    ),
    "MatMul": Case("{t}[N,3,5] x) => ({t}[N,3,6] z", "{t}[5,6] w", "[n] y = MatMul (r, w)"),
    "MatMul and Add": Case(
        "{t}[N,5] x) => ({t}[N,6] z",
        "{t}[5,6] w, {t}[6] b",
        "[n] m = MatMul (r, w) y = Add (b, m)",
    ),
}
ALL = PLANES | VOLUMES | LINES | POINTS | MATRICES

# Which nodes each form is for, and a rank that fits all of them.
FORMS: Mapping[Form, tuple[Mapping[str, Case], Rank]] = {
    Form.SPATIAL_SVD: (PLANES | VOLUMES, (4,)),
    Form.CHANNEL_SVD: (ALL, (3,)),
    Form.TUCKER: (PLANES | VOLUMES | LINES, (2, 3)),
    Form.DECOUPLE: (PLANES | VOLUMES | LINES, (2,)),
}
CASES = [(form, name) for form, (cases, _) in FORMS.items() for name in cases]


def pass_of(form: Form, ranks: Mapping[str, Rank]) -> Pass:
    """Give the pass that factorizes some nodes."""
    return FACTORIZATIONS[form].of(ranks)


def nearest(form: Form, kernel: Array, rank: Rank) -> Array:
    """Give the kernel (n, c, taps...) that the chain applies, from full decompositions."""
    n, c, *taps = kernel.shape
    if form == Form.SPATIAL_SVD:
        first = math.prod(taps[: LinearShape(n, c, tuple(taps)).first_axes])
        by_taps = kernel.reshape(n, c, first, -1).transpose(1, 2, 0, 3)
        low = _truncated(by_taps.reshape(c * first, -1), *rank).reshape(by_taps.shape)
        return np.asarray(low.transpose(2, 0, 1, 3).reshape(kernel.shape))
    if form == Form.CHANNEL_SVD:
        return _truncated(kernel.reshape(n, -1), *rank).reshape(kernel.shape)
    if form == Form.DECOUPLE:
        low = np.stack([_truncated(kernel[:, i].reshape(n, -1), *rank) for i in range(c)], axis=1)
        return np.asarray(low.reshape(kernel.shape))
    out = np.linalg.svd(kernel.reshape(n, -1))[0][:, : rank[1]]
    into = np.linalg.svd(kernel.swapaxes(0, 1).reshape(c, -1))[0][:, : rank[0]]
    return np.einsum("nm,cd,md...->nc...", out @ out.T, into @ into.T, kernel)


def _truncated(matrix: Array, rank: int) -> Array:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ v[:rank])


def expected(form: Form, model: onnx.ModelProto, ranks: Mapping[str, Rank]) -> onnx.ModelProto:
    """Give the model with the kernels of the chains in the nodes themselves."""
    new, views = {}, linears(model)
    for name, rank in ranks.items():
        linear, shape = views[name], LinearShape.of(views[name])
        kernel = linear.matrix.reshape(shape.outputs, shape.inputs, *shape.kernel)
        matrix = nearest(form, kernel, rank).reshape(linear.shape)
        new[name] = AffineMap(matrix, linear.affine.shift)
    return ReplaceWeights(new)(model).model
