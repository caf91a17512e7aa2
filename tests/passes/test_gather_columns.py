"""Gathered columns are the patches that ONNX Runtime's own nodes see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from fskd_onnx.passes import GatherColumns
from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.gather_columns import COLUMNS, gather_feeds
from tests.helpers import Array, assert_close, build, linears, random_feeds, run

# x ─▶ [one linear node] ─▶ y
CONVS = [  # input, weight, attributes
    ("9", "6,4,3", "strides = [2], pads = [1, 0]"),
    ("9", "6,4,3", "dilations = [3], pads = [2, 4]"),
    ("5,6", "6,4,3,2", "pads = [0, 1, 2, 1], strides = [2, 1]"),
    ("7,7", "6,4,2,3", "dilations = [2, 1], pads = [0, 1, 2, 0]"),
    ("5,6", "6,4,3,2", 'auto_pad = "SAME_UPPER"'),
    ("5,6", "6,4,2,3", 'auto_pad = "SAME_LOWER"'),
    ("6,7", "6,4,4,3", 'auto_pad = "SAME_UPPER", strides = [2, 3]'),
    ("6,7", "6,4,4,2", 'auto_pad = "SAME_LOWER", strides = [3, 2]'),
    ("3,9", "6,4,1,2", 'auto_pad = "SAME_UPPER", strides = [4, 4]'),
    ("5,6", "6,4,2,2", 'auto_pad = "VALID", strides = [2, 1]'),
    ("5,6", "6,4,1,1", "strides = [2, 2]"),
    ("2,3", "6,4,2,3", "group = 1"),
    ("5,6", "6,2,3,3", "group = 2, pads = [1, 1, 1, 1]"),
    ("5,6", "4,1,3,3", "group = 4, pads = [1, 1, 1, 1], strides = [2, 2]"),
    ("5,6", "8,1,3,3", "group = 4"),
    ("3,4,5", "6,4,2,2,2", "strides = [1, 2, 2], pads = [1, 0, 0, 0, 1, 2]"),
    ("3,4,5", "6,2,2,1,3", 'auto_pad = "SAME_LOWER", strides = [2, 1, 2], group = 2'),
]
FORMS = {
    **{
        f"{weight} {attrs}": f"g (float[N,4,{image}] x) => (float[{out}] y) <float[{weight}] w,"
        f" float[{weight[0]}] b> {{ [n] y = Conv <{attrs}> (x, w, b) }}"
        for image, weight, attrs in CONVS
        for out in [",".join("NCHWD"[: weight.count(",") + 1])]
    },
    "Gemm": "g (float[N,4] x) => (float[N,6] y) <float[4,6] w, float[6] b>"
    "{ [n] y = Gemm (x, w, b) }",
    "transB": "g (float[N,4] x) => (float[N,6] y) <float[6,4] w> "
    "{ [n] y = Gemm <transB = 1, alpha: float = 0.5> (x, w) }",
    "MatMul": "g (float[N,4] x) => (float[N,6] y) <float[4,6] w> { [n] y = MatMul (x, w) }",
    "MatMul 3": "g (float[N,7,4] x) => (float[N,7,6] y) <float[4,6] w, float[6] b>"
    "{ [n] h = MatMul (x, w) y = Add (b, h) }",
    "MatMul 4": "g (float[N,2,5,4] x) => (float[N,2,5,6] y) <float[4,6] w>"
    "{ [n] y = MatMul (x, w) }",
}
SAMPLES, COUNT = 5, 3


def patches_of(linear: Linear, x: Array) -> Array:
    """Cut all patches with loops over the kernel: (samples, groups, p, positions)."""
    if linear.op != "Conv":
        return np.moveaxis(x, -1, 1).reshape(len(x), 1, x.shape[-1], -1)
    spatial, kernel = x.shape[2:], linear.kernel_shape
    rank, attrs = len(kernel), linear.node.attrs
    strides = attrs.get("strides", [1] * rank)
    dilations = attrs.get("dilations", [1] * rank)
    auto_pad = attrs.get("auto_pad", "NOTSET")
    pads = np.reshape(attrs.get("pads", [0] * 2 * rank), (2, rank)).T
    if auto_pad.startswith("SAME"):
        sizes = zip(spatial, kernel, strides, dilations, strict=True)
        need = np.array(
            [max((math.ceil(i / s) - 1) * s + (k - 1) * d + 1 - i, 0) for i, k, s, d in sizes]
        )
        less, more = need // 2, need - need // 2
        pads = np.stack([less, more] if auto_pad == "SAME_UPPER" else [more, less], axis=1)
    padded = np.pad(x, [(0, 0), (0, 0), *map(tuple, pads)])
    taps = []
    for tap in np.ndindex(*kernel):
        slices = [slice(None), slice(None)]
        for at, size, k, s, d in zip(
            tap, padded.shape[2:], kernel, strides, dilations, strict=True
        ):
            count = (size - ((k - 1) * d + 1)) // s + 1
            slices.append(slice(at * d, at * d + (count - 1) * s + 1, s))
        taps.append(padded[tuple(slices)].reshape(len(x), linear.groups, -1, 1, count_of(slices)))
    return np.concatenate(taps, axis=3).reshape(len(x), linear.groups, -1, taps[0].shape[-1])


def count_of(slices: list[slice]) -> int:
    return math.prod(len(range(s.start, s.stop, s.step)) for s in slices[2:])


def example_input(model: onnx.ModelProto) -> Array:
    return random_feeds(model, seed=2, batch=SAMPLES)["x"]


def channels_first(tensor: Array, last: bool) -> Array:
    """Bring a tensor into (samples, channels, positions)."""
    turned = np.moveaxis(tensor, -1, 1) if last else tensor
    return turned.reshape(*turned.shape[:2], -1)


def side_by_side(parts: Array, groups: int) -> Array:
    """Bring (samples, channels, positions) into (groups, channels of one, columns)."""
    split = parts.reshape(len(parts), groups, -1, parts.shape[-1])
    return split.transpose(1, 2, 0, 3).reshape(groups, split.shape[2], -1)


def gather(
    tensor: Array,
    last: bool,
    count: int,
    index: NDArray[np.intp],
    inside: NDArray[np.bool_] | None = None,
    dtype: type[np.floating] = np.float32,
    opset: int = 17,
) -> Array:
    """Run the pass's nodes alone."""
    graph = gs.Graph(
        inputs=[gs.Variable("t", tensor.dtype, [None] * tensor.ndim)], opset=opset, name="g"
    )
    GatherColumns("t", last, inside is not None, np.dtype(dtype)).run(graph)
    chosen = gather_feeds(tensor.shape, last, count, index, inside)
    (columns,) = run(gs.export_onnx(graph, ir_version=8), {"t": tensor, **chosen}).values()
    return columns


