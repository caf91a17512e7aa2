"""A teacher's matrices are joined, or apart, as the student's are, where that is beyond doubt."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.joined_layers import rewrites_of_teacher
from fskd_onnx.passes.join_layers import JoinLayers, SplitLayers
from tests.helpers import build

WEIGHTS = """float[4,3] q, float[4,3] k, float[4,3] v, float[4,9] w, float[3,4] o,
    int64[3] sizes = {3,3,3}"""
APART = "a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v)"
JOINED = "h = MatMul (x, w) a, b, c = Split <axis = -1> (h, sizes)"
OTHER_ORDER = "h = MatMul (x, w) b, a, c = Split <axis = -1> (h, sizes)"
ATTENTION = """t = Transpose <perm = [0,2,1]> (b)
    s = MatMul (a, t) p = Softmax <axis = -1> (s) m = MatMul (p, c)"""
ALIKE = "s = Add (a, b) m = Add (s, c)"


def graph(projections: str, behind: str = ATTENTION) -> gs.Graph:
    return gs.import_onnx(
        build(
            f"""g (float[N,5,4] x) => (float[N,5,4] z) <{WEIGHTS}> {{
                {projections} {behind} z = MatMul (m, o)
            }}"""
        )
    )


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (APART, JOINED, [JoinLayers((("a", "b", "c"),))]),
        (APART, OTHER_ORDER, [JoinLayers((("b", "a", "c"),))]),
        (JOINED, APART, [SplitLayers(("h",))]),
        (JOINED, OTHER_ORDER, []),
        (APART, APART, []),
    ],
)
def test_the_student_says_how_the_teacher_is_written(
    teacher: str, student: str, expected: list[JoinLayers | SplitLayers]
) -> None:
    assert rewrites_of_teacher(graph(teacher), graph(student)) == expected


def test_matrices_that_nothing_tells_apart_stay() -> None:
    assert rewrites_of_teacher(graph(APART, ALIKE), graph(JOINED, ALIKE)) == []
