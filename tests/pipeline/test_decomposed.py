"""Fits of decomposed students: all factors of a block are solved, and nothing else changes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx import FitOptions, FitResult, RunOptions, fit, match
from fskd_onnx.passes import export
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.reporting.json_format import matching_to_json
from tests.helpers import Array, build, initializers, run
from tests.students import (
    bottleneck,
    decomposed,
    depthwise_pointwise,
    is_spatial,
    pointwise_depthwise,
    separable,
)

SPLITS = {
    "depthwise, pointwise": depthwise_pointwise,
    "pointwise, depthwise": pointwise_depthwise,
    "k x 1, 1 x k": separable,
    "1 x 1, k x k, 1 x 1": bottleneck,
}


def teacher() -> onnx.ModelProto:
    """Three convolutions, the last one in a residual block, and a classifier."""
    return build(
        """g (float[N,3,9,9] x) => (float[N,5] z)
           <float[12,3,3,3] a, float[12] b, float[12,12,3,3] c, float[12] d, float[12,12,3,3] e,
            float[12] f, float[12,5] w, float[5] v> {
           h = Conv <pads = [1,1,1,1]> (x, a, b)
           i = Relu (h)
           j = Conv <pads = [1,1,1,1], strides = [2,2]> (i, c, d)
           k = Relu (j)
           l = Conv <pads = [1,1,1,1]> (k, e, f)
           m = Add (l, k)
           n = Relu (m)
           o = GlobalAveragePool (n)
           p = Flatten (o)
           z = Gemm (p, w, v) }"""
    )


def samples(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 9, 9)).astype(np.float32)


def error(student: onnx.ModelProto) -> float:
    """Give the relative error on samples that no fit has seen."""
    fresh = {"x": samples(200, seed=9)}
    target, found = (run(model, fresh)["z"].astype(np.float64) for model in (teacher(), student))
    return float(np.sum((found - target) ** 2) / np.sum((target - target.mean(0)) ** 2))


def fitted(student: onnx.ModelProto, adapter: str, count: int = 120) -> FitResult:
    return fit(teacher(), student, samples(count), FitOptions(adapter=adapter))


@pytest.mark.parametrize("form", SPLITS)
def test_all_factors_together_are_closer_than_the_last_alone(form: str) -> None:
    student, _ = decomposed(teacher(), SPLITS[form], is_spatial)
    last, factors = (fitted(student, adapter).model for adapter in ("kernel", "factors"))
    before = error(student)
    assert error(factors) < error(last) < before
    for model in (last, factors):
        nodes = [Counter(node.op_type for node in m.graph.node) for m in (model, student)]
        assert nodes[0] == nodes[1]
        sizes = [sum(v.size for v in initializers(m).values()) for m in (model, student)]
        assert sizes[0] == sizes[1]


def test_held_out_folds_choose_and_every_node_has_a_row() -> None:
    student, _ = decomposed(teacher(), bottleneck, is_spatial)
    result = fitted(student, "auto")
    assert error(result.model) < error(student)
    rows = {block.student: block for block in result.report.blocks}
    views = [view.name for view in find_linear(gs.import_onnx(student))]
    assert sorted(rows) == sorted(views)
    before, after = initializers(student), initializers(result.model)
    for name, row in rows.items():
        weight = f"{name}.weight"
        if weight in before:
            changed = not np.array_equal(before[weight], after[weight])
            assert changed == (row.status == "fitted"), name
    inner = [row for row in rows.values() if "factor of the block" in row.note]
    assert inner
    assert all(row.teacher is None and row.adapter == "factors" for row in inner)


def test_match_shows_the_nodes_of_a_block() -> None:
    student, _ = decomposed(teacher(), bottleneck, is_spatial)
    pairs = {pair.student: pair for pair in match(teacher(), student).pairs}
    names = [name for name in pairs if name.endswith((".part0", ".part1"))]
    assert names
    for name in names:
        end = name.rsplit(".", 1)[0] + ".part2"
        assert pairs[name].reason == f"it is a factor of the block that ends at '{end}'"
        assert pairs[end].teacher is not None


def with_branches(student: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Split a depthwise and pointwise pair into two, whose outputs are added."""
    graph = gs.import_onnx(student)
    views = {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
    depth, point = views[f"{name}.part0"], views[f"{name}.part1"]
    rng = np.random.default_rng(3)
    output, source = point.output, depth.input
    terms = []
    for number, share in enumerate((0.6, 0.4)):
        tensors: list[gs.Tensor] = []
        for view, tensor in ((depth, source), (point, None)):
            values = view.weight.values * (share if view is point else 1.0)
            noise = 0.2 * values.std() * rng.standard_normal(values.shape)
            made = gs.Variable(f"{view.name}.{number}", np.float32)
            constant = gs.Constant(f"{view.name}.{number}.weight", (values + noise).astype("f"))
            inputs = [tensor if tensor is not None else tensors[-1], constant]
            if view is point and number == 0:
                inputs.append(view.node.inputs[2])
            node = gs.Node("Conv", made.name, dict(view.node.attrs), inputs, [made])
            graph.nodes.insert(graph.nodes.index(depth.node), node)
            tensors.append(made)
        terms.append(tensors[-1])
    at = graph.nodes.index(point.node)
    for node in (depth.node, point.node):
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes.insert(at, gs.Node("Add", f"{name}.sum", {}, terms, [output]))
    graph.nodes[:] = [node for node in graph.nodes if node.inputs or node.outputs]
    return export(graph, like=student)


def test_branches_that_are_chains_are_fitted_together() -> None:
    chain, _ = decomposed(teacher(), depthwise_pointwise, is_spatial)
    student = with_branches(chain, "j")
    last, factors = (fitted(student, adapter) for adapter in ("kernel", "factors"))
    assert error(factors.model) < error(last.model)
    rows = {block.student: block for block in factors.report.blocks}
    branches = [row for name, row in rows.items() if name.startswith("j.part")]
    assert len(branches) == 4
    assert all(row.status == "fitted" for row in branches)
    assert Counter(n.op_type for n in factors.model.graph.node) == Counter(
        n.op_type for n in student.graph.node
    )


def test_a_saved_map_is_taken_back(tmp_path: Path) -> None:
    chain, _ = decomposed(teacher(), depthwise_pointwise, is_spatial)
    student = with_branches(chain, "j")
    path = tmp_path / "map.json"
    path.write_text(matching_to_json(match(teacher(), student)), encoding="utf-8")
    options = FitOptions(map=str(path))
    with_map = fit(teacher(), student, samples(60), options).model
    assert initializers(with_map).keys() == initializers(student).keys()
    assert error(with_map) == pytest.approx(error(fitted(student, "auto", 60).model), rel=1e-3)


def test_random_factors_are_fitted_from_the_structure_alone() -> None:
    student, _ = decomposed(teacher(), separable, is_spatial)
    rng = np.random.default_rng(5)
    for tensor in student.graph.initializer:
        if ".part" in tensor.name:
            values = onnx.numpy_helper.to_array(tensor)
            drawn = rng.standard_normal(values.shape) * values.std()
            tensor.CopyFrom(onnx.numpy_helper.from_array(drawn.astype(np.float32), tensor.name))
    result = fitted(student, "auto", count=300)
    reference = fitted(decomposed(teacher(), separable, is_spatial)[0], "auto", count=300)
    assert error(result.model) < 1.5 * error(reference.model)


def test_a_block_of_another_kernel_than_its_partner_takes_no_weights_of_it(tmp_path: Path) -> None:
    """Where the teacher has two nodes in a row, of which the first has no partner."""
    head = """g (float[N,2,6,6] x) => (float[N,M,P,Q] z)
        <float[4,2,3,3] v, float[4] c, {weights}> {{
        [a] y = Conv <pads = [1,1,1,1]> (x, v, c)
        r = Relu (y)
        {nodes}
    }}"""
    whole = build(
        head.format(
            weights="float[5,4,3,2] w1, float[4,5,1,1] w2",
            nodes="[b] t = Conv (r, w1) [c] z = Conv (t, w2)",
        )
    )
    student = build(
        head.format(
            weights="float[3,4,1,1] w1, float[5,3,3,2] w2, float[3,5,1,1] w3, float[4,3,1,1] w4",
            nodes="[b1] s = Conv (r, w1) [b2] t = Conv (s, w2) [c1] u = Conv (t, w3) "
            "[c2] z = Conv (u, w4)",
        )
    )
    pairs: list[dict[str, Any]] = [{"student": "a", "teacher": "y", "channels": [0, 1, 2, 3]}]
    pairs += [{"student": name, "teacher": None} for name in ("b1", "b2", "c1")]
    pairs += [{"student": "c2", "teacher": "z", "channels": [0, 1, 2, 3]}]
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"pairs": pairs}))
    images = np.random.default_rng(0).standard_normal((80, 2, 6, 6)).astype(np.float32)
    result = fit(whole, student, images, FitOptions(RunOptions(("cpu",)), map=str(path)))
    assert result.report.after.relative_mse < result.report.before.relative_mse
