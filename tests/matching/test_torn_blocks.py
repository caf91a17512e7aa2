"""A pair that leaves a part of a residual block without any node of the student."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.matching.alignment import Alignment
from fskd_onnx.matching.block_graph import find_block_graph
from fskd_onnx.matching.dropped_blocks import droppable_blocks
from fskd_onnx.matching.torn_blocks import TornBlocks
from tests.helpers import build
from tests.matching.test_dropped_blocks import canonical, partners, residual_chain

TEACHER = residual_chain([4, 4], activated=True)
# first, a0, b0, a1, b1, last
SHORT = residual_chain([], activated=True)
LONG = residual_chain([4], activated=True)


def torn(
    student: onnx.ModelProto,
    pairs: dict[int, int],
    certain: tuple[int, ...] = (),
    known: tuple[tuple[int, int], ...] = (),
) -> set[tuple[int, int]]:
    graph, own = canonical(TEACHER), find_block_graph(canonical(student))
    teacher = find_block_graph(graph)
    evidence = np.full((len(own.blocks), len(teacher.blocks)), 1.0)
    alignment = Alignment(evidence, own.before, teacher.before)
    for one, other in pairs.items():
        alignment.fix(one, other, 1.0)
    return TornBlocks(droppable_blocks(graph), teacher, own).places(alignment, certain, known)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({0: 0, 1: 5}, set()),
        ({0: 1, 1: 5}, {(0, 1)}),
        ({0: 0, 1: 2}, {(1, 2)}),
        ({0: 1, 1: 2}, set()),
        ({0: 1, 1: 4}, {(0, 1), (1, 4)}),
    ],
)
def test_a_block_goes_as_a_whole(pairs: dict[int, int], expected: set[tuple[int, int]]) -> None:
    assert torn(SHORT, pairs) == expected


def test_a_node_without_a_partner_may_stand_for_the_rest_of_a_block() -> None:
    assert (1, 1) not in torn(LONG, {0: 0, 1: 1, 3: 5})
    # Between the second node and the last one there is none.
    assert torn(LONG, {0: 0, 1: 1, 2: 4, 3: 5}) == {(1, 1), (2, 4)}


def test_places_that_are_open_are_looked_at_as_well() -> None:
    assert {(0, 1), (0, 3)} <= torn(SHORT, {1: 5})
    assert (0, 0) not in torn(SHORT, {1: 5})


def test_a_block_with_a_certain_pair_was_not_left_out() -> None:
    assert torn(SHORT, {0: 1, 1: 4}, certain=(1,)) == {(1, 4)}


def test_a_node_that_may_be_what_a_block_lacks_is_in_question() -> None:
    # The second node of the last block is paired, its first one is not.
    pairs = {0: 0, 1: 1, 2: 4, 3: 5}
    assert torn(LONG, pairs, certain=(4,)) == {(1, 1)}
    assert torn(LONG, pairs, known=((1, 1), (2, 4))) == set()
    assert torn(LONG, pairs, certain=(4,), known=((1, 1),)) == set()


def test_nothing_is_torn_where_each_of_the_teachers_nodes_has_a_partner() -> None:
    assert torn(TEACHER, {i: i for i in range(6)}) == set()


def test_a_width_that_is_nearer_to_that_of_a_dropped_node_misleads_nobody() -> None:
    # y has 10 channels, p 4; of the student's 3, both could be the ones that were kept.
    teacher = build("""g (float[N,7] x) => (float[N,5] z)
      <float[7,10] wf, float[10,4] wa, float[4,10] wb, float[10,5] wl> {
        [first] y = MatMul (x, wf)
        r = Relu (y)
        [a] p = MatMul (r, wa)
        q = Relu (p)
        [b] s = MatMul (q, wb)
        t = Add (s, r)
        u = Relu (t)
        [last] z = MatMul (u, wl)
    }""")
    student = build(
        """g (float[N,7] x) => (float[N,5] z) <float[7,3] wf, float[3,5] wl> {
        [first] y = MatMul (x, wf)
        r = Relu (y)
        u = Relu (r)
        [last] z = MatMul (u, wl)
    }""",
        seed=3,
    )
    found = partners(teacher, student)
    assert {name: partner.teacher for name, partner in found.items()} == {"first": "y", "last": "z"}
