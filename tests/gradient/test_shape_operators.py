"""Operators that move elements give in PyTorch what they give in ONNX Runtime."""

from __future__ import annotations

import pytest

from tests.gradient.agree import Case, assert_agrees

_X = "(float[2,3,4] x)"
_OUT = "=> (float[n,c,d] y)"


def _slice(starts: str, ends: str, axes: str, steps: str) -> Case:
    count = starts.count(",") + 1
    lists = ", ".join(
        f"int64[{count}] {name} = {{{values}}}"
        for name, values in zip("abcd", (starts, ends, axes, steps), strict=True)
    )
    return Case(f"{_X} {_OUT} <{lists}> {{ y = Slice(x, a, b, c, d) }}")


CASES = [
    Case("() => (float[n] y) { y = Constant <value_floats = [1.0, 2.0]> () }"),
    Case("() => (int64 y) { y = Constant <value_int = 3> () }"),
    Case("() => (float[n] y) { y = Constant <value = float[2] {1.0, 2.0}> () }"),
    Case(f"{_X} {_OUT} {{ s = Shape(x) y = ConstantOfShape <value = float[1] {{2.5}}> (s) }}"),
    Case(f"{_X} => (int64[n] y) {{ y = Shape <start = 1, end = -1> (x) }}"),
    Case(f"{_X} => (int64 y) {{ y = Size(x) }}"),
    Case("() => (int64[n] y) <int64 a = {2}, int64 b = {9}, int64 c = {3}> { y = Range(a, b, c) }"),
    Case(f"{_X} => (float[n,c] y) <int64[2] s = {{0, -1}}> {{ y = Reshape(x, s) }}"),
    *(Case(f"{_X} => (float[n,c] y) {{ y = Flatten <axis = {a}> (x) }}") for a in (0, 1, -1, 3)),
    Case(f"{_X} {_OUT} {{ y = Transpose(x) }}"),
    Case(f"{_X} {_OUT} {{ y = Transpose <perm = [1, 0, 2]> (x) }}"),
    Case("(float[2,1,4,1] x) => (float[n,c] y) { y = Squeeze(x) }"),
    Case("(float[2,1,4,1] x) => (float[n,c,d] y) <int64[1] a = {-1}> { y = Squeeze(x, a) }"),
    Case("(float[2,1,4,1] x) => (float[n,c,d] y) { y = Squeeze <axes = [1]> (x) }", 11),
    Case("(float[2,3] x) => (float[n,c,d,e] y) <int64[2] a = {-1, 1}> { y = Unsqueeze(x, a) }"),
    Case("(float[2,3] x) => (float[n,c,d] y) { y = Unsqueeze <axes = [0]> (x) }", 11),
    Case("(float[2,3] x, float[2,1] z) => (float[n,c] y) { y = Concat <axis = -1> (x, z) }"),
    Case(
        "(float[2,5] x) => (float[n,a] y, float[n,b] z) <int64[2] s = {2, 3}> "
        "{ y, z = Split <axis = 1> (x, s) }"
    ),
    Case("(float[2,5] x) => (float[n,b] z) { y, z = Split <axis = 1, num_outputs = 2> (x) }", 18),
    Case("(float[2,4] x) => (float[n,a] y, float[n,b] z) { y, z = Split <axis = 1> (x) }", 11),
    _slice("0, 1", "1, 9", "0, 2", "1, 2"),
    _slice("-2", "-1", "1", "1"),
    _slice("-1", "-9", "2", "-2"),
    _slice("9", "0", "2", "-1"),
    Case(f"{_X} {_OUT} {{ y = Slice <starts = [1], ends = [3], axes = [2]> (x) }}", 9),
    Case(f"{_X} {_OUT} <int64[2] i = {{2, -1}}> {{ y = Gather <axis = 1> (x, i) }}"),
    Case(f"{_X} => (float[n,c] y) <int64 i = {{1}}> {{ y = Gather <axis = 2> (x, i) }}"),
    Case(
        "(float[2,3] x) => (float[n,c] y) <int64[2,2] i = {0, -1, 2, 1}> "
        "{ y = GatherElements <axis = 1> (x, i) }"
    ),
    Case("(float[3,1] x) => (float[n,c,d] y) <int64[3] s = {2, 1, 4}> { y = Expand(x, s) }"),
    Case(f"{_X} {_OUT} <int64[3] r = {{2, 1, 3}}> {{ y = Tile(x, r) }}"),
    *(
        Case(
            f"(float[2,3,4,5] x) => (float[a,b,c,d] y) <int64[8] p = {{0, 0, 1, 2, 0, 0, 2, 1}}> "
            f'{{ y = Pad <mode = "{mode}"> (x, p) }}'
        )
        for mode in ("constant", "reflect", "edge")
    ),
    Case(
        f"{_X} {_OUT} <int64[2] p = {{1, 2}}, float v = {{0.5}}, int64[1] a = {{1}}> "
        "{ y = Pad(x, p, v, a) }",
        18,
    ),
    Case(f"{_X} {_OUT} {{ y = Pad <pads = [0, 0, 1, 0, 0, 2], value = 0.5> (x) }}", 10),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.text.partition("{ ")[2])
def test_a_node_gives_what_the_runtime_gives(case: Case) -> None:
    assert_agrees(case)
