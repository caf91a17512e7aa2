"""Linear nodes and their surroundings, whatever their names and their order in a file."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.block_graph import (
    BlockContext,
    BlockGraph,
    BlockSignature,
    find_block_graph,
)
from fskd_onnx.matching.surroundings import Slot
from fskd_onnx.passes import Canonicalize
from tests.helpers import DEMO, build
from tests.students import DECOMPOSITIONS, decomposed, is_spatial, renamed

# x ─▶ one ─▶ BN ─▶ Relu ─▶ two ─┬─▶ + ─▶ Concat ─▶ three ─▶ GlobalAveragePool ─▶ Flatten ─▶ four
#                          └──────┼▶ ┘      │
#                                 └─────────┘
# u ─▶ five ─▶ Sigmoid ─▶ v
NETWORK = """g (float[N,3,8,8] x, float[N,2] u) => (float[N,5] z, float[N,4] v)
  <float[6,3,3,3] w1, float[6] s, float[6] t, float[6] m, float[6] n, float[6,6,1,1] w2,
   float[4,12,3,3] w3, float[4,5] w4, float[2,4] w5> {
    [one] y1 = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1)
    b = BatchNormalization (y1, s, t, m, n)
    r = Relu (b)
    [two] y2 = Conv (r, w2)
    a = Add (y2, r)
    k = Concat <axis = 1> (a, y2)
    [three] y3 = Conv (k, w3)
    p = GlobalAveragePool (y3)
    f = Flatten (p)
    [four] z = MatMul (f, w4)
    [five] y5 = MatMul (u, w5)
    v = Sigmoid (y5)
}"""


def block_graph(model: onnx.ModelProto) -> BlockGraph:
    graph = gs.import_onnx(model)
    return find_block_graph(graph.toposort())


def blocks(found: BlockGraph) -> dict[str, BlockContext]:
    return {block.linear.name: block for block in found.blocks}


def attributes(name: str) -> dict[str, Any]:
    """Give one attribute of all blocks of the network above."""
    return {n: attrgetter(name)(block) for n, block in blocks(block_graph(build(NETWORK))).items()}


def test_what_stands_behind_and_ahead() -> None:
    behind = {name: set(kinds) for name, kinds in attributes("input_kinds").items()}
    assert behind == {
        "one": {"input"},
        "two": {"activation"},
        "three": {"Concat"},
        "four": {"pool"},
        "five": {"input"},
    }
    ahead = {name: set(kinds) for name, kinds in attributes("output_kinds").items()}
    assert ahead == {
        "one": {"activation"},
        "two": {"sum", "Concat"},
        "three": {"pool"},
        "four": {"output"},
        "five": {"activation"},
    }


def test_places_in_concats() -> None:
    paths = {name: set(ways) for name, ways in attributes("operand_paths").items()}
    first, second = (Slot("Concat", place, 2) for place in range(2))
    # Through the Add, the first; by itself, the second. The first node's Relu goes there as well.
    assert paths["two"] == {(first,), (second,)}
    assert paths["three"] == paths["four"] == paths["five"] == {()}
    assert paths["one"] == {(first,), ()}


def test_receptive_fields_from_both_ends() -> None:
    assert attributes("input_field")["one"] == (3, 3)
    assert attributes("input_field")["two"] == (3, 3)
    assert attributes("input_field")["three"] == (7, 7)
    assert attributes("output_field")["two"] == (3, 3)
    assert attributes("output_field")["one"] == (3, 3)
    assert attributes("output_field")["three"] == ()


def test_inputs_and_outputs_that_are_reached() -> None:
    inputs = {name: set(positions) for name, positions in attributes("signature.inputs").items()}
    assert inputs == {"one": {0}, "two": {0}, "three": {0}, "four": {0}, "five": {1}}
    outputs = {name: set(positions) for name, positions in attributes("signature.outputs").items()}
    assert outputs == {"one": {0}, "two": {0}, "three": {0}, "four": {0}, "five": {1}}


def test_extents_of_block_outputs() -> None:
    assert attributes("signature.extent") == {
        "one": (4, 4),
        "two": (4, 4),
        "three": (2, 2),
        "four": (),
        "five": (),
    }


def test_an_unknown_extent_is_none() -> None:
    model = build("""g (float[N,3,H,8] x) => (float[N,4,A,B] z) <float[4,3,3,3] w> {
        [only] z = Conv (x, w)
    }""")
    assert blocks(block_graph(model))["only"].signature.extent == (None, 6)


def test_channels_on_the_last_axis_leave_the_others_as_extent() -> None:
    model = build("""g (float[N,7,3] x) => (float[N,7,4] z) <float[3,4] w> {
        [only] z = MatMul (x, w)
    }""")
    assert blocks(block_graph(model))["only"].signature.extent == (7,)


def test_who_is_in_front_of_whom() -> None:
    found = block_graph(build(NETWORK))
    names = [block.linear.name for block in found.blocks]
    before = {(names[i], names[k]) for i, k in np.argwhere(found.before).tolist()}
    chain = ["one", "two", "three", "four"]
    assert before == {(a, b) for i, a in enumerate(chain) for b in chain[i + 1 :]}


def test_a_bias_by_an_add_is_part_of_its_node() -> None:
    text = """g (float[N,7,3] x) => (float[N,7,2] z) <float[3,4] w, float[4] b, float[4,2] k> {{
        [one] h = MatMul (x, w)
        {middle}
        r = Relu (y)
        [two] z = MatMul (r, k)
    }}"""
    with_bias = build(text.format(middle="y = Add (b, h)"))
    without = build(text.format(middle="y = Identity (h)"))
    found = [blocks(block_graph(model)) for model in (with_bias, without)]
    assert found[0]["one"].linear.bias_node is not None
    for name in ("one", "two"):
        for field in ("input_kinds", "output_kinds", "operand_paths", "signature"):
            assert getattr(found[0][name], field) == getattr(found[1][name], field)
    for one in found:
        assert (set(one["one"].output_kinds), set(one["two"].input_kinds)) == (
            {"activation"},
            {"activation"},
        )


@pytest.mark.parametrize(
    "between",
    [
        "y = Identity (h)",
        "y = Mul (h, c)",
        "y = Sub (h, c)",
        "y = Transpose <perm = [0,1,3,2]> (h)",
        "y = BatchNormalization (h, s, s, s, s)",
        "i = Identity (h) y = Dropout (i)",
    ],
)
def test_what_moves_values_about_or_scales_them_is_looked_through(between: str) -> None:
    model = build(f"""g (float[N,3,4,4] x) => (float[N,2,4,4] z)
      <float[4,3,1,1] w, float[1,4,1,1] c, float[4] s, float[2,4,1,1] k> {{
        [one] h = Conv (x, w)
        {between}
        [two] z = Conv (y, k)
    }}""")
    found = blocks(block_graph(model))
    assert found["one"].output_kinds == {"linear"}
    assert found["two"].input_kinds == {"linear"}


def test_a_gate_counts_as_a_product() -> None:
    # x ─▶ one ─┬─▶ GlobalAveragePool ─▶ two ─▶ Sigmoid ─▶ * ─▶ three ─▶ z
    #           └─────────────────────────────────────────▶ ┘
    model = build("""g (float[N,3,4,4] x) => (float[N,2,4,4] z)
      <float[4,3,1,1] w, float[4,4,1,1] v, float[2,4,1,1] k> {
        [one] h = Conv (x, w)
        p = GlobalAveragePool (h)
        [two] g = Conv (p, v)
        s = Sigmoid (g)
        y = Mul (h, s)
        [three] z = Conv (y, k)
    }""")
    found = blocks(block_graph(model))
    assert found["one"].output_kinds == {"pool", "product"}
    assert found["three"].input_kinds == {"product"}


def test_names_and_the_order_of_nodes_say_nothing() -> None:
    model = Canonicalize()(onnx.load(DEMO / "teacher.onnx")).model
    own = block_graph(model)
    numbers = {block.linear.name: number for number, block in enumerate(own.blocks)}
    for seed in (1, 2):
        student = renamed(model, seed)
        other = block_graph(student.model)
        order = [numbers[student.old[block.linear.name]] for block in other.blocks]
        assert sorted(order) == list(range(len(order)))
        for block, number in zip(other.blocks, order, strict=True):
            for field in FIELDS:
                assert getattr(block, field) == getattr(own.blocks[number], field)
        np.testing.assert_array_equal(other.before, own.before[np.ix_(order, order)])


FIELDS = (
    *("input_kinds", "output_kinds", "operand_paths"),
    *("input_field", "output_field", "signature"),
)


@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_the_end_of_a_decomposed_block_sees_what_the_whole_does(kind: str) -> None:
    teacher = Canonicalize()(onnx.load(DEMO / "teacher.onnx")).model
    student, ends = decomposed(teacher, DECOMPOSITIONS[kind], is_spatial)
    whole = {block.linear.output.name: block for block in block_graph(teacher).blocks}
    found = blocks(block_graph(student))
    for name, output in ends.items():
        for field in ("output_kinds", "operand_paths", "input_field", "output_field", "signature"):
            assert getattr(found[name], field) == getattr(whole[output], field)


def test_a_graph_without_linear_nodes() -> None:
    found = block_graph(build("g (float[N,4] x) => (float[N,4] z) { z = Relu (x) }"))
    assert found.blocks == ()
    assert found.before.shape == (0, 0)


def test_signatures_agree_as_far_as_they_are_known() -> None:
    one = BlockSignature(True, frozenset({0}), frozenset({0, 1}), (4, None))
    for other, agrees in [
        (one, True),
        (replace(one, extent=(None, 7)), True),
        (replace(one, extent=None), True),
        (replace(one, extent=(5, None)), False),
        (replace(one, extent=(4,)), False),
        (replace(one, convolves=False), False),
        (replace(one, inputs=frozenset({1})), False),
        (replace(one, outputs=frozenset({0})), False),
    ]:
        assert one.agrees(other) == other.agrees(one) == agrees


def test_the_signature_of_a_node() -> None:
    block = blocks(block_graph(build(NETWORK)))["three"]
    assert block.signature == BlockSignature(True, frozenset({0}), frozenset({0}), (2, 2))
    assert not blocks(block_graph(build(NETWORK)))["four"].signature.convolves
