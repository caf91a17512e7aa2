"""Labels say which channel every element of a tensor comes from, as a run of the network does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.labels import Labels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.propagation import ChannelFlow, propagate
from fskd_onnx.passes.analysis.shapes import infer_shapes
from tests.helpers import build, run, zoo_model

# Behind a block y of eight channels, (2, 8, 4, 6), and one u of three: nodes that make r.
FOLLOWED = [
    "r = Relu (y)",
    "r = MaxPool <kernel_shape = [2,2]> (y)",
    "r = GlobalAveragePool (y)",
    "r = ReduceMean <axes = [2]> (y)",
    "r = ReduceMean <axes = [2,3], keepdims = 0> (y)",
    "r = Flatten (y)",
    "t = Flatten (y) r = Reshape (t, whole)",
    "t = Flatten (u) f = Flatten (y) r = Concat <axis = 1> (f, t)",
    "r = Reshape (y, rows)",
    "r = Reshape (y, columns)",
    "r = Transpose <perm = [0,2,3,1]> (y)",
    "r = Transpose (y)",
    "t = Transpose <perm = [0,2,3,1]> (y) r = Flatten (t)",
    "t = Transpose <perm = [0,2,3,1]> (y) r = Reshape (t, nested)",
    "t = Reshape (y, groups) s = Transpose <perm = [0,2,1,3,4]> (t) r = Reshape (s, whole)",
    "t = Reshape (y, groups) s = ReduceMean <axes = [3,4]> (t) r = Squeeze (s, at34)",
    "r, t = Split <axis = 1> (y)",
    "t, r = Split <axis = 1> (y, sizes)",
    "t, r = Split <axis = -1> (y)",
    "r = Slice (y, one, five, one)",
    "r = Slice (y, last, first, one, last)",
    "r = Slice (y, one, two, at3)",
    "r = Gather <axis = 1> (y, order)",
    "r = Gather <axis = 2> (y, order)",
    "r = Gather <axis = 3> (y, scalar)",
    "r = Gather <axis = 1> (y, scalar)",
    "r = Concat <axis = 1> (u, y, u)",
    "r = Concat <axis = -1> (y, y)",
    "t = GlobalMaxPool (y) r = Squeeze (t, at23)",
    "t = GlobalMaxPool (y) r = Squeeze (t)",
    "r = Unsqueeze (y, at23)",
    "r = DepthToSpace <blocksize = 2> (y)",
    'r = DepthToSpace <blocksize = 2, mode = "CRD"> (y)',
    "r = SpaceToDepth <blocksize = 2> (y)",
    "t = SpaceToDepth <blocksize = 2> (y) r = DepthToSpace <blocksize = 2> (t)",
    "r = Pad (y, pads, minus)",
    "r = Pad (y, crop, minus)",
    "t = GlobalMaxPool (y) r = Max (t, y)",
    "r = Resize (y, , scales)",
]
VALUES: dict[str, Any] = {
    "whole": [0, 8, 4, 6],
    "rows": [0, 8, 24],
    "columns": [2, 4, -1],
    "nested": [2, 4, 2, 3, 8],
    "groups": [2, 4, 2, 4, 6],
    "sizes": [6, 2],
    "one": [1],
    "two": [2],
    "five": [5],
    "first": [-100],
    "last": [-1],
    "at3": [3],
    "at23": [2, 3],
    "at34": [3, 4],
    "order": [3, -1, 0],
    "scalar": 2,
    "pads": [0, 1, 0, 0, 0, 2, 0, 0],
    "crop": [0, -2, 0, 0, 0, -1, 0, 0],
    "minus": -1.0,
    "scales": [1, 1, 2, 2],
    "swapped": [0, 4, 8, 6],
    "parts": [3, 3, 2],
    "shortcut": [0, 2, 0, 0, 0, 3, 0, 0],
    "plane": np.zeros((2, 2, 4, 6)),
}
_FLOATS = ("minus", "scales", "plane")
PARAMETERS = "".join(
    f", {'float' if name in _FLOATS else 'int64'}{list(np.asarray(value).shape) or ''} {name}"
    for name, value in VALUES.items()
)


def followed(nodes: str, batch: str = "2", **sizes: str) -> tuple[ChannelFlow, onnx.ModelProto]:
    """Follow the channels of y and u through some nodes."""
    height, width = sizes.get("height", "4"), sizes.get("width", "6")
    model = build(
        f"""g (float[{batch},11,{height},{width}] x) => (float[A] z) <float[8,11,1,1] w,
          float[3,11,1,1] v, int64[1] all{PARAMETERS}> {{
            y = Conv (x, w)
            u = Conv (x, v)
            {nodes}
            z = Reshape (r, all)
        }}""",
        VALUES | {"all": [-1], "w": np.eye(11)[:8], "v": np.eye(11)[8:]},
    )
    graph = gs.import_onnx(model)
    linears = [view for view in find_linear(graph) if isinstance(view, Linear)]
    return propagate(graph, linears), model


def labels_of(nodes: str, **sizes: str) -> Labels | None:
    return followed(nodes, **sizes)[0].labels.get("r")


@pytest.mark.parametrize("nodes", FOLLOWED)
def test_labels_are_what_a_run_gives(nodes: str) -> None:
    channels, model = followed(nodes)
    shape = infer_shapes(gs.import_onnx(model))["r"]
    # Every channel has its number for a value, everywhere.
    x = np.broadcast_to(np.arange(11.0, dtype=np.float32).reshape(1, 11, 1, 1), (2, 11, 4, 6))
    values = run(model, {"x": x})["z"].reshape([int(extent or 0) for extent in shape])
    labels = channels.labels["r"]
    assert labels.rank == len(shape)
    np.testing.assert_array_equal(np.broadcast_to(labels.channels, values.shape), values)
    assert labels.positions.shape == labels.channels.shape
    for axis, extent in enumerate(labels.shape):
        assert extent == (values.shape[axis] if axis in labels.axes else 1)


@pytest.mark.parametrize("nodes", FOLLOWED)
@pytest.mark.parametrize("sizes", [{"batch": "N"}, {"batch": "N", "height": "H", "width": "W"}])
def test_extents_that_are_not_known_make_no_wrong_labels(nodes: str, sizes: dict[str, str]) -> None:
    found, expected = labels_of(nodes, **sizes), labels_of(nodes)
    assert expected is not None
    if found is not None:
        np.testing.assert_array_equal(found.channels, expected.channels)
        np.testing.assert_array_equal(found.positions, expected.positions)
        assert found.axes == expected.axes
    stated = ("columns", "nested", "groups", "Squeeze (t)")  # where the samples are 2
    if "H" not in sizes.values() and not any(name in nodes for name in stated):
        assert found is not None


ENDS = [
    'r = Einsum <equation = "nchw->nchw"> (y)',
    "r = ReduceMean <axes = [1]> (y)",
    "r = ReduceMean (y)",
    "t = Transpose <perm = [0,2,1,3]> (y) r = GlobalAveragePool (t)",
    "t = Transpose <perm = [0,2,1,3]> (y) s = Reshape (y, swapped) r = Add (s, t)",
    "t = Shape (y) r = Cast <to = 1> (t)",
]


@pytest.mark.parametrize("nodes", ENDS)
def test_labels_end_where_channels_are_mixed_or_unknown(nodes: str) -> None:
    assert labels_of(nodes) is None


@pytest.mark.parametrize("nodes", ["r = Reshape (y, all)", "r = Flatten <axis = 2> (y)"])
def test_labels_end_where_channels_are_mixed_with_samples(nodes: str) -> None:
    assert labels_of(nodes, batch="N") is None


def test_positions_tell_apart_what_comes_from_one_channel() -> None:
    labels = labels_of("r = Flatten (u)")
    assert labels is not None
    assert labels.channels[0].tolist() == np.repeat([8, 9, 10], 24).tolist()
    assert labels.positions[0].tolist() == [*range(24)] * 3
    labels = labels_of("t = Transpose <perm = [0,2,3,1]> (u) r = Flatten (t)")
    assert labels is not None
    assert labels.channels[0].tolist() == [8, 9, 10] * 24
    assert labels.positions[0].tolist() == np.repeat(range(24), 3).tolist()


def test_operands_of_a_sum_are_tied() -> None:
    channels, _ = followed("a, b, c = Split <axis = 1> (y, parts) r = Add (b, u)")
    ((one, other),) = channels.ties
    assert one.channels.reshape(-1).tolist() == [3, 4, 5]
    assert other.channels.reshape(-1).tolist() == [8, 9, 10]


def test_what_pads_a_shortcut_is_filled_in_by_the_other_operand() -> None:
    # x ─▶ Conv ─▶ u (3 channels) ─▶ Pad ─▶ t (8 channels) ─▶ + ─▶ r
    #    └▶ Conv ─▶ y (8 channels) ──────────────────────────▶ ┘
    labels = labels_of("t = Pad (u, shortcut) r = Add (t, y)")
    assert labels is not None
    assert labels.channels.reshape(-1).tolist() == [0, 1, 8, 9, 10, 5, 6, 7]


def test_a_constant_in_a_concat_is_of_no_channel() -> None:
    labels = labels_of("r = Concat <axis = 1> (u, plane, u)")
    assert labels is not None
    assert labels.channels.reshape(-1).tolist() == [8, 9, 10, -1, -1, 8, 9, 10]


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_every_block_of_a_network_of_the_model_zoo_reads_labels(name: str) -> None:
    graph = gs.import_onnx(Canonicalize()(zoo_model(name)).model)
    linears = [view for view in find_linear(graph) if isinstance(view, Linear)]
    channels = propagate(graph, linears)
    first, *others = linears
    assert first.input.name not in channels.labels
    for linear in others:
        labels = channels.labels[linear.input.name]
        groups, _, p = linear.shape
        assert labels.along_axis(1, groups * p // math.prod(linear.kernel_shape)) is not None
