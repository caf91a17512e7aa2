"""The table of ONNX operators: what each does to channels and positions, and how it is treated.

Every module that asks what an operator does asks here. An operator is looked up by name and domain:
the namesake of another domain is another operator. Nothing is known of an operator that is not
listed: channels end at it, and whatever it reads has to stay as it is.

How to add an operator: one line in ``OPERATORS``, which says where the elements of its (first)
output come from and, where that matters, how pairing sees it::

    "Softsign": Operator(_ELEMENTWISE),

and one case in ``tests/passes/analysis/test_operators.py``. An operator that is ``_MOVED`` also
needs a function in ``fskd_onnx.passes.analysis.moves``, which says where the elements go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

import numpy as np
import onnx_graphsurgeon as gs


class Axes(Enum):
    """Which elements of the inputs an element of the output depends on."""

    UNKNOWN = auto()
    """On any, in a way that is not known."""
    ELEMENTWISE = auto()
    """On the element at the same place of the first input alone."""
    MIXED = auto()
    """On the element at the same place of the first input above all, and on others or on constants
    that differ from channel to channel: normalizations, Softmax."""
    BROADCAST = auto()
    """On the elements at the same place of all inputs, which are broadcast."""
    POSITIONS = auto()
    """On elements of the same sample and channel (axes 0 and 1) of the first input, at any
    positions (axes from 2 on); the rank stays."""
    REDUCED = auto()
    """On all elements along the axes that the node names, at the same place along the others."""
    MOVED = auto()
    """On one element of one input, at another place."""
    SHAPE = auto()
    """On no element, only on the shape of the input."""


class Kind(StrEnum):
    """What pairing takes for the same, whichever operator does it."""

    SUM = "sum"
    PRODUCT = "product"
    POOL = "pool"
    ACTIVATION = "activation"


@dataclass(frozen=True)
class Operator:
    """What an operator does.

    Attributes:
        axes: which elements of the inputs its output depends on.
        kind: what pairing sees in it; None for the operator itself.
        is_looked_through: whether pairing overlooks it, since exporters and optimizers disagree on
            where it stands, or whether it is there at all.
        scales: whether with a constant it scales or shifts channels, and belongs to the linear node
            in front of it.
        has_window: whether a window moves over positions, by ``kernel_shape`` and ``strides``.
        is_transposed: whether it moves over the output, not over the input.
        is_global: whether it leaves one position of each channel.
        low: it is the identity from this bound on, and constant below; -inf for none.
        high: it is the identity up to this bound, and constant above; inf for none.
        states_bounds: whether the node itself states these two bounds.
        folds: whether it may be computed ahead where its inputs are constants: not if it is random
            or quantizes.
    """

    axes: Axes = Axes.UNKNOWN
    kind: Kind | None = None
    is_looked_through: bool = False
    scales: bool = False
    has_window: bool = False
    is_transposed: bool = False
    is_global: bool = False
    low: float = -math.inf
    high: float = math.inf
    states_bounds: bool = False
    folds: bool = True


UNLISTED = Operator()
"""What is known of an operator that is not in the table."""

_ELEMENTWISE, _MIXED, _BROADCAST = Axes.ELEMENTWISE, Axes.MIXED, Axes.BROADCAST
_POSITIONS, _REDUCED, _MOVED = Axes.POSITIONS, Axes.REDUCED, Axes.MOVED

OPERATORS = {
    # Activations and other functions of one element.
    "Abs": Operator(_ELEMENTWISE),
    "Cast": Operator(_ELEMENTWISE, is_looked_through=True),
    "Ceil": Operator(_ELEMENTWISE),
    "Celu": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Clip": Operator(_ELEMENTWISE, Kind.ACTIVATION, states_bounds=True),
    "Cos": Operator(_ELEMENTWISE),
    "Dropout": Operator(_ELEMENTWISE, is_looked_through=True, folds=False),
    "Elu": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Erf": Operator(_ELEMENTWISE),
    "Exp": Operator(_ELEMENTWISE),
    "Floor": Operator(_ELEMENTWISE),
    "Gelu": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "HardSigmoid": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "HardSwish": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Identity": Operator(_ELEMENTWISE, is_looked_through=True),
    "LeakyRelu": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Log": Operator(_ELEMENTWISE),
    "Mish": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Neg": Operator(_ELEMENTWISE),
    "Not": Operator(_ELEMENTWISE),
    "Reciprocal": Operator(_ELEMENTWISE),
    "Relu": Operator(_ELEMENTWISE, Kind.ACTIVATION, low=0.0),
    "Round": Operator(_ELEMENTWISE),
    "Selu": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Shrink": Operator(_ELEMENTWISE),
    "Sigmoid": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Sign": Operator(_ELEMENTWISE),
    "Sin": Operator(_ELEMENTWISE),
    "Softplus": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Softsign": Operator(_ELEMENTWISE),
    "Sqrt": Operator(_ELEMENTWISE),
    "Swish": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "Tanh": Operator(_ELEMENTWISE, Kind.ACTIVATION),
    "ThresholdedRelu": Operator(_ELEMENTWISE),
    # Functions of several elements at the same place.
    "Add": Operator(_BROADCAST, Kind.SUM, scales=True),
    "Div": Operator(_BROADCAST, Kind.PRODUCT, scales=True),
    "Max": Operator(_BROADCAST),
    "Mean": Operator(_BROADCAST, Kind.SUM),
    "Min": Operator(_BROADCAST),
    "Mul": Operator(_BROADCAST, Kind.PRODUCT, scales=True),
    "PRelu": Operator(_BROADCAST, Kind.ACTIVATION),
    "Pow": Operator(_BROADCAST),
    "Sub": Operator(_BROADCAST, Kind.SUM, scales=True),
    "Sum": Operator(_BROADCAST, Kind.SUM),
    "Where": Operator(_BROADCAST),
    # Normalizations: elements stay at their places, but channels are not independent.
    "BatchNormalization": Operator(_MIXED, is_looked_through=True),
    "CumSum": Operator(_MIXED),
    "GroupNormalization": Operator(_MIXED),
    "Hardmax": Operator(_MIXED),
    "InstanceNormalization": Operator(_MIXED),
    "LRN": Operator(_MIXED),
    "LayerNormalization": Operator(_MIXED),
    "LogSoftmax": Operator(_MIXED, Kind.ACTIVATION),
    "LpNormalization": Operator(_MIXED),
    "MeanVarianceNormalization": Operator(_MIXED),
    "RMSNormalization": Operator(_MIXED),
    "Softmax": Operator(_MIXED, Kind.ACTIVATION),
    # Linear nodes: what is not fitted is not known (``linear.find_linear`` views the others).
    "Conv": Operator(has_window=True),
    "ConvTranspose": Operator(has_window=True, is_transposed=True),
    # Over positions.
    "AveragePool": Operator(_POSITIONS, Kind.POOL, has_window=True),
    "GlobalAveragePool": Operator(_POSITIONS, Kind.POOL, is_global=True),
    "GlobalLpPool": Operator(_POSITIONS, Kind.POOL, is_global=True),
    "GlobalMaxPool": Operator(_POSITIONS, Kind.POOL, is_global=True),
    "LpPool": Operator(_POSITIONS, Kind.POOL, has_window=True),
    "MaxPool": Operator(_POSITIONS, Kind.POOL, has_window=True),
    "Resize": Operator(_POSITIONS),
    "Upsample": Operator(_POSITIONS),
    # Over axes that the node names.
    "ReduceL1": Operator(_REDUCED),
    "ReduceL2": Operator(_REDUCED),
    "ReduceMax": Operator(_REDUCED, Kind.POOL),
    "ReduceMean": Operator(_REDUCED, Kind.POOL),
    "ReduceMin": Operator(_REDUCED),
    "ReduceSum": Operator(_REDUCED, Kind.POOL),
    "ReduceSumSquare": Operator(_REDUCED),
    # Elements move, see ``fskd_onnx.passes.analysis.moves``.
    "Concat": Operator(_MOVED),
    "DepthToSpace": Operator(_MOVED),
    "Flatten": Operator(_MOVED, is_looked_through=True),
    "Gather": Operator(_MOVED),
    "Pad": Operator(_MOVED, is_looked_through=True),
    "Reshape": Operator(_MOVED, is_looked_through=True),
    "Slice": Operator(_MOVED),
    "SpaceToDepth": Operator(_MOVED),
    "Split": Operator(_MOVED),
    "Squeeze": Operator(_MOVED, is_looked_through=True),
    "Transpose": Operator(_MOVED, is_looked_through=True),
    "Unsqueeze": Operator(_MOVED, is_looked_through=True),
    # Shapes.
    "Shape": Operator(Axes.SHAPE),
    "Size": Operator(Axes.SHAPE),
    # Random, or quantizing on purpose.
    "Bernoulli": Operator(folds=False),
    "DequantizeLinear": Operator(_MIXED, folds=False),
    "DynamicQuantizeLinear": Operator(folds=False),
    "Multinomial": Operator(folds=False),
    "QuantizeLinear": Operator(_MIXED, folds=False),
    "RandomNormal": Operator(folds=False),
    "RandomNormalLike": Operator(folds=False),
    "RandomUniform": Operator(folds=False),
    "RandomUniformLike": Operator(folds=False),
}
"""Operators of the standard domain by name."""


def find_operator(name: str, domain: str | None = None) -> Operator:
    """Return what is known of an operator.

    Args:
        name: such as "Relu".
        domain: empty or None for the standard one.
    """
    return OPERATORS.get(name, UNLISTED) if domain in (None, "", "ai.onnx") else UNLISTED


def operator_of(node: gs.Node) -> Operator:
    """Return what is known of the operator of a node."""
    return find_operator(str(node.op), node.domain)


def activation_bounds(node: gs.Node) -> tuple[float, float]:
    """Return the bounds between which a node is the identity, and beyond which it is constant.

    Returns:
        (-inf, inf) where the node is no such activation, or its bounds are computed.
    """
    operator = operator_of(node)
    if not operator.states_bounds:
        return operator.low, operator.high
    # They were the attributes of Clip before opset 11, and are its inputs since.
    bounds = [node.attrs.get("min", operator.low), node.attrs.get("max", operator.high)]
    for slot, tensor in enumerate(node.inputs[1:]):
        if isinstance(tensor, gs.Constant):
            bounds[slot] = np.asarray(tensor.values).item()
        elif not tensor.is_empty():
            return operator.low, operator.high
    return float(bounds[0]), float(bounds[1])
