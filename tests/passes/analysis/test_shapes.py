"""Shapes are those that ONNX infers, though it gets to see no weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.shapes import Shape, infer_shapes
from tests.helpers import DEMO, build, zoo_model
from tests.networks import NETWORKS


def of_onnx(model: onnx.ModelProto) -> dict[str, Shape]:
    """Infer the shapes of the model as it is, with its weights inside."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {tensor.name for tensor in graph.initializer}
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.name not in weights and value.type.tensor_type.HasField("shape")
    }


def assert_as_onnx_infers(model: onnx.ModelProto) -> None:
    expected = of_onnx(model)
    assert {node.output[0] for node in model.graph.node} <= expected.keys()
    found = infer_shapes(gs.import_onnx(model))
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks(name: str) -> None:
    assert_as_onnx_infers(NETWORKS[name].teacher())


@pytest.mark.parametrize("name", ["teacher", "student", "vgg16_small"])
def test_trained_networks(name: str) -> None:
    model = onnx.load(DEMO / f"{name}.onnx")
    assert_as_onnx_infers(model)
    assert_as_onnx_infers(Canonicalize()(model).model)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "bvlc_alexnet"])
def test_model_zoo_networks(name: str) -> None:
    assert_as_onnx_infers(Canonicalize()(zoo_model(name)).model)


def test_constants_that_hold_shapes_and_axes_are_read() -> None:
    model = build(
        """g (float[N,4,6,6] x) => (float[A,B] z)
      <int64[3] shape, int64[1] axes, float[0] roi, float[4] scales, int64[2] last> {
        a = Resize (x, roi, scales)
        b = Reshape (a, shape)
        c = ReduceMean (b)
        d = Unsqueeze (b, axes)
        z = Reshape (d, last)
    }""",
        {"shape": [2, -1, 12], "axes": [1], "scales": [1, 1, 2, 2], "last": [48, -1]},
    )
    found = infer_shapes(gs.import_onnx(model))
    assert found["a"] == (None, 4, 12, 12)
    assert found["b"] == (2, None, 12)
    assert found["d"] == (2, 1, None, 12)
    assert found["z"] == (48, None)


def test_shapes_that_are_computed_are_followed() -> None:
    # As exporters flatten: the first extent of the input, then all others.
    model = build(
        """g (float[N,4,6,6] x) => (float[A,B] z) <int64 first, int64[1] zero, int64[1] rest,
          float[144,8] w> {
            s = Shape (x)
            n = Gather (s, first)
            u = Unsqueeze (n, zero)
            t = Concat <axis = 0> (u, rest)
            f = Reshape (x, t)
            z = MatMul (f, w)
        }""",
        {"first": 0, "zero": [0], "rest": [144]},
    )
    assert_as_onnx_infers(model)
    assert infer_shapes(gs.import_onnx(model))["z"] == (None, 8)


def test_weights_that_nobody_reads_in_full_have_their_shape() -> None:
    model = build("""g (float[N,4,6,6] x) => (float[N,8,4,4] z) <float[8,4,3,3] w> {
        z = Conv (x, w)
    }""")
    found = infer_shapes(gs.import_onnx(model))
    assert (found["x"], found["w"], found["z"]) == ((None, 4, 6, 6), (8, 4, 3, 3), (None, 8, 4, 4))


def test_the_graph_stays_as_it_is() -> None:
    model = onnx.load(DEMO / "student.onnx")
    graph = gs.import_onnx(model)
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    infer_shapes(graph)
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before
    values = [t for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant)]
    assert all(isinstance(tensor.values, np.ndarray) for tensor in values)
