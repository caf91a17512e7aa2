"""Surroundings of a teacher's nodes where other residual blocks are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.block_graph import BlockContext, find_block_graph
from fskd_onnx.matching.dropped_blocks import droppable_blocks, with_dropped_blocks
from fskd_onnx.matching.pairing import Partner, pair_blocks
from fskd_onnx.passes import Canonicalize
from tests.helpers import build
from tests.students import renamed


def residual_chain(widths: Sequence[int], activated: bool, seed: int = 0) -> onnx.ModelProto:
    """Give x ─▶ first ─▶ Relu ─▶ blocks ─▶ last, each block MatMul ─▶ Relu ─▶ MatMul.

    Args:
        widths: inside of each block.
        activated: whether a Tanh follows each sum.
        seed: of the weights.
    """
    weights = [f"float[8,{width}] wa{k}, float[{width},8] wb{k}," for k, width in enumerate(widths)]
    nodes = [
        f"""[a{k}] p{k} = MatMul (r{k}, wa{k})
        q{k} = Relu (p{k})
        [b{k}] s{k} = MatMul (q{k}, wb{k})
        {f"t{k}" if activated else f"r{k + 1}"} = Add (s{k}, r{k})
        {f"r{k + 1} = Tanh (t{k})" if activated else ""}"""
        for k in range(len(widths))
    ]
    text = f"""g (float[N,6] x) => (float[N,5] z)
      <float[6,8] wf, {"".join(weights)} float[8,5] wl> {{
        [first] y = MatMul (x, wf)
        r0 = Relu (y)
        {"".join(nodes)}
        [last] z = MatMul (r{len(widths)}, wl)
    }}"""
    return build(text, seed=seed)


def contexts(model: onnx.ModelProto) -> dict[str, BlockContext]:
    graph = canonical(model)
    found = with_dropped_blocks(find_block_graph(graph), graph, droppable_blocks(graph))
    return {block.linear.name: block for block in found.blocks}


def canonical(model: onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(Canonicalize()(model).model).toposort()


def partners(teacher: onnx.ModelProto, student: onnx.ModelProto) -> dict[str, Partner]:
    other = renamed(student, seed=1)
    found = pair_blocks(canonical(teacher), canonical(other.model))
    return {other.old[partner.student]: partner for partner in found}


def test_a_node_behind_a_block_may_be_behind_what_is_in_front_of_it() -> None:
    found = contexts(residual_chain([4, 4], activated=False))
    last = found["last"]
    assert last.input_kinds == {"sum"}
    assert {*map(frozenset, (c.input_kinds for c in last.alternatives))} == {
        frozenset({"sum"}),
        frozenset({"activation"}),
    }


def test_a_block_in_front_of_one_that_is_left_out_may_be_in_a_chain() -> None:
    found = contexts(residual_chain([4, 4], activated=False))
    end, other = found["b0"], found["b1"]
    assert (end.end_of_chain, end.chain_length) == (frozenset(), 1)
    assert (other.end_of_chain, other.chain_length) == (frozenset({"output"}), 2)
    assert (other.end_of_chain, 2) in {(c.end_of_chain, c.chain_length) for c in end.alternatives}
    assert {end.read_by, *(c.read_by for c in end.alternatives)} == {None, "z"}


def test_what_is_in_a_block_keeps_that_block() -> None:
    found = contexts(residual_chain([4], activated=True))
    assert found["a0"].alternatives == found["b0"].alternatives == ()
    assert len(found["first"].alternatives) == 3


def test_the_teacher_is_not_changed() -> None:
    graph = canonical(residual_chain([4, 4], activated=False))
    before = [(node.name, [t.name for t in node.inputs]) for node in graph.nodes]
    with_dropped_blocks(find_block_graph(graph), graph, droppable_blocks(graph))
    assert [(node.name, [t.name for t in node.inputs]) for node in graph.nodes] == before


def test_a_block_whose_sum_is_an_output_stays() -> None:
    model = build("""g (float[N,6] x) => (float[N,6] z) <float[6,6] wf, float[6,6] wa> {
        [first] y = MatMul (x, wf)
        r = Relu (y)
        [a] p = MatMul (r, wa)
        z = Add (p, r)
    }""")
    assert droppable_blocks(canonical(model)) == []
    assert all(block.alternatives == () for block in contexts(model).values())


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize(("widths", "left"), [([16, 16], [16]), ([16, 12], [9])])
def test_either_of_two_blocks_may_have_been_dropped(
    widths: list[int], left: list[int], activated: bool
) -> None:
    found = partners(residual_chain(widths, activated), residual_chain(left, activated, seed=5))
    assert (found["first"].teacher, found["last"].teacher) == ("y", "z")
    for name in "ab":
        partner = found[f"{name}0"]
        assert partner.teacher is None
        assert partner.reason == (
            f"2 places in the teacher fit it as well as each other ('{name}0', '{name}1'), "
            "depending on which residual block the student lacks"
        )


def test_activations_do_not_tell_which_block_was_dropped() -> None:
    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        raise AssertionError(tensors)

    teacher, student = residual_chain([16, 16], False), residual_chain([16], False, seed=5)
    other = renamed(student, seed=1)
    found = pair_blocks(canonical(teacher), canonical(other.model), similarity=similarity)
    assert sum(partner.teacher is None for partner in found) == 2


@pytest.mark.parametrize("dropped", [0, 1])
def test_weights_tell_which_block_was_dropped(dropped: int) -> None:
    teacher, student = residual_chain([16, 16], False), residual_chain([16], False, seed=5)
    kept = 1 - dropped
    weights = {tensor.name: tensor for tensor in teacher.graph.initializer}
    noise = np.random.default_rng(0)
    for tensor in student.graph.initializer:
        source = weights[tensor.name.replace("0", str(kept))]
        values = onnx.numpy_helper.to_array(source)
        values = values + 0.01 * noise.standard_normal(values.shape).astype(values.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    found = partners(teacher, student)
    assert {name: partner.teacher for name, partner in found.items()} == {
        "first": "y",
        "a0": f"p{kept}",
        "b0": f"s{kept}",
        "last": "z",
    }
