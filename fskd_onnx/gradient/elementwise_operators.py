"""Operators that act on each element by itself, with broadcasting (ONNX operator specification)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fskd_onnx.gradient.operator_table import Function, NodeReader, operator, torch_type


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide; whole numbers are cut off towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


_PLAIN: Mapping[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Pow": _power,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Where": torch.where,
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Sigmoid": torch.sigmoid,
    "Relu": F.relu,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
}


@operator(*_PLAIN)
def _plain(node: NodeReader) -> Function:
    return _PLAIN[node.op]


_FOLDED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Sum": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


@operator("Sum", "Max", "Min", "Mean")
def _of_several(node: NodeReader) -> Function:
    if node.op == "Mean":
        return lambda *inputs: functools.reduce(torch.add, inputs) / len(inputs)
    return lambda *inputs: functools.reduce(_FOLDED[node.op], inputs)


@operator("LeakyRelu", "Elu", "Celu", "ThresholdedRelu")
def _with_alpha(node: NodeReader) -> Function:
    alpha = node.number("alpha", 0.01 if node.op == "LeakyRelu" else 1.0)
    functions: Mapping[str, Function] = {
        "LeakyRelu": lambda x: F.leaky_relu(x, alpha),
        "Elu": lambda x: F.elu(x, alpha),
        "Celu": lambda x: F.celu(x, alpha),
        "ThresholdedRelu": lambda x: torch.where(x > alpha, x, torch.zeros_like(x)),
    }
    return functions[node.op]


@operator("Selu")
def _selu(node: NodeReader) -> Function:
    alpha = node.number("alpha", 1.6732632423543772848170429916717)
    gamma = node.number("gamma", 1.0507009873554804934193349852946)
    return lambda x: gamma * F.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(node: NodeReader) -> Function:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0, 1)


@operator("Gelu")
def _gelu(node: NodeReader) -> Function:
    kind = node.only("approximate", node.text("approximate", "none"), "none", "tanh")
    return lambda x: F.gelu(x, approximate=kind)


@operator("Clip")
def _clip(node: NodeReader) -> Function:
    low, high = node.given("min"), node.given("max")  # attributes before opset 11

    def clip(x: Tensor, least: Tensor | None = None, most: Tensor | None = None) -> Tensor:
        for bound, given, cut in ((low, least, torch.maximum), (high, most, torch.minimum)):
            if given is not None or bound is not None:
                limit = torch.as_tensor(bound, device=x.device) if given is None else given
                x = cut(x, limit.to(x.dtype))
        return x

    return clip


@operator("Dropout")
def _dropout(node: NodeReader) -> Function:
    for ignored in ("ratio", "seed", "is_test", "consumed_inputs"):
        node.given(ignored)
    node.one_output()
    return lambda x, *_: x  # every Dropout runs as it does in inference


@operator("Cast")
def _cast(node: NodeReader) -> Function:
    for ignored in ("saturate", "round_mode"):  # of 8-bit floats, which have no type here
        node.given(ignored)
    kind = torch_type(node.whole("to", 1))
    return lambda x: x.to(kind)
