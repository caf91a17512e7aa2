"""What is computed from known extents becomes a constant; the function stays for every batch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.passes import FoldExtents
from tests.helpers import assert_close, build, check, initializers, ops, random_feeds, run

# x (N, 16, H, W): the second half of its channels, as PyTorch writes chunk(2, 1)[1].
CHUNK = """g (float[N,16,H,W] x) => (float[A,B,C,D] z) <int64 one = {1}, int64[1] at1 = {1},
  int64[1] two = {2}, int64[1] much = {100}> {
    shape = Shape (x)
    c = Gather <axis = 0> (shape, one)
    v = Unsqueeze (c, zeroth)
    half = Div (v, two)
    z = Slice (x, half, much, at1)
}""".replace("int64 one", "int64[1] zeroth = {0}, int64 one")

# The target of a Reshape from some elements, of x (N, 16, 2, 3).
TARGET = """g (float[N,16,{}] x, float[N,5] u) => (float[A,B,C] z)
  <int64 zero = {{0}}, int64 one = {{1}}, int64[1] at0 = {{0}}, int64[1] rest = {{-1}},
  int64[1] eight = {{8}}, int64[2] both = {{2,-1}}> {{
    shape = Shape (x)
    n0 = Gather (shape, zero)
    n = Unsqueeze (n0, at0)
    c0 = Gather (shape, one)
    c = Unsqueeze (c0, at0)
    two = Div (c, eight)
    other = Shape <start = 0, end = 1> (u)
    target = Concat <axis = 0> ({})
    z = Reshape (x, target)
}}"""


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    before = model.SerializeToString()
    result = FoldExtents()(model)
    assert model.SerializeToString() == before
    check(result.model)
    for batch in (1, 4):
        feeds = random_feeds(model, batch=batch)
        assert_close(run(result.model, feeds), run(model, feeds))
    assert not FoldExtents()(result.model).changed
    return result.model


def test_bounds_become_constants() -> None:
    model = folded(build(CHUNK))
    assert ops(model) == {"Slice": 1}
    [name] = set(initializers(model)) - set(initializers(build(CHUNK)))
    assert initializers(model)[name].tolist() == [8]


@pytest.mark.parametrize(
    ("elements", "target"),
    [
        ("n, c, rest", [0, 16, -1]),
        ("n, two, rest", [0, 2, -1]),
        ("n, eight, rest", [0, 8, -1]),
        ("other, c, rest", [0, 16, -1]),
        ("c, n, rest", None),  # the samples are elsewhere, and something else is what is left
        ("two, eight, n, rest", None),
    ],
)
def test_a_target_states_what_the_input_decides(elements: str, target: list[int] | None) -> None:
    text = TARGET.format("2,3", elements)
    if elements.count(",") == 3:
        text = text.replace("float[A,B,C] z", "float[A,B,C,D] z")
    model = folded(build(text))
    left = ops(model)
    if target is None:
        assert left["Concat"] == 1
    else:
        assert "Concat" not in left
        reshape = model.graph.node[-1]
        assert initializers(model)[reshape.input[1]].tolist() == target


def test_an_extent_that_is_left_needs_no_name() -> None:
    model = folded(build(TARGET.format("H,W", "n, both")))
    target = model.graph.node[-1].input[1]
    assert initializers(model)[target].tolist() == [0, 2, -1]


def test_what_the_input_decides_on_in_several_places_stays_computed() -> None:
    model = folded(
        build("""g (float[N,16,H,W] x) => (float[A,B,C,D,E] z) <int64[1] two = {2},
          int64[1] at = {1}, int64[1] eight = {8}, int64[1] end = {4}, int64[1] zero = {0},
          int64[1] one = {1}> {
            shape = Shape (x)
            n = Slice (shape, zero, one, zero)
            c = Slice (shape, at, two, zero)
            part = Div (c, eight)
            hw = Slice (shape, two, end, zero)
            target = Concat <axis = 0> (n, part, eight, hw)
            z = Reshape (x, target)
        }""")
    )
    assert ops(model) == {"Shape": 1, "Slice": 2, "Concat": 1, "Reshape": 1}


def test_a_number_among_activations_is_stored() -> None:
    model = folded(
        build("""g (float[N,16] x) => (float[N,16] z) <int64 one = {1}> {
            shape = Shape (x)
            c = Gather (shape, one)
            f = Cast <to = 1> (c)
            s = Sqrt (f)
            z = Div (x, s)
        }""")
    )
    assert ops(model) == {"Div": 1}
    [value] = initializers(model).values()
    assert value == np.float32(4)


def test_pads_in_the_order_of_pytorch_become_constants() -> None:
    model = folded(
        build("""g (float[N,8] x) => (float[N,11] z)
          <int64[2] last_axis = {1, 2}, int64 axes = {4}, int64 zero = {0}, int64[2] pairs = {-1,2},
           int64[1] at0 = {0}, int64[1] last = {-1}, int64[1] back = {-1}, int64[1] far = {-100},
           int64[1] flat = {-1}> {
            shape = Shape (last_axis)
            length = Gather (shape, zero)
            more = Sub (axes, length)
            count = Unsqueeze (more, at0)
            none = ConstantOfShape <value = int64[1] {0}> (count)
            given = Cast <to = 7> (last_axis)
            ends = Concat <axis = 0> (given, none)
            by_axis = Reshape (ends, pairs)
            turned = Slice (by_axis, last, far, at0, back)
            in_order = Transpose <perm = [1, 0]> (turned)
            pads = Reshape (in_order, flat)
            z = Pad <mode = "reflect"> (x, pads)
        }""")
    )
    assert ops(model) == {"Pad": 1}
    assert initializers(model)[model.graph.node[0].input[1]].tolist() == [0, 1, 0, 2]


def test_what_leaves_the_network_stays_computed() -> None:
    model = build("""g (float[N,16] x) => (int64[2] shape, int64[1] z) <int64[1] one = {1}> {
        shape = Shape (x)
        z = Gather (shape, one)
    }""")
    assert not FoldExtents()(model).changed


def test_what_a_body_reads_stays_computed() -> None:
    model = build("""g (float[N,16] x, bool c) => (float[N,16] z) <int64 one = {1}> {
        shape = Shape (x)
        n = Gather (shape, one)
        f = Cast <to = 1> (n)
        z = If (c) <
            then_branch = first () => (float[N,16] p) { p = Mul (x, f) },
            else_branch = second () => (float[N,16] q) { q = Identity (x) }>
    }""")
    assert not FoldExtents()(model).changed


def test_a_network_without_shapes_stays_as_it_is() -> None:
    assert not FoldExtents()(build("g (float[N,4] x) => (float[N,4] z) { z = Relu (x) }")).changed
