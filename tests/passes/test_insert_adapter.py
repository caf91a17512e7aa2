"""Explicit adapters sit behind block outputs, under the names that readers know."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import AffineMap, InsertAdapter
from fskd_onnx.passes.errors import PreconditionError
from tests.helpers import assert_same_function, build, initializers, ops, random_feeds, run

# x ─▶ Conv ─▶ y ─▶ Flatten ─▶ f ─▶ MatMul ─▶ Add ─▶ z         y and z are outputs
MODEL = """g (float[N,4,3,3] x) => (float[N,6,1,1] y, float[N,5] z)
  <float[6,2,3,3] w, float[6,5] k, float[5] b> {
    [conv] y = Conv <group = 2> (x, w)
    f = Flatten (y)
    [head] h = MatMul (f, k)
    z = Add (h, b)
}"""


def test_the_adapter_maps_the_block_output_group_by_group() -> None:
    model = build(MODEL)
    rng = np.random.default_rng(0)
    adapter = AffineMap(rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3)))
    result = InsertAdapter({"conv": adapter})(model)
    assert result.notes == ("adapter inserted behind 'conv'",)
    assert ops(result.model) == {"Conv": 2, "Flatten": 1, "MatMul": 1, "Add": 1}
    assert len(initializers(result.model)) == len(initializers(model)) + 2
    feeds = random_feeds(model)
    before, after = run(model, feeds)["y"], run(result.model, feeds)["y"]
    expected = np.einsum("gmn,bgn->bgm", adapter.matrix, before.reshape(-1, 2, 3))
    np.testing.assert_allclose(
        after.reshape(-1, 6),
        expected.reshape(-1, 6) + adapter.shift.reshape(-1),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_adapter_of_a_product_maps_its_last_axis() -> None:
    model = build(MODEL)
    rng = np.random.default_rng(0)
    adapter = AffineMap(rng.standard_normal((1, 5, 5)), rng.standard_normal((1, 5)))
    result = InsertAdapter({"head": adapter})(model)
    assert ops(result.model) == {"Conv": 1, "Flatten": 1, "MatMul": 2, "Add": 2}
    feeds = random_feeds(model)
    before, after = run(model, feeds)["z"], run(result.model, feeds)["z"]
    expected = before @ adapter.matrix[0].T + adapter.shift
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_identity_adapters_keep_the_function() -> None:
    model = build(MODEL)
    adapters = {"conv": AffineMap.identity(2, 3), "head": AffineMap.identity(1, 5)}
    assert_same_function(InsertAdapter(adapters)(model).model, model)


def test_no_adapters_change_nothing() -> None:
    model = build(MODEL)
    result = InsertAdapter({})(model)
    assert not result.changed
    assert result.model is model


@pytest.mark.parametrize(
    ("name", "adapter", "reason"),
    [
        ("other", AffineMap.identity(1, 6), "has no linear node 'other'"),
        ("conv", AffineMap.identity(1, 6), r"is \(1, 6, 6\); the node needs \(2, 3, 3\)"),
        ("head", AffineMap(np.zeros((1, 5, 4)), np.zeros((1, 5))), r"needs \(1, 5, 5\)"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(name: str, adapter: AffineMap, reason: str) -> None:
    graph = gs.import_onnx(build(MODEL))
    with pytest.raises(PreconditionError, match=reason):
        InsertAdapter({name: adapter}).run(graph)
    assert len(graph.nodes) == 4
