"""The table of operators: what it says is what ONNX says, and all who ask get the same answer."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.moves import MOVES
from fskd_onnx.passes.analysis.operators import (
    OPERATORS,
    UNLISTED,
    Axes,
    Kind,
    activation_bounds,
    find_operator,
    operator_of,
)
from tests.helpers import Array, build, run

# Newer than the oldest version of the onnx package that is supported.
_NEW = {"RMSNormalization", "Swish"}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_one_of_onnx(name: str) -> None:
    assert onnx.defs.has(name) or name in _NEW


def test_what_moves_elements_says_where_to() -> None:
    moved = {name for name, operator in OPERATORS.items() if operator.axes is Axes.MOVED}
    assert moved == MOVES.keys() | {"Concat"}


# One line for each operator that depends on single elements, as a node that reads x and maybe y.
ELEMENTWISE = [
    "Abs (x)",
    "Cast <to = 11> (x)",
    "Ceil (x)",
    "Celu (x)",
    "Clip (x)",
    "Cos (x)",
    "Dropout (x)",
    "Elu (x)",
    "Erf (x)",
    "Exp (x)",
    "Floor (x)",
    "Gelu (x)",
    "HardSigmoid (x)",
    "HardSwish (x)",
    "Identity (x)",
    "LeakyRelu (x)",
    "Log (x)",
    "Mish (x)",
    "Neg (x)",
    "Reciprocal (x)",
    "Relu (x)",
    "Round (x)",
    "Selu (x)",
    "Shrink (x)",
    "Sigmoid (x)",
    "Sign (x)",
    "Sin (x)",
    "Softplus (x)",
    "Softsign (x)",
    "Sqrt (x)",
    "Tanh (x)",
    "ThresholdedRelu (x)",
]
BROADCAST = [
    "Add (x, y)",
    "Div (x, y)",
    "Max (x, y)",
    "Mean (x, y)",
    "Min (x, y)",
    "Mul (x, y)",
    "PRelu (x, y)",
    "Pow (x, y)",
    "Sub (x, y)",
    "Sum (x, y)",
]
MIXED = [
    "BatchNormalization (x, s, s, s, s)",
    "CumSum (x, axis)",
    "DequantizeLinear (i, one)",
    "GroupNormalization <num_groups = 2> (x, s, s)",
    "Hardmax (x)",
    "InstanceNormalization (x, s, s)",
    "LRN <size = 3> (x)",
    "LayerNormalization (x, l)",
    "LogSoftmax (x)",
    "LpNormalization (x)",
    "QuantizeLinear (x, one)",
    "Softmax (x)",
]
POSITIONS = [
    "AveragePool <kernel_shape = [2,2]> (x)",
    "GlobalAveragePool (x)",
    "GlobalLpPool (x)",
    "GlobalMaxPool (x)",
    "LpPool <kernel_shape = [2,2]> (x)",
    "MaxPool <kernel_shape = [2,2]> (x)",
    "Resize (x, , scales)",
]
REDUCED = [
    "ReduceL1 (x, axis)",
    "ReduceL2 (x, axis)",
    "ReduceMax (x, axis)",
    "ReduceMean (x, axis)",
    "ReduceMin (x, axis)",
    "ReduceSum (x, axis)",
    "ReduceSumSquare (x, axis)",
]
SAMPLES = np.random.default_rng(0).uniform(0.5, 2.0, (2, 4, 6, 6)).astype(np.float32)
INTEGERS = np.round(4 * SAMPLES).astype(np.int8)


def computed(node: str, **changed: Array) -> Array:
    """Run a node on x, y, i and some parameters."""
    model = build(
        f"""g (float[2,4,6,6] x, float[2,4,6,6] y, int8[2,4,6,6] i) => (float[A,B,C,D] z)
          <float[4] s, float[6] l, int64[1] axis, float one, float[4] scales> {{
            t = {node}
            z = Cast <to = 1> (t)
        }}""",
        {"s": np.ones(4), "l": np.ones(6), "axis": [3], "one": 1.0, "scales": [1, 1, 2, 2]},
        opset=21,
    )
    feeds: dict[str, Array] = {
        "x": SAMPLES,
        "y": SAMPLES[::-1].copy(),
        "i": np.round(4 * SAMPLES).astype(np.int8),
    }
    return run(model, {**feeds, **changed})["z"]


def reached(node: str) -> tuple[Array, bool]:
    """Change one element of the first input; give what changes behind it, and if shapes are so."""
    first = node.split("(")[1].rstrip(")").split(",")[0]
    plain = INTEGERS if first == "i" else SAMPLES
    results = []
    for step in (0, 2, -2):
        changed = plain.copy()
        changed[1, 2, 3, 1] += step
        results.append(computed(node, **{first: changed}))
    differs = (results[0] != results[1]) | (results[0] != results[2])
    return np.argwhere(differs), results[0].shape == SAMPLES.shape


@pytest.mark.parametrize("node", ELEMENTWISE + BROADCAST)
def test_elements_that_depend_on_those_at_the_same_place(node: str) -> None:
    axes = find_operator(node.split()[0]).axes
    assert axes is (Axes.ELEMENTWISE if node in ELEMENTWISE else Axes.BROADCAST)
    places, same = reached(node)
    assert same
    assert all(place == [1, 2, 3, 1] for place in places.tolist())


@pytest.mark.parametrize("node", MIXED)
def test_elements_that_depend_on_others_too(node: str) -> None:
    assert find_operator(node.split()[0]).axes is Axes.MIXED
    assert reached(node)[1]


@pytest.mark.parametrize("node", POSITIONS + REDUCED)
def test_elements_that_depend_on_their_channel(node: str) -> None:
    axes = find_operator(node.split()[0]).axes
    assert axes is (Axes.POSITIONS if node in POSITIONS else Axes.REDUCED)
    places = reached(node)[0].tolist()
    assert places
    assert all(place[:2] == [1, 2] for place in places)


def test_every_operator_has_a_case() -> None:
    """An operator that is added to the table is added to a list above, or to one of moves."""
    cases = {node.split()[0] for node in ELEMENTWISE + BROADCAST + MIXED + POSITIONS + REDUCED}
    # Of no float, of another signature, too old, or refused by ONNX's own checker.
    others = {"Not", "Where", "Upsample", "MeanVarianceNormalization"} | _NEW
    known = {name for name, op in OPERATORS.items() if op.axes is not Axes.UNKNOWN}
    shapes = {name for name, op in OPERATORS.items() if op.axes is Axes.SHAPE}
    assert known == cases | others | MOVES.keys() | {"Concat"} | shapes


KINDS = {
    Kind.SUM: {"Add", "Mean", "Sub", "Sum"},
    Kind.PRODUCT: {"Div", "Mul"},
    Kind.POOL: {
        *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool"),
        *("MaxPool", "ReduceMax", "ReduceMean", "ReduceSum"),
    },
    Kind.ACTIVATION: {
        *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax"),
        *("Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Swish", "Tanh"),
    },
}


@pytest.mark.parametrize("kind", Kind)
def test_kinds(kind: Kind) -> None:
    assert {name for name, operator in OPERATORS.items() if operator.kind is kind} == KINDS[kind]


PROPERTIES = {
    "is_looked_through": {
        *("BatchNormalization", "Cast", "Dropout", "Flatten", "Identity", "Pad", "Reshape"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    },
    "scales": {"Add", "Div", "Mul", "Sub"},
    "has_window": {"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"},
    "is_global": {"GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"},
    "is_transposed": {"ConvTranspose"},
    "states_bounds": {"Clip"},
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties(name: str) -> None:
    assert {op for op, found in OPERATORS.items() if getattr(found, name)} == PROPERTIES[name]


def test_what_is_random_or_quantizes_is_not_folded() -> None:
    assert {name for name, operator in OPERATORS.items() if not operator.folds} == {
        *("Bernoulli", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "Multinomial"),
        *("QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        "RandomUniformLike",
    }


@pytest.mark.parametrize("domain", [None, "", "ai.onnx"])
def test_the_standard_domain_has_three_names(domain: str | None) -> None:
    assert find_operator("Relu", domain) is OPERATORS["Relu"]
    assert operator_of(gs.Node("Relu", domain=domain)) is OPERATORS["Relu"]


def test_nothing_is_known_of_an_operator_that_is_not_listed() -> None:
    assert find_operator("Relu", "com.microsoft") is UNLISTED
    assert find_operator("Einsum") is UNLISTED
    assert UNLISTED.axes is Axes.UNKNOWN
    assert UNLISTED.kind is None
    assert not (UNLISTED.is_looked_through or UNLISTED.scales or UNLISTED.has_window)


@pytest.mark.parametrize(
    ("name", "bounds"), [("Relu", (0.0, math.inf)), ("Sigmoid", (-math.inf, math.inf))]
)
def test_bounds_of_activations(name: str, bounds: tuple[float, float]) -> None:
    assert activation_bounds(gs.Node(name, inputs=[gs.Variable("x")])) == bounds
