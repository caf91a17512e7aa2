"""Products, sums and normalizations give in PyTorch what they give in ONNX Runtime."""

from __future__ import annotations

import pytest

from tests.gradient.agree import Case, assert_agrees

_X = "(float[2,3,4,5] x)"
_OUT = "=> (float[n,c,h,w] y)"
_REDUCTIONS = ("Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp")
CASES = [
    Case("(float[2,3,4] x, float[2,4,5] z) => (float[n,a,b] y) { y = MatMul(x, z) }"),
    Case(
        "(float[3,2] x) => (float[n,c] y) <float[4,3] w, float[4] b> "
        "{ y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b) }"
    ),
    Case("(float[2,3] x) => (float[n,c] y) <float[3,4] w> { y = Gemm(x, w) }"),
    Case(
        "(float[2,3,4] x, float[2,5,4] z) => (float[n,a,b] y) "
        '{ y = Einsum <equation = "bij,bkj->bik"> (x, z) }'
    ),
    *(Case(f"{_X} {_OUT} {{ y = Reduce{r} <axes = [1, -1]> (x) }}", 13) for r in _REDUCTIONS),
    Case(f"{_X} => (float[n,c] y) {{ y = ReduceMean <axes = [2, 3], keepdims = 0> (x) }}"),
    Case(f"{_X} {_OUT} <int64[2] a = {{2, 3}}> {{ y = ReduceSum(x, a) }}"),
    Case(f"{_X} {_OUT} {{ y = ReduceSum <noop_with_empty_axes = 1> (x) }}"),
    Case(f"{_X} {_OUT} {{ y = ReduceSum(x) }}"),
    Case(f"{_X} {_OUT} {{ a = Abs(x) y = ReduceLogSum <axes = [1]> (a) }}", 13),
    *(
        Case(f"{_X} => (int64[n,c,h,w] y) {{ y = {op} <axis = 2> (x) }}")
        for op in ("ArgMax", "ArgMin")
    ),
    *(
        Case(f"{_X} {_OUT} {{ y = {op} <axis = 1> (x) }}", v)
        for v in (11, 13)
        for op in ("Softmax", "LogSoftmax")
    ),
    Case(
        f"{_X} {_OUT} <float[3] s, float[3] b, float[3] m, float[3] v> "
        "{ y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v) }"
    ),
    Case(
        f"{_X} {_OUT} <float[4,5] s, float[4,5] b> "
        "{ y = LayerNormalization <axis = 2, epsilon = 0.01> (x, s, b) }"
    ),
    Case(f"{_X} {_OUT} <float[5] s> {{ y = LayerNormalization(x, s) }}"),
    Case(f"{_X} {_OUT} <float[3] s, float[3] b> {{ y = InstanceNormalization(x, s, b) }}"),
    Case(
        "(float[2,4,3] x) => (float[n,c,h] y) <float[4] s, float[4] b> "
        "{ y = GroupNormalization <num_groups = 2> (x, s, b) }",
        21,
    ),
    *(Case(f"{_X} {_OUT} {{ y = LpNormalization <axis = 1, p = {p}> (x) }}") for p in (1, 2)),
    *(
        Case(f"(float[2,7,3,3] x) {_OUT} {{ y = LRN <size = {n}, alpha = 0.5, bias = 2.0> (x) }}")
        for n in (3, 5)
    ),
    Case(f"{_X} {_OUT} <int64 a = {{2}}> {{ y = CumSum(x, a) }}"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text.partition("{ ")[2])
def test_a_node_gives_what_the_runtime_gives(case: Case) -> None:
    assert_agrees(case)
