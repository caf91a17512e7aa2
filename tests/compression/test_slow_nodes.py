"""Nodes that are no faster are those whose time stays where their multiply-adds do not."""

from __future__ import annotations

import pytest

from fskd_onnx.compression.costs import NodeCost
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.compression.slow_nodes import ReducedNode, find_slow_nodes, reduced_nodes
from fskd_onnx.runtime.providers import open_runtime

WHOLE = LinearCase("Conv", 64, 64, 1, (3, 3), (1, 8, 8), "float32", has_bias=True)


class Known(NodeLatency):
    """Knows the time of some nodes."""

    def __init__(self, times: dict[LinearCase, float]) -> None:
        super().__init__(open_runtime(["cpu"]), limit=0)
        self._known = times


@pytest.mark.parametrize(
    ("times", "macs", "words"),
    [
        ((0.6, 0.4), 0.4, "it has 40% of its multiply-adds and takes 100% of its time"),
        ((0.9, 0.4), 0.5, "it has 50% of its multiply-adds and takes 130% of its time"),
        ((0.5, 0.4), 0.4, ""),
        ((0.6, 0.4), 0.9, ""),
        ((0.6,), 0.4, ""),
    ],
)
def test_time_is_that_of_all_nodes_in_the_place_of_one(
    times: tuple[float, ...], macs: float, words: str
) -> None:
    chain = (WHOLE.with_widths(outputs=16), WHOLE.with_widths(inputs=16))
    node = ReducedNode("conv1", WHOLE, chain, macs)
    known = {WHOLE: 1.0, **dict(zip(chain, times, strict=False))}
    assert find_slow_nodes([node], Known(known)) == ({"conv1": words} if words else {})


def test_nodes_are_measured() -> None:
    node = ReducedNode("conv1", WHOLE, (WHOLE.with_widths(outputs=8),), 0.125)
    nodes = NodeLatency(open_runtime(["cpu"]))
    assert set(find_slow_nodes([node], nodes)) <= {"conv1"}
    assert nodes.spent > 0


def test_the_nodes_of_a_chain_stand_in_front_of_the_one_with_the_name() -> None:
    half = WHOLE.with_widths(outputs=32)
    before = {"a": WHOLE, "b": WHOLE, "c": WHOLE}
    after = {"a": WHOLE, "b/1": half, "b": half, "c": half}
    costs = (
        {"a": NodeCost(10, 1), "b": NodeCost(20, 1), "c": NodeCost(30, 1)},
        {"a": NodeCost(10, 1), "b/1": NodeCost(4, 1), "b": NodeCost(6, 1), "c": NodeCost(15, 1)},
    )
    assert reduced_nodes(before, after, costs) == [
        ReducedNode("c", WHOLE, (half,), 0.5),
        ReducedNode("b", WHOLE, (half, half), 0.5),
    ]
