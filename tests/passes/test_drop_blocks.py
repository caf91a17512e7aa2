"""A residual block that adds nothing can be left out without a trace."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize, DropBlocks, export
from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.residual_blocks import find_residual_blocks
from fskd_onnx.passes.errors import PreconditionError
from tests.helpers import assert_close, build, check, ops, random_feeds, run, zoo_model
from tests.random_graphs.case import draw

# Two blocks in a row, the second with a block inside of it.
NESTED = """g (float[N,4,5,5] x) => (float[N,4,5,5] z)
  <float[4,4,1,1] u, float[4,4,1,1] v, float[4,4,1,1] w, float[4,4,1,1] e, float[4] b> {
    y = Relu (x)
    [a] p = Conv (y, u, b)
    s1 = Add (p, y)
    [b] q = Conv (s1, v, b)
    [c] r = Conv (q, w, b)
    s2 = Add (q, r)
    t = Relu (s2)
    [d] h = Conv (t, e, b)
    s3 = Add (s1, h)
    z = Relu (s3)
}"""


def without(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Set the last linear node of each of some blocks to zero."""
    graph = gs.import_onnx(model)
    views = {v.name: v for v in find_linear(graph) if isinstance(v, Linear)}
    for block in find_residual_blocks(graph):
        if block.name in names:
            last = views[block.linears[-1]]
            for slot in filter(None, ((last.node, 1), last.bias_slot)):
                node, index = slot
                if index < len(node.inputs):
                    old = node.inputs[index]
                    zeros = constants.make("", np.zeros(old.shape), constants.element_type(old))
                    node.inputs[index] = gs.Constant(f"{last.name}/zero/{index}", zeros.values)
    return export(graph, like=model)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["s1"], {"Conv": 3, "Add": 2, "Relu": 3}),
        (["s2"], {"Conv": 3, "Add": 2, "Relu": 3}),
        (["s3"], {"Conv": 1, "Add": 1, "Relu": 2}),
        (["s1", "s2"], {"Conv": 2, "Add": 1, "Relu": 3}),
        (["s3", "s2"], {"Conv": 1, "Add": 1, "Relu": 2}),
        (["s1", "s2", "s3"], {"Relu": 2}),
    ],
)
def test_blocks_go_one_by_one_and_together(names: list[str], left: dict[str, int]) -> None:
    model = build(NESTED)
    before = model.SerializeToString()
    result = DropBlocks(names)(model)
    assert model.SerializeToString() == before
    check(result.model)
    assert ops(result.model) == left
    assert sorted(result.notes) == sorted(f"the residual block '{n}' is left out" for n in names)
    zeroed = without(model, names)
    feeds = random_feeds(model)
    assert_close(run(result.model, feeds), run(zeroed, feeds))


def test_nothing_goes_where_no_block_is_named() -> None:
    assert not DropBlocks([])(build(NESTED)).changed


def test_a_block_that_is_not_there_or_cannot_go_is_refused() -> None:
    model = build(NESTED.replace("=> (", "=> (float[N,4,5,5] q, "))
    with pytest.raises(PreconditionError, match="has no residual block 'q'"):
        DropBlocks(["q"])(model)
    with pytest.raises(PreconditionError, match="block 's3' cannot be left out: the output 'q'"):
        DropBlocks(["s3"])(model)


def test_a_network_of_the_model_zoo_runs_without_its_blocks() -> None:
    model = Canonicalize()(zoo_model("resnet50")).model
    names = [block.name for block in find_residual_blocks(gs.import_onnx(model))]
    result = DropBlocks(names)(model)
    check(result.model)
    assert ops(result.model)["Conv"] == 53 - 3 * 12
    feeds = random_feeds(model, batch=1)
    outputs = run(model, feeds)
    assert {n: v.shape for n, v in run(result.model, feeds).items()} == {
        n: v.shape for n, v in outputs.items()
    }


@pytest.mark.parametrize("seed", range(30))
def test_blocks_of_random_networks_go(seed: int) -> None:
    model = Canonicalize()(draw(seed).teacher.model).model
    blocks = find_residual_blocks(gs.import_onnx(model))
    names = [block.name for block in blocks if not block.reason]
    result = DropBlocks(names)(model)
    assert result.changed == bool(names)
    check(result.model)
    feeds = random_feeds(model)
    shapes = {name: value.shape for name, value in run(model, feeds).items()}
    assert {name: value.shape for name, value in run(result.model, feeds).items()} == shapes
