"""Inputs and outputs are described, and two models with others are refused."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.interface import (
    fixed_batch_size,
    input_specs,
    output_names,
    pair_interfaces,
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


def test_inputs_that_are_no_tensors_are_refused() -> None:
    model = build("g (seq(float[2]) x) => (int64 z) { z = SequenceLength (x) }")
    with pytest.raises(ModelError, match="input 'x' is not a tensor"):
        input_specs(model)


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        ("float[N,4] x", "float[N,4] x, float[N,4] y"),
        ("float[N,4] x", "double[N,4] x"),
        ("float[N,4] x", "float[N,4,1] x"),
        ("float[N,4] x", "float[N,5] x"),
    ],
    ids=["count", "type", "rank", "extent"],
)
def test_other_inputs_are_refused(inputs: str, other: str) -> None:
    big, small = (
        build(f"g ({part}) => ({part.split()[0]} z) {{ z = Neg (x) }}") for part in (inputs, other)
    )
    with pytest.raises(ModelError, match=r"^small: takes other inputs \(x .*\) than big \(x "):
        pair_interfaces(big, small, "big", "small")


def test_open_extents_and_batches_fit_all() -> None:
    one, other = (
        build(f"g (float[{shape}] x) => (float[{shape}] z) {{ z = Neg (x) }}")
        for shape in ("4,3,H,7", "N,3,5,7")
    )
    pair_interfaces(one, other, "one", "other")
    pair_interfaces(other, one, "other", "one")


def test_another_number_of_outputs_is_refused() -> None:
    one = build("g (float[N,4] x) => (float[N,4] z) { z = Neg (x) }")
    two = build("g (float[N,4] x) => (float[N,4] z, float[N,4] y) { z = Neg (x) y = Abs (x) }")
    with pytest.raises(ModelError, match=r"^small: has 2 outputs and big has 1"):
        pair_interfaces(one, two, "big", "small")
