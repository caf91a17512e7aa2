"""Operators that combine elements of axes: products, sums, means, normalizations, Softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fskd_onnx.gradient.operator_table import (
    Function,
    NodeReader,
    UnsupportedError,
    along,
    axes_of,
    operator,
    whole_numbers,
)


@operator("MatMul")
def _matmul(node: NodeReader) -> Function:
    return torch.matmul


@operator("Gemm")
def _gemm(node: NodeReader) -> Function:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    turned = bool(node.whole("transA", 0)), bool(node.whole("transB", 0))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        left, right = (x.mT if turn else x for x, turn in zip((a, b), turned, strict=True))
        product = left @ right
        product = product if alpha == 1 else alpha * product
        return product if c is None else product + (c if beta == 1 else beta * c)

    return gemm


@operator("Einsum")
def _einsum(node: NodeReader) -> Function:
    equation = node.text("equation", "")
    return lambda *inputs: torch.einsum(equation, *inputs)


_Reduce = Callable[[Tensor, list[int], bool], Tensor]
_REDUCTIONS: Mapping[str, _Reduce] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def _reduce(node: NodeReader) -> Function:
    function, stated = _REDUCTIONS[node.op], node.wholes("axes")
    keep = bool(node.whole("keepdims", 1))
    nothing = bool(node.whole("noop_with_empty_axes", 0))

    def reduce(x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = stated if given is None else whole_numbers(given)
        if not axes and nothing:
            return x
        return function(x, axes_of(axes or None, x.ndim), keep)

    return reduce


@operator("ArgMax", "ArgMin")
def _arg(node: NodeReader) -> Function:
    axis, keep = node.whole("axis", 0), bool(node.whole("keepdims", 1))
    node.only("select_last_index", node.whole("select_last_index", 0), 0)
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    return lambda x: function(x, dim=axis, keepdim=keep)


@operator("Softmax", "LogSoftmax")
def _softmax(node: NodeReader) -> Function:
    function = F.softmax if node.op == "Softmax" else F.log_softmax
    if node.version >= 13:
        last = node.whole("axis", -1)
        return lambda x: function(x, dim=last)
    first = node.whole("axis", 1)

    def softmax(x: Tensor) -> Tensor:
        """Normalise over all axes from one on, as a row."""
        return function(x.flatten(along(first, x.ndim)), dim=-1).reshape(x.shape)

    return softmax


@operator("BatchNormalization")
def _batch_normalization(node: NodeReader) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    node.given("momentum")  # of training
    node.only("training_mode", node.whole("training_mode", 0), 0)
    node.only("spatial", node.whole("spatial", 1), 1)
    node.one_output()

    def normalize(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, scale, shift, training=False, eps=epsilon)

    return normalize


@operator("LayerNormalization")
def _layer_normalization(node: NodeReader) -> Function:
    axis, epsilon = node.whole("axis", -1), node.number("epsilon", 1e-5)
    node.given("stash_type")
    node.one_output()

    def normalize(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        whole = F.layer_norm(x, x.shape[along(axis, x.ndim) :], None, None, epsilon) * scale
        return whole if shift is None else whole + shift

    return normalize


@operator("InstanceNormalization")
def _instance_normalization(node: NodeReader) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale, shift: F.instance_norm(x, weight=scale, bias=shift, eps=epsilon)


@operator("GroupNormalization")
def _group_normalization(node: NodeReader) -> Function:
    groups, epsilon = node.whole("num_groups", 1), node.number("epsilon", 1e-5)
    node.given("stash_type")
    if node.version < 21:
        raise UnsupportedError("it has a scale per group, as before opset 21")
    return lambda x, scale, shift: F.group_norm(x, groups, scale, shift, epsilon)


@operator("LpNormalization")
def _lp_normalization(node: NodeReader) -> Function:
    axis, p = node.whole("axis", -1), node.whole("p", 2)

    def normalize(x: Tensor) -> Tensor:
        size = x.norm(p=p, dim=axis, keepdim=True)
        return torch.where(size == 0, torch.zeros_like(x), x / size)

    return normalize


@operator("LRN")
def _lrn(node: NodeReader) -> Function:
    size = node.whole("size", 1)
    alpha, beta, bias = (
        node.number("alpha", 1e-4),
        node.number("beta", 0.75),
        node.number("bias", 1),
    )

    def normalize(x: Tensor) -> Tensor:
        """Divide by the mean square of ``size`` channels about each, zeros beyond the ends."""
        square = x.square().transpose(1, -1)
        padded = F.pad(square, [(size - 1) // 2, math.ceil((size - 1) / 2)])
        sums = padded.unfold(-1, size, 1).sum(-1).transpose(1, -1)
        return x / (bias + alpha / size * sums) ** beta

    return normalize


@operator("CumSum")
def _cumulative_sum(node: NodeReader) -> Function:
    node.only("exclusive", node.whole("exclusive", 0), 0)
    node.only("reverse", node.whole("reverse", 0), 0)
    return lambda x, axis: torch.cumsum(x, int(axis)).to(x.dtype)
