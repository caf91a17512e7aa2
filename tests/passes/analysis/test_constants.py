"""Numbers are read in float64 and written in the type that they are stored in."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from fskd_onnx.passes.analysis import constants
from tests.helpers import Array, build

KINDS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


def cast(values: Array, kind: int) -> Array:
    """What ONNX's Cast makes of float32."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 19]>
        g (float[N] x) => (double[N] z) {{ h = Cast <to = {kind}> (x) z = Cast <to = 11> (h) }}"""
    )
    [value] = ReferenceEvaluator(model).run(None, {"x": values})
    return np.asarray(value)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=20))
def test_what_is_made_is_rounded_as_a_cast_rounds(kind: int, numbers: list[float]) -> None:
    values = np.array(numbers, np.float64)
    constant = constants.make("w", values, kind)
    assert constants.element_type(constant) == kind
    read = constants.read(constant)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, cast(values.astype(np.float32), kind))
    assert constants.survives(read, kind)
    assert constants.survives(values, kind) == np.array_equal(read, values)


def test_what_overflows_does_not_fit() -> None:
    values = np.array([1e5, 1.0])
    assert [constants.fits(values, kind) for kind in KINDS] == [False, True, True, True]
    assert [constants.fits(values * 1e35, kind) for kind in KINDS] == [False, False, False, True]


def test_a_parameter_is_found_behind_a_cast() -> None:
    model = build("""g (float[N,2] x) => (float[N,2] z)
      <bfloat16[2,2] half, float[2,2] plain, int32[2,2] whole> {
        h = Cast <to = 1> (half)
        i = Cast <to = 1> (whole)
        n = Neg (plain)
        a = MatMul (x, h)
        b = MatMul (a, plain)
        c = MatMul (b, i)
        z = MatMul (c, n)
    }""")
    graph = gs.import_onnx(model)
    reads = [node.inputs[1] for node in graph.nodes if node.op == "MatMul"]
    found = [constants.parameter(tensor) for tensor in reads]
    assert [constant and constant.name for constant in found] == ["half", "plain", None, None]
    kinds = [constants.computed_type(tensor) for tensor in reads[:2]]
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT]


@pytest.mark.parametrize("kind", KINDS)
def test_native_numbers_are_those_of_the_file(kind: int) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    constant = gs.import_onnx(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node("Identity", ["w"], ["z"])],
                "g",
                [],
                [onnx.ValueInfoProto(name="z")],
                [onnx.helper.make_tensor("w", kind, values.shape, cast(values, kind).reshape(-1))],
            )
        )
    ).tensors()["w"]
    native, wide = constants.native(constant), constants.read(constant)
    if kind == TensorProto.BFLOAT16:
        assert native.dtype == np.float32
    else:
        assert native.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind)
        assert np.shares_memory(native, constants.native(constant))
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(native, wide)
    np.testing.assert_array_equal(wide.reshape(-1), cast(values.reshape(-1), kind))
