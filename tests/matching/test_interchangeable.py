"""Operands that may be exchanged are paired in the order of their weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.alignment import Alignment, Pair
from fskd_onnx.matching.block_graph import BlockGraph, find_block_graph
from fskd_onnx.matching.interchangeable import interchangeable_pair
from tests.helpers import build

# x ─┬─▶ left ──▶ join ─▶ z
#    └─▶ right ─▶ ┘
NETWORK = """g (float[N,3] x) => (float[N,4] z) <float[3,4] wl, float[3,4] wr> {{
    [left] l = MatMul (x, wl)
    [right] r = MatMul (x, wr)
    z = {join} (l, r)
}}"""


def block_graph(join: str, seed: int = 0) -> BlockGraph:
    model: onnx.ModelProto = build(NETWORK.format(join=join), seed=seed)
    return find_block_graph(gs.import_onnx(model).toposort())


def found(join: str, evidence: list[list[float]]) -> Pair | None:
    student, teacher = block_graph(join, seed=1), block_graph(join)
    alignment = Alignment(np.array(evidence), student.before, teacher.before)
    return interchangeable_pair(alignment, student, teacher)


def test_twins_are_paired_by_what_they_hold() -> None:
    student, teacher = block_graph("Add", seed=1), block_graph("Add")
    first = [
        min((0, 1), key=lambda n: graph.blocks[n].linear.matrix.tobytes())
        for graph in (student, teacher)
    ]
    assert found("Add", [[0.5, 0.5], [0.5, 0.5]]) == Pair(first[0], first[1], 0.5)


@pytest.mark.parametrize("join", ["Sub", "Concat <axis = 1>"])
def test_operands_whose_order_counts_have_a_place(join: str) -> None:
    text = NETWORK.replace("float[N,4] z", "float[N,8] z") if "Concat" in join else NETWORK
    graph = find_block_graph(gs.import_onnx(build(text.format(join=join))).toposort())
    alignment = Alignment(np.full((2, 2), 0.5), graph.before, graph.before)
    assert interchangeable_pair(alignment, graph, graph) is None


def test_what_evidence_tells_apart_is_no_matter_of_order() -> None:
    assert found("Add", [[0.9, 0.5], [0.5, 0.9]]) is None
