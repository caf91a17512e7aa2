"""Operators that act on each element give in PyTorch what they give in ONNX Runtime."""

from __future__ import annotations

import pytest

from tests.gradient.agree import Case, assert_agrees

_ONE = "(float[2,3,4] x) => (float[n,c,d] y)"
_TWO = "(float[2,3,4] x, float[3,1] z) => (float[n,c,d] y)"
_BOOLS = "(bool[2,3] x, bool[2,3] z) => (bool[n,c] y)"
CASES = [
    *(
        Case(f"{_ONE} {{ y = {op}(x) }}", 18)
        for op in (
            *("Abs", "Neg", "Sign", "Floor", "Ceil", "Round", "Exp", "Sin", "Cos", "Tanh", "Erf"),
            *("Sigmoid", "Relu", "Softplus", "Softsign", "Mish", "HardSwish", "Identity"),
            *("Reciprocal", "Selu", "HardSigmoid", "Dropout", "Elu", "Celu", "LeakyRelu"),
            *("ThresholdedRelu", "Elu <alpha = 0.5>", "Celu <alpha = 2.0>"),
            *("LeakyRelu <alpha = 0.3>", "Selu <alpha = 1.5, gamma = 0.7>"),
            *("HardSigmoid <alpha = 0.3, beta = 0.4>", "ThresholdedRelu <alpha = 0.2>"),
        )
    ),
    *(Case(f"{_ONE} {{ a = Abs(x) y = {op}(a) }}") for op in ("Sqrt", "Log")),
    *(Case(f"{_TWO} {{ y = {op}(x, z) }}") for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(f"{_TWO} {{ y = {op}(x, z, x) }}") for op in ("Sum", "Mean", "Max", "Min")),
    *(
        Case("(float[2,3] x, float[3] z) => (bool[n,c] y) { y = " + op + "(x, z) }")
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ),
    *(Case(f"{_BOOLS} {{ y = {op}(x, z) }}") for op in ("And", "Or", "Xor")),
    Case("(bool[2,3] x) => (bool[n,c] y) { y = Not(x) }"),
    Case(f"{_TWO} {{ c = Less(x, z) y = Where(c, x, z) }}"),
    Case(f"{_ONE} <float two = {{2.0}}> {{ y = Pow(x, two) }}"),
    Case(f"{_TWO} {{ y = PRelu(x, z) }}"),
    Case(
        "(int64[5] x, int64[5] z) => (int64[n] y) <int64 one = {1}, int64 three = {3}> "
        "{ a = Add(z, one) n = Mul(x, three) m = Neg(n) y = Div(m, a) }"
    ),
    Case(f"{_ONE} {{ y = Gelu(x) }}", 20),
    Case(f'{_ONE} {{ y = Gelu <approximate = "tanh"> (x) }}', 20),
    Case(f"{_ONE} {{ y = Clip <min = -0.5, max = 0.7> (x) }}", 10),
    Case(f"{_ONE} <float low = {{-0.5}}, float high = {{0.7}}> {{ y = Clip(x, low, high) }}"),
    Case(f"{_ONE} <float high = {{0.7}}> {{ y = Clip(x, , high) }}"),
    Case("(float[2,3] x) => (int64[n,c] y) { y = Cast <to = 7> (x) }"),
    Case("(int64[2,3] x) => (float[n,c] y) { y = Cast <to = 1> (x) }"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text.partition("{ ")[2])
def test_a_node_gives_what_the_runtime_gives(case: Case) -> None:
    assert_agrees(case)
