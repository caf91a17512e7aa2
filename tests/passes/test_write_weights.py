"""Weights are written where and as they are stored, and only where they change."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.write_weights import write_weights
from tests.helpers import build, initializers, linears, random_feeds, run
from tests.passes.linear_forms import FORMS, evaluate


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_what_the_node_computes(form: str) -> None:
    model = build(FORMS[form])
    graph = gs.import_onnx(model)
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    rng = np.random.default_rng(3)
    new = AffineMap(rng.standard_normal(linear.shape), rng.standard_normal(linear.shape[:2]))
    before = {node.op for node in graph.nodes}
    write_weights(graph, linear, new)
    written = gs.export_onnx(graph)
    view = linears(written)["n"]
    np.testing.assert_array_equal(view.matrix, new.matrix)
    np.testing.assert_array_equal(view.bias, new.shift.reshape(-1))
    assert {node.op for node in graph.nodes} == before | ({"Add"} if form == "MatMul" else set())
    feeds = random_feeds(model)
    result = run(written, feeds)["y"]
    assert result.shape == run(model, feeds)["y"].shape
    np.testing.assert_allclose(
        evaluate(view, feeds["x"]).reshape(result.shape), result, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
def test_writing_what_is_there_changes_nothing(form: str) -> None:
    model = build(FORMS[form])
    graph = gs.import_onnx(model)
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    same = linear.affine
    write_weights(graph, linear, AffineMap(same.matrix + 0.0, same.shift + 0.0))
    after = gs.export_onnx(graph)
    assert after.graph.node == model.graph.node
    for name, value in initializers(model).items():
        assert initializers(after)[name].tobytes() == value.tobytes()


def test_negative_zeros_stay_negative() -> None:
    # Masks leave them behind; a product with the identity turns them positive.
    model = build(FORMS["Gemm"], {"w": np.full((4, 6), -0.0)})
    graph = gs.import_onnx(model)
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    write_weights(graph, linear, AffineMap.identity(1, 6).after(linear.affine))
    assert np.signbit(initializers(gs.export_onnx(graph))["w"]).all()


# x ─▶ [a linear node that stores its parameters in half precision behind Casts] ─▶ y
CASTS = {
    "MatMul": (
        "g (float[N,4] x) => (float[N,6] y) <{t}[4,6] ws, {t}[6] bs>"
        "{{ w = Cast <to = 1> (ws) b = Cast <to = 1> (bs) [n] h = MatMul (x, w) y = Add (b, h) }}"
    ),
    "Conv": (
        "g (float[N,4,5] x) => (float[N,6,4] y) <{t}[6,4,2] ws, {t}[6] bs>"
        "{{ w = Cast <to = 1> (ws) b = Cast <to = 1> (bs) [n] y = Conv (x, w, b) }}"
    ),
}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", CASTS)
def test_parameters_behind_casts_are_written_where_they_are_stored(op: str, kind: str) -> None:
    model = build(CASTS[op].format(t=kind))
    graph = gs.import_onnx(model)
    [linear] = find_linear(graph)
    assert isinstance(linear, Linear)
    assert (linear.weight.name, linear.shared_with) == ("ws", None)
    assert linear.dtype == np.float32
    rng = np.random.default_rng(3)
    new = AffineMap(rng.standard_normal(linear.shape), rng.standard_normal(linear.shape[:2]))
    write_weights(graph, linear, new)
    step = 2.0**-8 if kind == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(linear.matrix, new.matrix, rtol=step)
    np.testing.assert_allclose(linear.bias, new.shift.reshape(-1), rtol=step)
    written = gs.export_onnx(graph)
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in model.graph.node]
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert {t.name: t.data_type for t in written.graph.initializer} == stored
    feeds = random_feeds(model)
    np.testing.assert_allclose(
        evaluate(linear, feeds["x"]), run(written, feeds)["y"], rtol=1e-4, atol=1e-5
    )
