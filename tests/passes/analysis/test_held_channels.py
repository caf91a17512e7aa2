"""Why a node lets no channel go, and that there is no reason where it can be rewritten."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis import operators
from fskd_onnx.passes.analysis.held_channels import is_stored, why_held, why_lost
from fskd_onnx.passes.analysis.labels import Labels
from tests.helpers import build

CONSTANTS = """float[4] a, float[4] b, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v4 = {4},
  int64[1] minus = {-1}, int64[8] wider = {0,1,0,1,0,1,0,1}, int64[8] cut = {0,0,1,0,0,-1,1,0},
  int64[8] crop = {0,0,-1,0,0,0,0,-1}, int64[4] sizes = {1,4,6,6}, float[8] roi"""

HELD = {
    "r = InstanceNormalization (y, a, b)": "",
    "r = InstanceNormalization (y, a, c)": "computes its parameters",
    "r = BatchNormalization (y, a, b, a, b)": "",
    "r = BatchNormalization (y, a, b, a, c)": "computes its parameters",
    "r = Softmax <axis = 1> (y)": "computes each of them from others",
    "r = Slice (y, v1, v4, v1)": "",
    "r = Slice (y, v4, v0, v1, minus)": "takes only some of them, at a step",
    "r = Pad (y, wider)": "",
    "r = Pad (y, crop)": "",
    "r = Pad (y, cut)": "takes some of them away",
    "r = Squeeze (y, v0)": "",
    "r = Squeeze (y)": "removes an axis of one channel",
    'r = Resize <mode = "nearest"> (y, , , sizes)': "",
    'r = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (y, roi, , sizes)': (
        "states what it does along the axis of channels"
    ),
    "r = Relu (y)": "",
    "r = Transpose (y)": "",
}


def node_of(text: str) -> gs.Node:
    """Return the node that makes r from four channels y; c is computed."""
    graph = gs.import_onnx(
        build(f"""g (float[1,4,4,4] y, float[4] u) => (float[A] z) <{CONSTANTS}> {{
            c = Relu (u)
            {text}
            s = Identity (r)
            f = Flatten <axis = 0> (s)
            z = ReduceSum <keepdims = 0> (f, v0)
        }}""")
    )
    return next(node for node in graph.nodes if node.outputs[0].name == "r")


@pytest.mark.parametrize("text", HELD)
def test_what_a_node_does_to_channels_is_a_reason_or_not(text: str) -> None:
    why, expected = why_held(node_of(text), Labels.along(np.arange(4), 4, 1)), HELD[text]
    assert why == (
        f"they pass through 'r' ({node_of(text).op}), which {expected}" if expected else ""
    )


def test_operators_that_move_elements_hold_channels_until_they_are_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(operators.OPERATORS, "Tile", operators.Operator(operators.Axes.MOVED))
    node = node_of("r = Tile (y, sizes)")
    why = "they pass through 'r' (Tile), which cannot be rewritten for fewer"
    assert why_held(node, Labels.along(np.arange(4), 4, 1)) == why


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("r = ReduceMax <axes = [1]> (y)", "reduces over them"),
        ('r = Einsum <equation = "nchw->nchw"> (y)', "may use any of them for any of its values"),
        ("r = MatMul (y, y)", "multiplies them with what is not stored"),
        ("r = Reshape (y, minus)", "cannot be followed for every one of them"),
    ],
)
def test_where_channels_are_lost_there_is_a_reason(text: str, what: str) -> None:
    node = node_of(text)
    assert why_lost(node) == f"they pass through 'r' ({node.op}), which {what}"


def test_a_constant_is_stored_even_in_half_precision() -> None:
    graph = gs.import_onnx(
        build("""g (float[N,4] x) => (float[N,4] z) <float16[4] h, float[4] f, int64[4] i> {
            c = Cast <to = 1> (h)
            d = Cast <to = 1> (i)
            p = Add (x, c)
            q = Add (p, f)
            r = Add (q, d)
            z = Add (r, x)
        }""")
    )
    tensors = graph.tensors()
    assert [is_stored(tensors[name]) for name in "cfdx"] == [True, True, False, False]
