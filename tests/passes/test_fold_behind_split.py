"""What scales and shifts the parts of a block output goes into its weights."""

from __future__ import annotations

import pytest

from fskd_onnx.passes.fold_behind_split import FoldBehindSplit
from tests.helpers import assert_same_function, build, ops

WEIGHTS = """float[4,6] w, float[2] a, float[3] b, float s = {0.5}, float[6] c,
  int64[2] sizes = {2,4}, int64[3] three = {2,3,1}"""


def model_of(nodes: str, read: str = "float[N,5,4]") -> str:
    results = "float[A,B,C] y1, float[A2,B,C] y2"
    return f"g ({read} x) => ({results}) <{WEIGHTS}> {{ {nodes} }}"


FOLDED = {
    "a bias of each part": (
        """p = MatMul (x, w) q1, q2, q3 = Split <axis = -1> (p, three)
           y1 = Add (q1, a) r = Add (b, q2) y2 = Concat <axis = 2> (r, q3)""",
        {"MatMul": 1, "Add": 1, "Split": 1, "Concat": 1},
    ),
    "a scale, of the parts of a node with a bias": (
        """p = MatMul (x, w) h = Add (p, c) q1, q2 = Split <axis = 2> (h, sizes)
           y1 = Mul (q1, s) y2 = Relu (q2)""",
        {"MatMul": 1, "Add": 1, "Split": 1, "Relu": 1},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_it_is_folded(name: str) -> None:
    nodes, left = FOLDED[name]
    model = build(model_of(nodes))
    result = FoldBehindSplit()(model)
    assert ops(result.model) == left
    assert_same_function(model, result.model)
    assert not FoldBehindSplit()(result.model).changed


STAYS = {
    "no channels are divided": """p = MatMul (x, w) q1, q2 = Split <axis = 1> (p, some)
           y1 = Mul (q1, s) y2 = Relu (q2)""",
    "the whole is read too": """p = MatMul (x, w) q1, q2 = Split <axis = 2> (p, sizes)
           y1 = Mul (q1, s) t = Relu (q2) y2 = Concat <axis = 2> (t, p)""",
    "the part is read twice": """p = MatMul (x, w) q1, q2 = Split <axis = 2> (p, sizes)
           t = Mul (q1, s) y1 = Sub (t, q1) y2 = Relu (q2)""",
    "values that are computed": """p = MatMul (x, w) q1, q2 = Split <axis = 2> (p, sizes)
           t = ReduceMax (x) y1 = Mul (q1, t) y2 = Relu (q2)""",
}


@pytest.mark.parametrize("nodes", STAYS.values(), ids=STAYS)
def test_it_stays(nodes: str) -> None:
    text = model_of(nodes).replace("int64[2] sizes", "int64[2] some = {1,4}, int64[2] sizes")
    assert not FoldBehindSplit()(build(text)).changed
