"""Inputs and outputs are described, and the axis of the samples is found."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.interface import (
    InputSpec,
    fixed_batch_size,
    input_specs,
    output_names,
)
from tests.helpers import build


def test_inputs_are_described() -> None:
    # initializers that are inputs (before version 4 all are) need not be fed
    model = build(
        "g (float[N,4] x, int64[2,0,M] ids, float16 scalar) => (float[N,6] z) <float[4,6] w>"
        "{ z = MatMul (x, w) }",
        ir=3,
        opset=9,
    )
    specs = input_specs(model)
    assert [(spec.name, spec.shape, spec.dtype) for spec in specs] == [
        ("x", (None, 4), np.dtype(np.float32)),
        ("ids", (2, None, None), np.dtype(np.int64)),
        ("scalar", (), np.dtype(np.float16)),
    ]
    assert output_names(model) == ["z"]
    assert fixed_batch_size(specs) == 2
    assert fixed_batch_size(specs[:1]) is None


@pytest.mark.parametrize("kind", [0, 99])
def test_inputs_without_a_type_are_refused(kind: int) -> None:
    model = build("g (float[2] x) => (float[2] z) { z = Relu (x) }")
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(ModelError, match=f"input 'x' has no type of ONNX .{kind}."):
        input_specs(model)


def test_inputs_that_are_no_tensors_are_refused() -> None:
    model = build("g (seq(float[2]) x) => (int64 z) { z = SequenceLength (x) }")
    with pytest.raises(ModelError, match="input 'x' is not a tensor"):
        input_specs(model)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ("float[N,5,6] x", "float[N,4] z", [0]),
        ("float[5,N,6] x", "float[5,N,4] z", [1]),
        ("float[T,N,6] x", "float[N,4] z", [1]),
        ("float[T,batch_size,6] x", "float[T,batch_size,4] z", [1]),
        ("float[s0,s1,6] x", "float[s1,4] z", [1]),
        ("float[s0,s1,6] x", "float[s0,s1,4] z", [0]),
        ("float[N,3,H,W] x", "float[M,H,W] z", [0]),
        ("float[1,T,8] x", "float[T,4] z", [0]),
        ("float[1,N,8] x", "float[1,N,4] z", [0]),
        ("float[1,batch,8] x", "float[1,batch,4] z", [1]),
        ("float[4,3] x", "float[4,3] z", [0]),
        ("float[N,5] x, float[2,N,8] s, float[2,N,8] t", "float[N,4] z", [0, 1, 1]),
        ("float[s0,5] x, float[2,s1,8] s", "float[c,4] z", [0, 1]),
        ("float[s0,5] x, float[s1,8] s", "float[c,4] z", [0, 0]),
        ("float[s0,5] x, float[1,s1,8] s", "float[c,4] z", [0, 0]),
        ("float[N,5] x, float g", "float[N,4] z", [0, None]),
        ("float[?,?] x, float[2,?,8] s, float g", "float[?,4] z", [0, 1, None]),
        ("float[?,5] x, float[2,?,?] s", "float[?,4] z", [0, 0]),
        ("float[1,5] x, float[2,1,8] s, float g", "float[1,4] z", [0, 1, None]),
        ("float[2,5] x, float[2,1,8] s", "float[2,4] z", [0, 0]),
        ("float[1,2] x, float[2,1,8] s", "float[1,4] z", [0, 0]),
        ("float[3,5] x, float[2,1,8] s", "float[3,4] z", [0, 0]),
    ],
)
def test_the_axis_of_the_samples_is_that_of_their_symbol(
    inputs: str, outputs: str, expected: list[int | None]
) -> None:
    text = f'<ir_version: 8, opset_import: ["own": 1]> g ({inputs}) => ({outputs})'
    model = onnx.parser.parse_model(text + " { z = own.Any (x) }")
    assert [spec.axis for spec in input_specs(model)] == expected


def test_samples_are_joined_along_their_axis() -> None:
    stacked = np.arange(24).reshape(4, 2, 3)
    for axis, shape in ((0, (4, 2, 3)), (1, (2, 4, 3)), (2, (2, 3, 4)), (None, (2, 3))):
        spec = InputSpec("x", (None,) * len(shape), np.dtype(np.int64), axis)
        joined = spec.joined(stacked)
        assert joined.shape == shape == spec.with_samples((2, 3), 4)
        if axis is not None:
            np.testing.assert_array_equal(np.moveaxis(joined, axis, 0), stacked)
