"""Numbers of an output say which of the tensors that were joined last they come from."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import NumberParts
from fskd_onnx.passes.analysis.output_parts import all_parts, parts_of
from tests.helpers import build, run

# Boxes and scores of a detector with two levels, by anchors.
DETECTOR = """g (float[N,4,2,2] x) => (float[N,A,3] y, float[N,4,2,2] z) <
  float[2,4,1,1] wb, float[1,4,1,1] ws, int64[3] flat = {0, 0, -1}> {
    b = Conv (x, wb)
    l = Conv (x, ws)
    s = Sigmoid (l)
    one = Concat <axis = 1> (b, s)
    rows = Reshape (one, flat)
    small = MaxPool <kernel_shape = [2,2]> (one)
    few = Reshape (small, flat)
    both = Concat <axis = 2> (rows, few)
    y = Transpose <perm = [0, 2, 1]> (both)
    z = Relu (x)
}"""


def test_parts_are_what_is_joined_last() -> None:
    graph = gs.import_onnx(build(DETECTOR))
    y, z = graph.outputs
    assert [part.name for part in parts_of(y)] == ["b", "s", "small"]
    assert parts_of(z) == [z]
    assert [part.name for part in all_parts(graph)] == ["b", "s", "small"]


def test_outputs_hold_the_numbers_of_their_parts() -> None:
    model = build(DETECTOR)
    result = NumberParts()(model)
    x = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float32)
    found = run(result.model, {"x": x})
    expected = np.tile([0, 0, 1], (3, 5, 1))
    expected[:, 4] = 2
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(found["z"], run(model, {"x": x})["z"])
    assert NumberParts()(result.model).notes == ()


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu (x)",
        "a = Relu (x) y = Concat <axis = 1> (a, a)",
        "a = Relu (x) b = Sigmoid (x) c = Concat <axis = 1> (a, b) y = Relu (c)",
        "a = Relu (x) y = Concat <axis = 1> (" + ", ".join(["a"] * 40) + ")",
    ],
    ids=["nothing joined", "joined with itself", "not moved alone", "one tensor many times"],
)
def test_an_output_of_one_part_stays(body: str) -> None:
    model = build(f"g (float[N,2] x) => (float[N,M] y) {{ {body} }}")
    assert not NumberParts()(model).changed


def test_a_great_many_parts_are_one() -> None:
    parts = " ".join(f"a{n} = Relu (x)" for n in range(40))
    names = ", ".join(f"a{n}" for n in range(40))
    model = build(f"g (float[N,2] x) => (float[N,M] y) {{ {parts} y = Concat <axis=1> ({names}) }}")
    assert not NumberParts()(model).changed


def test_inputs_and_constants_are_parts_too_in_any_type() -> None:
    model = build(
        """g (float16[N,2] x) => (float16[N,6] y) {
            t = Shape (x)
            k = ConstantOfShape (t)
            c = CastLike (k, x)
            r = Relu (x)
            y = Concat <axis = 1> (x, c, r)
        }"""
    )
    found = run(NumberParts()(model).model, {"x": np.ones((2, 2), np.float16)})["y"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, [[0, 0, 1, 1, 2, 2]] * 2)
