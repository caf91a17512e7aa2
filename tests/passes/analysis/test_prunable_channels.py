"""Channel units: which channels go together, who writes and reads them, and why some cannot go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.prunable_channels import (
    ChannelUnit,
    PrunableChannels,
    find_channel_units,
)
from tests.helpers import build, zoo_model

FLAT = tuple(range(8))


def units_of(nodes: str, weights: str = "", opset: int = 17) -> dict[str, ChannelUnit]:
    """Find the units of a network with eight channels y in front of some nodes, which make z."""
    text = f"""g (float[N,3,4,6] x, float[N,8,4,6] u) => (float[N,A,B,C] z)
      <{", ".join(filter(None, ["float[8,3,1,1] w1", weights]))}> {{
        [one] y = Conv (x, w1)
        {nodes}
    }}"""
    graph = gs.import_onnx(build(text, opset=opset))
    return {unit.name: unit for unit in find_channel_units(graph)}


def test_each_node_of_a_chain_has_a_unit() -> None:
    units = units_of("r = Relu (y) [end] z = Conv (r, w)", "float[5,8,1,1] w")
    assert list(units) == ["one", "end"]
    assert units["one"] == ChannelUnit("one", ("one",), ("end",), 8, 1, "", {"one": FLAT})
    why = "an output of the network carries them"
    assert units["end"] == ChannelUnit("end", ("end",), (), 5, 1, why, {"end": FLAT[:5]})


def test_a_residual_stream_is_one_unit() -> None:
    units = units_of(
        """[a] s = Conv (y, v) r = Relu (s) [b] t = Conv (r, w) k = Add (t, y)
        [end] z = Conv (k, e)""",
        "float[6,8,1,1] v, float[8,6,1,1] w, float[5,8,1,1] e",
    )
    assert list(units) == ["one", "a", "end"]
    assert units["one"].writers == ("one", "b")
    assert units["one"].readers == ("a", "end")
    assert units["one"].members == {"one": FLAT, "b": FLAT}
    assert (units["a"].writers, units["a"].readers) == (("a",), ("b",))
    assert [unit.reason for unit in units.values()][:2] == ["", ""]


def test_channels_of_a_concat_stay_in_their_units() -> None:
    units = units_of(
        "[a] s = Conv (x, v) k = Concat <axis = 1> (s, y, s) [end] z = Conv (k, e)",
        "float[2,3,1,1] v, float[5,12,1,1] e",
    )
    assert units["one"].readers == units["a"].readers == ("end",)
    assert [unit.reason for unit in units.values()][:2] == ["", ""]


def test_a_concat_that_is_added_to_is_one_unit_of_several_writers() -> None:
    units = units_of(
        """[a] s = Conv (x, v) k = Concat <axis = 1> (y, s) [b] t = Conv (k, w)
        q = Add (t, k) [end] z = Conv (q, e)""",
        "float[2,3,1,1] v, float[10,10,1,1] w, float[5,10,1,1] e",
    )
    assert units["one"].width == 10
    assert units["one"].members == {"one": FLAT, "a": (8, 9), "b": tuple(range(10))}
    assert units["one"].rows("a", (0, 2, 9)) == (1,)


def test_followers_of_each_channel_are_writers_of_its_unit() -> None:
    units = units_of(
        "[d] s = Conv <group = 8> (y, v) [end] z = Conv (s, e)",
        "float[16,1,3,3] v, float[5,16,1,1] e",
    )
    assert units["one"].writers == ("one", "d")
    assert units["one"].readers == ("d", "end")
    assert units["one"].members["d"] == tuple(np.repeat(FLAT, 2).tolist())


@pytest.mark.parametrize(("groups", "expected"), [(2, 2), (4, 4)])
def test_groups_keep_equally_many(groups: int, expected: int) -> None:
    units = units_of(
        f"[g] s = Conv <group = {groups}> (y, v) [end] z = Conv (s, e)",
        f"float[16,{8 // groups},1,1] v, float[5,16,1,1] e",
    )
    assert units["one"].groups == units["g"].groups == expected


def test_groups_of_different_numbers_keep_equally_many_of_the_finer_runs() -> None:
    units = units_of(
        """[g] s = Conv (y, c) [p] t = Conv <group = 2> (s, v) [q] k = Conv <group = 3> (s, w)
        m = Add (t, k) [end] z = Conv (m, e)""",
        """float[12,8,1,1] c, float[24,6,1,1] v, float[24,4,1,1] w, float[5,24,1,1] e""",
    )
    assert units["g"].groups == 6
    assert units["p"].groups == 6


def test_what_a_shuffle_lays_side_by_side_goes_together() -> None:
    units = units_of(
        """a = Reshape (y, split) b = Transpose <perm = [0,2,1,3,4]> (a) s = Reshape (b, join)
        [d] t = Conv <group = 8> (s, v) [end] z = Conv <group = 2> (t, e)""",
        """int64[5] split = {0,2,4,4,6}, int64[4] join = {0,8,4,6}, float[8,1,1,1] v,
        float[6,4,1,1] e""",
    )
    assert units["one"].width == 4
    assert units["one"].groups == 2
    assert units["one"].members == {"one": (0, 1, 2, 3) * 2, "d": (0, 0, 1, 1, 2, 2, 3, 3)}


def test_a_pixel_shuffle_takes_blocks_of_channels() -> None:
    units = units_of(
        "s = DepthToSpace <blocksize = 2> (y) [end] z = Conv (s, e)", "float[5,2,1,1] e"
    )
    assert units["one"].members == {"one": (0, 1) * 4}
    assert units["one"].readers == ("end",)


def test_a_pixel_shuffle_to_one_channel_takes_all() -> None:
    units = units_of(
        "[a] t = Conv (y, v) s = DepthToSpace <blocksize = 2> (t) [end] z = Conv (s, e)",
        "float[4,8,1,1] v, float[5,1,1,1] e",
    )
    assert units["a"].members == {"a": (0,) * 4}
    assert units["a"].reason == "'end' (Conv) reads them, but not one channel for each"


def test_inputs_of_a_linear_node_are_told_by_unit() -> None:
    graph = gs.import_onnx(
        build("""g (float[N,3,1,2] x) => (float[N,4] z) <float[2,3,1,1] v, float[10,4] w> {
            [one] y = Conv (x, v)
            k = Concat <axis = 1> (y, x)
            f = Flatten (k)
            [end] z = Gemm (f, w)
        }""")
    )
    channels = PrunableChannels(graph)
    found = {name: channels.inputs(linear) for name, linear in channels.linears.items()}
    assert found["one"] == [None] * 3
    assert found["end"] == [("one", 0)] * 2 + [("one", 1)] * 2 + [None] * 6


# Nodes that keep the channels y from being pruned, weights, and the reason.
REASONS: Mapping[str, tuple[str, str, str]] = {
    "an output": ("z = Identity (y)", "", "an output of the network carries them"),
    "LRN": (
        "r = LRN <size = 3> (y) [e] z = Conv (r, e)",
        "float[5,8,1,1] e",
        "they pass through 'r' (LRN), which computes each of them from others",
    ),
    "unknown": (
        'r = Einsum <equation = "nchw->nchw"> (y) [e] z = Conv (r, e)',
        "float[5,8,1,1] e",
        "they pass through 'r' (Einsum), which may use any of them for any of its values",
    ),
    "a step": (
        "r = Slice (y, a, b, c, d) [e] z = Conv (r, e)",
        """float[5,4,1,1] e, int64[1] a = {0}, int64[1] b = {8}, int64[1] c = {1},
        int64[1] d = {2}""",
        "they pass through 'r' (Slice), which takes only some of them, at a step",
    ),
    "a cropping Pad": (
        "r = Pad (y, a) [e] z = Conv (r, e)",
        "float[5,7,1,1] e, int64[8] a = {0,-1,0,0,0,0,0,0}",
        "they pass through 'r' (Pad), which takes some of them away",
    ),
    "an input": (
        "r = Mul (y, u) [e] z = Conv (r, e)",
        "float[5,8,1,1] e",
        "'r' (Mul) combines them with 'u', which has others",
    ),
    "one gate for all": (
        "[e] g = Conv (x, e) s = Sigmoid (g) z = Mul (y, s)",
        "float[1,3,1,1] e",
        "an output of the network carries them",
    ),
    "their number": (
        """shape = Shape (y) c = Gather (shape, a) f = Cast <to = 1> (c) r = Div (y, f)
        [e] z = Conv (r, e)""",
        "float[5,8,1,1] e, int64 a = {1}",
        "'r' (Div) computes with their number",
    ),
    "how many numbers there are": (
        "c = Size (y) f = Cast <to = 1> (c) r = Div (y, f) [e] z = Conv (r, e)",
        "float[5,8,1,1] e",
        "'c' (Size) computes their number",
    ),
    "their number in a target": (
        "shape = Shape (y) r = Reshape (u, shape) [e] k = Conv (y, e) z = Concat <axis=1> (k, r)",
        "float[5,8,1,1] e",
        "'r' (Reshape) computes with their number",
    ),
    "a computed target": (
        """shape = Shape (u) r = Reshape (y, shape) [e] z = Conv (r, e)""",
        "float[5,8,1,1] e",
        "'r' (Reshape) computes with their number",
    ),
    "their mean": (
        "r = ReduceMean <axes = [1]> (y) [e] z = Conv (r, e)",
        "float[5,1,1,1] e",
        "they pass through 'r' (ReduceMean), which reduces over them",
    ),
    "a filled shortcut": (
        "[e] s = Conv (x, e) p = Pad (s, a) r = Add (y, p) [f] z = Conv (r, f)",
        "float[6,3,1,1] e, float[5,8,1,1] f, int64[8] a = {0,1,0,0,0,1,0,0}",
        "they are merged with what is no channel of a linear node",
    ),
    "groups of several units": (
        "[a] s = Conv (x, a) r = Concat <axis = 1> (y, s) [e] z = Conv <group = 2> (r, e)",
        "float[2,3,1,1] a, float[6,5,1,1] e",
        "the groups of 'e' are not runs of channels that are chosen together",
    ),
    "attention": (
        "t = Transpose <perm = [0,1,3,2]> (y) s = MatMul (y, t) [e] z = Conv (s, e)",
        "float[5,8,1,1] e",
        "they pass through 's' (MatMul), which multiplies them with what is not stored",
    ),
    "unlike uses": (
        "[a] s = Conv (y, v, a) [b] t = Conv (y, v, b) r = Add (s, t) [e] z = Conv (r, e)",
        "float[8,8,1,1] v, float[8] a, float[8] b, float[5,8,1,1] e",
        "the weights of 'a' are also those of 'b', whose bias is another",
    ),
}


@pytest.mark.parametrize("what", REASONS)
def test_what_cannot_be_pruned_has_a_reason(what: str) -> None:
    nodes, weights, reason = REASONS[what]
    assert units_of(nodes, weights)["one"].reason == reason


def test_groups_that_leave_no_choice_are_a_reason() -> None:
    units = units_of(
        """[g] s = Conv (y, c) [p] t = Conv <group = 2> (s, v) [q] k = Conv <group = 3> (s, w)
        m = Concat <axis = 1> (t, k) [end] z = Conv (m, e)""",
        "float[6,8,1,1] c, float[4,3,1,1] v, float[6,2,1,1] w, float[5,10,1,1] e",
    )
    assert units["g"].reason == "groups of convolutions leave one in each run of them"
    assert (units["p"].reason, units["p"].groups) == ("", 2)


def test_a_squeeze_that_names_no_axes_keeps_its_channels() -> None:
    graph = gs.import_onnx(
        build("""g (float[2,3,4,4] x) => (float[2,4] z) <float[8,3,1,1] v, float[8,4] w> {
            [one] y = Conv (x, v)
            t = GlobalMaxPool (y)
            s = Squeeze (t)
            [end] z = Gemm (s, w)
        }""")
    )
    [unit, _] = find_channel_units(graph)
    assert unit.reason == "they pass through 's' (Squeeze), which removes an axis of one channel"


def test_an_output_that_is_left_out_is_no_input_that_is_left_out() -> None:
    units = units_of(
        """p,  = MaxPool <kernel_shape = [1,1]> (y)
        [a] t = Conv (p, v) c = Clip (t, , k) [end] z = Conv (c, e)""",
        "float[4,8,1,1] v, float k, float[5,4,1,1] e",
    )
    assert (units["one"].reason, units["a"].reason) == ("", "")


def test_tokens_are_mixed_by_channels_of_their_own() -> None:
    graph = gs.import_onnx(
        build("""g (float[N,6,3] x) => (float[N,2,4] z)
          <float[3,4] v, float[6,5] w, float[5,2] k> {
            [one] y = MatMul (x, v)
            t = Transpose <perm = [0,2,1]> (y)
            [two] h = MatMul (t, w)
            r = Relu (h)
            [end] s = MatMul (r, k)
            z = Transpose <perm = [0,2,1]> (s)
        }""")
    )
    one, two, _ = find_channel_units(graph)
    assert one.reason == "'two' (MatMul) reads them, but not one channel for each"
    assert (two.reason, two.width) == ("", 5)


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_every_channel_is_in_one_unit(name: str) -> None:
    graph = gs.import_onnx(Canonicalize()(zoo_model(name)).model)
    channels = PrunableChannels(graph)
    writers = [writer for unit in channels.units for writer in unit.writers]
    assert sorted(writers) == sorted(channels.linears)
    for unit in channels.units:
        assert unit.name == unit.writers[0]
        assert {m for own in unit.members.values() for m in own} == set(range(unit.width))
        for writer in unit.writers:
            assert len(unit.members[writer]) == channels.linears[writer].width
