"""Nodes without a partner in front of one that has one belong to its block."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from fskd_onnx.matching.block_extents import find_decomposed
from fskd_onnx.matching.pairing import Partner
from tests.helpers import build

CHAIN = """g (float[N,6,9,8] x) => (float[N,8,H,W] y)
    <float[4,6,1,1] a, float[3,4,3,3] b, float[8,3,1,1] c> {
    h = Conv (x, a)
    i = Conv <pads = [1,1,1,1]> (h, b)
    y = Conv (i, c) }"""


def found(*partners: Partner) -> list[tuple[str, ...]]:
    return find_decomposed(gs.import_onnx(build(CHAIN)), partners)


def alone(name: str) -> Partner:
    return Partner(name, None, reason="no place fits it")


def test_all_nodes_in_front_without_a_partner_are_factors() -> None:
    assert found(alone("h"), alone("i"), Partner("y", "t")) == [("h", "i", "y")]


def test_a_node_with_a_partner_ends_the_block() -> None:
    assert found(Partner("h", "s"), alone("i"), Partner("y", "t")) == [("i", "y")]
    assert found(alone("h"), Partner("i", "s"), Partner("y", "t")) == [("h", "i")]


def test_nothing_is_a_block_without_a_partner_at_its_end() -> None:
    assert found(alone("h"), alone("i"), alone("y")) == []
    assert found(alone("h"), alone("i"), Partner("y", "t", reason="left alone")) == []
