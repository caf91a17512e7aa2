"""Patches gathered by position, times the matrix, are what ONNX Runtime convolves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from tests.helpers import run

CASES: list[tuple[str, int, dict[str, Any]]] = [
    (op, kernel, {"strides": stride, "dilations": dilation, "group": group, "pads": pads})
    for op, kernel, stride, dilation, group, pads in itertools.product(
        ("Conv", "ConvTranspose"), (1, 3), (1, 2), (1, 2), (1, 2), ((0, 0), (1, 0), (1, 2))
    )
    if pads == (0, 0) or kernel == 3
]
CASES += [
    (op, kernel, {"strides": stride, "group": 1, "auto_pad": auto_pad})
    for op, kernel, stride, auto_pad in itertools.product(
        ("Conv", "ConvTranspose"), (1, 2, 3), (1, 2, 3), ("SAME_UPPER", "SAME_LOWER", "VALID")
    )
]
CASES += [
    ("ConvTranspose", 3, {"strides": 2, "group": 2, "pads": (1, 1), "output_padding": 1}),
    ("ConvTranspose", 3, {"strides": 2, "group": 1, "output_shape": (15, 16)}),
    ("ConvTranspose", 3, {"strides": 2, "group": 1, "output_shape": (13, 15)}),
]


def convolution(
    op: str, kernel: int, attrs: dict[str, Any], size: tuple[int, int] = (7, 8)
) -> onnx.ModelProto:
    """Make a model of one convolution of 6 channels to 4."""
    given = dict(attrs)
    for name in ("strides", "dilations", "output_padding"):
        if name in given:
            given[name] = [given[name]] * 2
    if "pads" in given:
        given["pads"] = [given["pads"][0]] * 2 + [given["pads"][1]] * 2
    group = given["group"]
    rows = (4, 6 // group) if op == "Conv" else (6, 4 // group)
    weight = np.random.default_rng(0).normal(size=(*rows, kernel, kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **given)],
        "convolution",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6, *size])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4, None, None])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("op", "kernel", "attrs"), CASES)
def test_patches_times_matrix_are_the_convolution(
    op: str, kernel: int, attrs: dict[str, Any]
) -> None:
    model = convolution(op, kernel, attrs)
    x = np.random.default_rng(1).normal(size=(2, 6, 7, 8)).astype(np.float32)
    expected = run(model, {"x": x})["y"]

    (linear,) = find_linear(gs.import_onnx(model))
    assert isinstance(linear, Linear)
    geometry = Geometry.of(linear, x.shape)
    index, inside = geometry.patches(np.arange(geometry.positions))
    gathered = x.reshape(2, 6, -1)[:, :, index] * inside
    patches = gathered.reshape(2, linear.groups, -1, geometry.positions)
    outputs = np.einsum("gnp,bgpk->bgnk", linear.matrix, patches)

    assert geometry.output_shape == expected.shape[2:]
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_positions_of_a_product_are_those_of_its_input() -> None:
    geometry = Geometry((3, 5), ())
    index, inside = geometry.patches(np.array([14, 2]))
    assert geometry.positions == 15
    assert index.tolist() == [[14, 2]]
    assert inside.all()


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize(
    ("kernel", "size", "pads", "dilation"),
    [
        (3, (1, 1), (1, 1), 1),
        (3, (2, 1), (1, 1), 1),
        (3, (2, 2), (2, 2), 2),
        (3, (3, 2), (2, 2), 2),
        (3, (1, 2), (2, 0), 1),
        (2, (1, 1), (1, 0), 1),
        (3, (5, 1), (1, 1), 1),
        (1, (2, 1), (0, 0), 1),
    ],
)
def test_taps_inside_are_those_whose_weights_matter(
    op: str, kernel: int, size: tuple[int, int], pads: tuple[int, int], dilation: int
) -> None:
    attrs = {"group": 2, "pads": pads, "dilations": dilation}
    model = convolution(op, kernel, attrs, size)
    x = np.random.default_rng(1).uniform(1, 2, (2, 6, *size)).astype(np.float32)
    before = run(model, {"x": x})["y"]
    weight = numpy_helper.to_array(model.graph.initializer[0])
    matters = []
    for tap in np.ndindex(kernel, kernel):
        changed = weight.copy()
        changed[..., *tap] += 1.0
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(changed, "w"))
        matters.append(not np.array_equal(run(model, {"x": x})["y"], before))
    (linear,) = find_linear(gs.import_onnx(model))
    assert isinstance(linear, Linear)
    assert Geometry.of(linear, x.shape).taps_inside.tolist() == matters


def test_three_by_three_on_one_pixel_is_one_by_one() -> None:
    model = convolution("Conv", 3, {"group": 1, "pads": (1, 1)}, (1, 1))
    (linear,) = find_linear(gs.import_onnx(model))
    assert isinstance(linear, Linear)
    assert np.flatnonzero(Geometry.of(linear, (2, 6, 1, 1)).taps_inside).tolist() == [4]


def test_a_product_has_one_tap() -> None:
    assert Geometry((3, 5), ()).taps_inside.tolist() == [True]
