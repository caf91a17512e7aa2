"""Weights become parameters and go back into the same graph, with one cast."""

from __future__ import annotations

import numpy as np
import onnx
import torch

from fskd_onnx.gradient.torch_graph import TorchGraph
from fskd_onnx.gradient.trainable import TrainableAdapters, TrainableWeights
from fskd_onnx.passes import AffineMap, InsertAdapter
from tests.helpers import Array, assert_close, build, initializers, linears, random_feeds, run


def trained(model: onnx.ModelProto, *names: str, by: float = 0.25) -> onnx.ModelProto:
    """Add a number to all that may change in some nodes."""
    weights = TrainableWeights(model, names)
    values = [one.values + by * (1 if one.mask is None else one.mask) for one in weights.tensors]
    made = weights.model(values)
    assert made is not None
    return made


def as_parameters(
    model: onnx.ModelProto, feeds: dict[str, Array], by: float, *names: str
) -> dict[str, Array]:
    """Run a model in PyTorch with the same numbers in its parameters."""
    weights = TrainableWeights(model, names)
    given = weights.values([one.values + by for one in weights.tensors])
    outputs = [output.name for output in model.graph.output]
    graph = TorchGraph(model, "m", outputs, weights.slots)
    found = graph.run({name: torch.tensor(value) for name, value in feeds.items()}, given)
    return {name: value.detach().numpy() for name, value in found.items()}


MODEL = build(
    """m (float[n,2,6,6] x) => (float[n,3] y)
    <float[4,2,3,3] w, float[4] b, float[4,2,3,3] v, float[3,4] g, float[3] c>
    { h = Conv <pads = [1,1,1,1]> (x, w, b)
      t = ConvTranspose <group = 2, strides = [2, 2]> (h, v) p = GlobalAveragePool(t)
      f = Flatten(p) y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (f, g, c) }"""
)


def test_numbers_come_back_as_they_went() -> None:
    assert trained(MODEL, "h", "t", "y", by=0.0).SerializeToString() == MODEL.SerializeToString()


def test_the_model_computes_what_its_parameters_do() -> None:
    feeds = random_feeds(MODEL)
    names = ("h", "t", "y")
    expected = as_parameters(MODEL, feeds, 0.25, *names)
    assert_close(run(trained(MODEL, *names), feeds), expected)


def test_only_the_named_nodes_change() -> None:
    before, after = initializers(MODEL), initializers(trained(MODEL, "h"))
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {"w", "b"}
    assert after.keys() == before.keys()


def test_a_node_with_a_place_for_a_bias_gets_one_and_a_matmul_none() -> None:
    model = build(
        "m (float[n,2] x) => (float[n,3] y) <float[2,4] w, float[4,3] v> "
        "{ h = Gemm(x, w) y = MatMul(h, v) }"
    )
    made = trained(model, "h", "y")
    assert [len(node.input) for node in made.graph.node] == [3, 2]
    feeds = random_feeds(model)
    assert_close(run(made, feeds), as_parameters(model, feeds, 0.25, "h", "y"))


def test_the_bias_of_a_matmul_keeps_the_shape_that_its_add_needs() -> None:
    model = build(
        "m (float[n,2] x) => (float[k,n,3] y) <float[2,3] w, float[1,1,3] b> "
        "{ h = MatMul(x, w) y = Add(h, b) }"
    )
    feeds = random_feeds(model)
    assert_close(run(trained(model, "y"), feeds), as_parameters(model, feeds, 0.25, "y"))


def test_constants_that_others_read_too_stay_theirs() -> None:
    model = build(
        "m (float[n,3] x) => (float[n,3] y, float[n,3] z) <float[3,3] w, float[3,3] v, float[3] b> "
        "{ y = Gemm(x, w, b) z = Gemm(x, v, b) }"
    )
    feeds = random_feeds(model)
    found = run(trained(model, "y"), feeds)
    assert_close({"z": found["z"]}, {"z": run(model, feeds)["z"]})
    assert_close(found, as_parameters(model, feeds, 0.25, "y"))


def test_what_is_shared_is_one_parameter_and_needs_all_of_its_uses() -> None:
    model = build(
        "m (float[n,3] x) => (float[n,3] y) <float[3,3] w> { h = MatMul(x, w) y = MatMul(h, w) }"
    )
    (slots,) = TrainableWeights(model, ["h", "y"]).slots
    assert [slot.output for slot in slots] == ["h", "y"]
    assert TrainableWeights(model, ["h"]).tensors == []


def test_zeros_of_a_sparse_kernel_are_masked() -> None:
    sparse = np.array([[1, 0, 2, 0], [0, 3, 0, 4]], float)
    text = "m (float[n,2] x) => (float[n,4] y) <float[2,4] w> { y = MatMul(x, w) }"
    (one,) = TrainableWeights(build(text, {"w": sparse}), ["y"]).tensors
    assert one.mask is not None
    np.testing.assert_array_equal(one.mask.numpy(), sparse != 0)


def test_half_precision_is_trained_in_single_and_cast_once() -> None:
    model = build("m (float16[n,2] x) => (float16[n,3] y) <float16[2,3] w> { y = MatMul(x, w) }")
    weights = TrainableWeights(model, ["y"])
    (one,) = weights.tensors
    assert one.values.dtype == torch.float32
    made = weights.model([one.values + 1e-6])
    assert made is not None
    assert made.SerializeToString() == model.SerializeToString()  # less than its rounding
    assert weights.model([one.values * 1e9]) is None  # beyond its range
    assert weights.model([one.values * np.nan]) is None


def test_adapters_start_from_the_identity() -> None:
    adapters = TrainableAdapters(MODEL, ["h", "t", "y"])
    values = [one.values for one in adapters.tensors]
    assert [tuple(value.shape) for value in values[:2]] == [(1, 4, 4), (4,)]
    assert tuple(values[2].shape) == (2, 2, 2)  # of each group its own
    made = adapters.model(values)
    assert made is not None
    before, after = initializers(MODEL), initializers(made)
    for name, stored in before.items():
        np.testing.assert_array_equal(after[name].reshape(stored.shape), stored)


def test_adapters_do_what_adapters_behind_the_blocks_would() -> None:
    adapters = TrainableAdapters(MODEL, ["h", "t", "y"])
    drawn = np.random.default_rng(0)
    values = [
        one.values + torch.tensor(drawn.standard_normal(one.values.shape), dtype=torch.float32)
        for one in adapters.tensors
    ]
    made = adapters.model(values)
    assert made is not None
    views = linears(MODEL)
    inserted: dict[str, AffineMap] = {}
    numbers = iter(value.numpy().astype(np.float64) for value in values)
    for name in ("h", "t", "y"):
        matrix, beta = next(numbers), 2.0 if name == "y" else 1.0
        has_place = name != "t" or views[name].bias_slot is not None
        shift = beta * next(numbers).reshape(matrix.shape[:2]) if has_place else 0 * matrix[..., 0]
        inserted[name] = AffineMap(matrix, shift)
    expected = InsertAdapter(inserted)(MODEL).model
    feeds = random_feeds(MODEL)
    assert_close(run(made, feeds), run(expected, feeds))
