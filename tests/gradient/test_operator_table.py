"""Every operator of the table has a case, and what the table does not have is refused by name."""

from __future__ import annotations

import onnx
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.gradient.operator_table import OPERATORS
from fskd_onnx.gradient.torch_graph import check_runs
from tests.gradient import (
    test_elementwise_operators,
    test_reduction_operators,
    test_resize_operators,
    test_shape_operators,
    test_spatial_operators,
)
from tests.helpers import build

MODULES = (
    test_elementwise_operators,
    test_reduction_operators,
    test_resize_operators,
    test_shape_operators,
    test_spatial_operators,
)


def test_every_operator_has_a_case() -> None:
    cases = [case for module in MODULES for case in module.CASES]
    assert {node.op_type for case in cases for node in case.model.graph.node} == OPERATORS.keys()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "y = NonZero(x)",
            r"its node 'y' \(NonZero\) cannot be used there: the operator is not one",
        ),
        ("y = Celu <wobble = 1> (x)", "its attribute wobble is not known"),
        ("y = Cast <to = 8> (x)", "values of the type TensorProto.STRING"),
        ("y = com.example.Relu(x)", "the operator is not one"),
    ],
)
def test_what_cannot_run_is_refused_by_name(body: str, words: str) -> None:
    head = '<ir_version: 8, opset_import: ["": 17, "com.example": 1]>'
    model = onnx.parser.parse_model(f"{head} m (float[2] x) => (float[n] y) {{ {body} }}")
    with pytest.raises(ModelError, match=words):
        check_runs(model, "model", ["y"])


def test_nodes_that_nothing_needs_are_not_looked_at() -> None:
    model = build("m (float[2] x) => (float[n] y, int64[k,n] z) { y = Relu(x) z = NonZero(x) }")
    check_runs(model, "model", ["y"])
