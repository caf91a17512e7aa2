"""Residual blocks: which branches may be left out, and why others may not."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock, find_residual_blocks
from tests.helpers import build, zoo_model


def blocks_of(
    nodes: str, inputs: str = "", outputs: str = "float[N,4,5,5] z"
) -> list[ResidualBlock]:
    """Find the blocks of a network of convolutions to four channels, with the weights v and w."""
    text = f"""g (float[N,4,5,5] x{inputs}) => ({outputs})
      <float[4,4,1,1] v, float[4,4,3,3] w, float[4,1,1] c> {{ {nodes} }}"""
    return list(find_residual_blocks(gs.import_onnx(build(text))))


BRANCH = "[a] p = Conv <pads = [1,1,1,1]> (y, w) q = Relu (p) [b] r = Conv (q, v)"

FOUND: Mapping[str, str] = {
    "the identity": f"y = Relu (x) {BRANCH} s = Add (r, y) z = Relu (s)",
    "the identity first": f"y = Relu (x) {BRANCH} s = Sum (y, r) z = Relu (s)",
    "a scale in front of the shortcut": f"""y = Relu (x) t = Mul (y, c) {BRANCH}
      s = Add (r, t) z = Relu (s)""",
    "an activation in front of the branch": f"y = Relu (x) {BRANCH} s = Add (r, x) z = Relu (s)",
    "a scale behind the branch": f"""y = Relu (x) {BRANCH} t = Mul (r, c)
      s = Add (t, y) z = Relu (s)""",
    "a gate in the branch": f"""y = Relu (x) {BRANCH} g = GlobalAveragePool (r) h = Sigmoid (g)
      t = Mul (r, h) s = Add (t, y) z = Relu (s)""",
}


@pytest.mark.parametrize("what", FOUND)
def test_a_branch_beside_what_it_reads_is_a_block(what: str) -> None:
    assert blocks_of(FOUND[what]) == [ResidualBlock("s", ("a", "b"), "")]


NONE: Mapping[str, str] = {
    "a shortcut with a linear node": f"""y = Relu (x) {BRANCH} [d] t = Conv (y, v)
      s = Add (r, t) z = Relu (s)""",
    "a branch without one": "y = Relu (x) t = Sigmoid (y) s = Add (t, y) z = Relu (s)",
    "a constant": "[a] y = Conv (x, v) s = Add (y, c) z = Relu (s)",
    "one tensor twice": "[a] y = Conv (x, v) s = Add (y, y) z = Relu (s)",
    "a product": f"y = Relu (x) {BRANCH} s = Mul (r, y) z = Relu (s)",
}


@pytest.mark.parametrize("what", NONE)
def test_other_sums_are_no_blocks(what: str) -> None:
    assert blocks_of(NONE[what]) == []


REASONS: Mapping[str, tuple[str, str]] = {
    "an output": (
        f"y = Relu (x) {BRANCH} z = Add (r, y)",
        "its sum is an output of the network",
    ),
    "a reader inside": (
        f"y = Relu (x) {BRANCH} s = Add (r, y) [e] t = Conv (q, v) z = Mul (s, t)",
        "'e' reads 'q', which is inside of it",
    ),
}


@pytest.mark.parametrize("what", REASONS)
def test_a_block_that_cannot_go_has_a_reason(what: str) -> None:
    nodes, reason = REASONS[what]
    assert [block.reason for block in blocks_of(nodes)] == [reason]


def test_an_output_inside_of_a_branch_is_a_reason() -> None:
    nodes = f"y = Relu (x) {BRANCH} s = Add (r, y) z = Relu (s)"
    [block] = blocks_of(nodes, outputs="float[N,4,5,5] z, float[N,4,5,5] q")
    assert block.reason == "the output 'q' of the network is inside of it"
    assert block.linears == ("b",)


def test_a_shortcut_that_is_broadcast_is_a_reason() -> None:
    nodes = """g = GlobalAveragePool (x) t = Add (g, u) [a] r = Conv <pads = [1,1,1,1]> (t, w)
      s = Add (r, g) z = Relu (s)"""
    [block] = blocks_of(nodes, inputs=", float[N,4,5,5] u")
    assert block.reason == "the shape of its shortcut is not known to be that of the sum"


def test_what_a_branch_alone_reads_goes_with_it() -> None:
    nodes = """[m] k = Conv (u, v) y = Relu (x) [a] p = Conv (y, v) h = Mul (p, k)
      s = Add (h, y) z = Relu (s)"""
    [block] = blocks_of(nodes, inputs=", float[N,4,5,5] u")
    assert block == ResidualBlock("s", ("m", "a"), "")


def test_blocks_of_a_stage_are_found_one_by_one() -> None:
    graph = gs.import_onnx(Canonicalize()(zoo_model("resnet50")).model)
    blocks = find_residual_blocks(graph)
    assert len(blocks) == 12  # of 16, without the four that change the width
    assert all(len(block.linears) == 3 and not block.reason for block in blocks)
    assert find_residual_blocks(gs.import_onnx(zoo_model("vgg19"))) == ()
