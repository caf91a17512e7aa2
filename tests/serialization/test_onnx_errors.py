"""What ONNX says of a broken model, in plain words."""

from __future__ import annotations

import onnx
import pytest

from fskd_onnx.serialization.onnx_errors import in_plain_words
from tests.helpers import build


def model() -> onnx.ModelProto:
    return build("g (float[N,4] x) => (float[N,6] y) <float[4,6] w> { y = MatMul (x, w) }")


@pytest.mark.parametrize("name", [b"w\xff\xfe", b"\x80"])
def test_names_that_are_no_text_are_no_second_error(name: bytes) -> None:
    # An initializer without its numbers, whose name is no UTF-8.
    tensor = onnx.TensorProto(name="ab", data_type=1, dims=[3]).SerializeToString()
    field = tensor.replace(b"\x02ab", bytes([len(name)]) + name)
    broken = model()
    broken.graph.initializer.append(onnx.TensorProto.FromString(field))
    assert in_plain_words(ValueError("no such complaint"), broken) == "no such complaint"


def test_a_cycle_is_named_as_one() -> None:
    broken = build("g (float[4] x) => (float[4] y) { h = Relu (x)  y = Relu (h) }")
    broken.graph.node[0].input[0] = "y"
    error = onnx.checker.ValidationError(
        "Nodes in a graph must be topologically sorted, however input 'y' of node: is not output"
    )
    try:
        onnx.checker.check_model(broken)
    except onnx.checker.ValidationError as found:
        error = found
    assert in_plain_words(error, broken).endswith("computed from itself, in a cycle of nodes")