def patches(
    linear: Linear, x: Array, geometry: Geometry, count: int, chosen: NDArray[np.intp]
) -> Array:
    """Gather what a node sees at some positions: (groups, p, columns)."""
    columns = gather(x, linear.op == "MatMul", count, *geometry.patches(chosen))
    return columns.reshape(linear.groups, -1, columns.shape[1])


@pytest.mark.parametrize("form", FORMS)
def test_gathered_patches_are_those_that_the_node_sees(form: str) -> None:
    model = build(FORMS[form])
    linear = linears(model)["n"]
    x = example_input(model)
    y = run(model, {"x": x})["y"]
    geometry = Geometry.of(linear, x.shape)
    expected = patches_of(linear, x)
    assert geometry.positions == expected.shape[-1]
    assert geometry.output_shape == (y.shape[1:-1] if linear.op == "MatMul" else y.shape[2:])

    found = patches(linear, x, geometry, SAMPLES, np.arange(geometry.positions))
    np.testing.assert_array_equal(
        found.reshape(linear.groups, expected.shape[2], SAMPLES, -1),
        expected.transpose(1, 2, 0, 3),
    )
    assert_outputs(linear, found, y)


@pytest.mark.parametrize("form", FORMS)
def test_some_positions_of_the_first_samples(form: str) -> None:
    """As of a padded batch of which few columns are wanted."""
    model = build(FORMS[form])
    linear = linears(model)["n"]
    x = example_input(model)
    geometry = Geometry.of(linear, x.shape)
    rng = np.random.default_rng(3)
    chosen = np.sort(rng.choice(geometry.positions, (geometry.positions + 1) // 2, replace=False))
    expected = patches_of(linear, x)[:COUNT, ..., chosen].transpose(1, 2, 0, 3)
    found = patches(linear, x, geometry, COUNT, chosen)
    np.testing.assert_array_equal(found, expected.reshape(*found.shape))


TRANSPOSED = [  # input, weight, attributes
    ("5", "4,3,3", "strides = [2]"),
    ("5", "4,3,2", "strides = [3], output_padding = [1], pads = [0, 1]"),
    ("3,4", "4,3,3,2", "pads = [1, 0, 0, 1], strides = [1, 2], dilations = [2, 1]"),
    ("3,4", "4,3,2,2", "strides = [2, 2], group = 2"),
    ("3,4", "4,1,3,3", "strides = [2, 2], group = 4, pads = [1, 1, 1, 1]"),
    ("3,4", "4,3,3,3", 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    ("3,4", "4,3,3,4", 'auto_pad = "SAME_LOWER", strides = [2, 3]'),
    ("2,3,2", "4,3,2,1,2", "strides = [2, 1, 2]"),
]


@pytest.mark.parametrize(("image", "weight", "attrs"), TRANSPOSED)
def test_patches_of_transposed_convolutions(image: str, weight: str, attrs: str) -> None:
    groups = int(attrs.partition("group = ")[2][:1] or 1)
    width = int(weight[2]) * groups
    out = ",".join("NCHWD"[: weight.count(",") + 1])
    model = build(
        f"g (float[N,4,{image}] x) => (float[{out}] y) <float[{weight}] w, float[{width}] b>"
        f"{{ [n] y = ConvTranspose <{attrs}> (x, w, b) }}"
    )
    linear = linears(model)["n"]
    x = example_input(model)
    y = run(model, {"x": x})["y"]
    geometry = Geometry.of(linear, x.shape)
    assert geometry.output_shape == y.shape[2:]
    found = patches(linear, x, geometry, SAMPLES, np.arange(geometry.positions))
    assert_outputs(linear, found, y)


def assert_outputs(linear: Linear, columns: Array, y: Array) -> None:
    """Compare the block's matrix times its patches with what the runtime gave."""
    again = linear.matrix @ columns + linear.bias.reshape(linear.groups, -1, 1)
    expected = side_by_side(channels_first(y, linear.op == "MatMul"), linear.groups)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spatial", [(), (7,), (3, 6), (2, 3, 4)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("count", [1, COUNT, SAMPLES])
def test_channels_first_and_last(last: bool, spatial: Sequence[int], count: int) -> None:
    shape = (SAMPLES, *spatial, 4) if last else (SAMPLES, 4, *spatial)
    tensor = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    chosen = np.arange(math.prod(spatial))[::2]
    found = gather(tensor, last, count, chosen[np.newaxis])
    expected = side_by_side(channels_first(tensor, last)[:count, :, chosen], 1)[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("last", [False, True])
def test_columns_are_zero_where_there_is_no_position(last: bool) -> None:
    tensor = np.random.default_rng(1).uniform(1, 2, (SAMPLES, 3, 3)).astype(np.float32)
    index = np.array([[0, 2], [1, 1]])
    inside = np.array([[True, False], [False, True]])
    found = gather(tensor, last, COUNT, index, inside).reshape(3, 2, COUNT, 2)
    whole = gather(tensor, last, COUNT, index).reshape(found.shape)
    mask = np.broadcast_to(inside[:, np.newaxis], found.shape)
    np.testing.assert_array_equal(found[mask], whole[mask])
    assert not found[~mask].any()


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_columns_have_the_type_that_is_asked_for(
    given: type[np.floating], wanted: type[np.floating], masked: bool
) -> None:
    tensor = np.random.default_rng(4).standard_normal((SAMPLES, 3, 6)).astype(given)
    index = np.array([[0, 3, 5]])
    inside = np.ones_like(index, dtype=bool) if masked else None
    found = gather(tensor, False, COUNT, index, inside, wanted)
    assert found.dtype == wanted
    expected = side_by_side(tensor[:COUNT, :, index[0]], 1)[0].astype(wanted)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("opset", [15, 17, 21])
@pytest.mark.parametrize("last", [False, True])
def test_opsets_that_have_the_operators_give_the_same(last: bool, opset: int) -> None:
    tensor = np.random.default_rng(5).standard_normal((SAMPLES, 4, 4)).astype(np.float32)
    index, inside = np.array([[1, 2]]), np.array([[True, False]])
    found = gather(tensor, last, COUNT, index, inside, opset=opset)
    np.testing.assert_array_equal(found, gather(tensor, last, COUNT, index, inside))


def test_columns_of_what_a_node_makes_stand_beside_the_outputs() -> None:
    model = build(FORMS["MatMul 3"])
    feeds = random_feeds(model, batch=SAMPLES)
    step = GatherColumns("h", channels_last=True, masked=False, dtype=np.dtype(np.float32))
    graph = gs.import_onnx(model)
    assert step.run(graph) == ["columns of 'h' gathered"]
    index = np.array([[0, 6]])
    chosen = gather_feeds((SAMPLES, 7, 6), True, COUNT, index)
    found = run(gs.export_onnx(graph), feeds | chosen)
    columns = found.pop(COLUMNS)
    assert_close(found, run(model, feeds))
    h = found["y"] - linears(model)["n"].bias
    expected = side_by_side(channels_first(h, True)[:COUNT, :, index[0]], 1)[0]
    np.testing.assert_allclose(columns, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("opset", "tensor", "reason"),
    [
        (14, "t", "opset 15 or later; the graph 'g' has 14"),
        (17, "other", "'g' has no tensor 'other' to gather columns of"),
    ],
)
def test_graphs_that_columns_cannot_be_gathered_in_are_refused(
    opset: int, tensor: str, reason: str
) -> None:
    inputs = [gs.Variable("t", np.float32, [None, 4])]
    graph = gs.Graph(inputs=inputs, opset=opset, name="g")
    with pytest.raises(PreconditionError, match=reason):
        GatherColumns(tensor, False, False, np.dtype(np.float32)).run(graph)
    assert not graph.nodes
    assert graph.inputs == inputs
