"""Multiply-adds and parameters are those of a count by hand, for one sample."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compression.costs import NetworkCosts, NodeCost, count_costs, run_shapes
from fskd_onnx.errors import ModelError
from fskd_onnx.passes import Canonicalize
from fskd_onnx.serialization.interface import input_specs
from fskd_onnx.serialization.model_files import count_parameters
from tests.helpers import build, zoo_model
from tests.networks import NETWORKS


def costs_of(text: str) -> NetworkCosts:
    model = build(text)
    return count_costs(gs.import_onnx(model), *run_shapes(input_specs(model)))


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        # 8 channels at 6 x 5 positions, each of 2 * 3 * 3 products
        (
            """g (float[N,4,6,5] x) => (float[N,8,6,5] y) <float[8,2,3,3] w, float[8] b> {
            y = Conv <group = 2, pads = [1,1,1,1]> (x, w, b) }""",
            NodeCost(8 * 6 * 5 * 2 * 9, 8 * 2 * 9 + 8),
        ),
        # each of 4 * 3 * 4 input values goes to 6 channels at 2 x 2 positions
        (
            """g (float[N,4,3,4] x) => (float[N,6,6,8] y) <float[4,6,2,2] w> {
            y = ConvTranspose <strides = [2,2]> (x, w) }""",
            NodeCost(4 * 3 * 4 * 6 * 4, 4 * 6 * 4),
        ),
        (
            """g (float[N,5] x) => (float[N,7] y) <float[7,5] w, float[7] b> {
            y = Gemm <transB = 1> (x, w, b) }""",
            NodeCost(35, 42),
        ),
        (
            """g (float[N,9,5] x) => (float[N,9,7] y) <float[5,7] w, float[7] b> {
            h = MatMul (x, w)
            y = Add (h, b) }""",
            NodeCost(9 * 35, 42),
        ),
        # four samples at once, whether the network takes others or not
        (
            """g (float[4,3,5,5] x) => (float[4,2,3,3] y) <float[2,3,3,3] w> {
            y = Conv (x, w) }""",
            NodeCost(2 * 9 * 27, 54),
        ),
    ],
)
def test_linear_nodes(text: str, cost: NodeCost) -> None:
    costs = costs_of(text)
    assert list(costs.linears.values()) == [cost]
    assert costs.total == cost
    (shape,) = costs.by_width.values()
    assert shape.cost() == cost


def test_attention_and_recurrent_nodes_count_and_have_no_widths() -> None:
    costs = costs_of(
        """g (float[N,6,4] q, float[N,4,6] k) => (float[N,6,6] y) { y = MatMul (q, k) }"""
    )
    assert costs.total == costs.others["y"] == NodeCost(6 * 6 * 4, 0)
    costs = costs_of(
        """g (float[7,N,4] x) => (float[7,1,N,3] y) <float[1,12,4] w, float[1,12,3] r> {
        y = LSTM <hidden_size = 3> (x, w, r) }"""
    )
    assert costs.total == NodeCost(7 * (48 + 36), 84)
    assert not costs.linears
    assert not costs.not_counted


def test_weights_that_nodes_share_count_once_in_the_network() -> None:
    costs = costs_of(
        """g (float[N,4,5,5] x) => (float[N,4,5,5] y) <float[4,4,1,1] w> {
        h = Conv (x, w)
        y = Conv (h, w) }"""
    )
    assert [cost.parameters for cost in costs.linears.values()] == [16, 16]
    assert costs.total == NodeCost(2 * 25 * 16, 16)


def test_what_cannot_be_counted_is_named() -> None:
    costs = costs_of(
        """g (float[N,4] x) => (float[N,3] y) <float[3,4] w> {
        [e] h = Einsum <equation = "ni,oi->no"> (x, w)
        y = Relu (h) }"""
    )
    assert costs.not_counted == {"e": "those of 'Einsum' are not counted"}
    assert costs.why_incomplete == (
        "multiply-adds are not known of 'e' (those of 'Einsum' are not counted)"
    )
    assert costs.total == NodeCost(0, 12)
    costs = costs_of(
        """g (float[N,4] x, bool[N] which) => (float[A,3] y) <float[4,3] w> {
        some = Compress <axis = 0> (x, which)
        [c] y = MatMul (some, w) }"""
    )
    assert costs.not_counted == {"c": "its extents depend on the data"}
    assert costs.linears["c"] == NodeCost(0, 12)
    assert costs.by_width["c"].cost(outputs=2) == NodeCost(0, 8)


def test_open_extents_come_from_the_samples() -> None:
    model = NETWORKS["dynamic size"].teacher()
    with pytest.raises(ModelError, match="leaves extents open, so what it costs is not known"):
        run_shapes(input_specs(model))
    shapes, samples = run_shapes(input_specs(model), {"x": (3, 9, 7)})
    assert (shapes, samples) == ({"x": (1, 3, 9, 7)}, 1)
    costs = count_costs(gs.import_onnx(model), shapes, samples)
    assert [shape.positions for shape in costs.by_width.values()] == [5 * 7, 4 * 6]


def test_extents_that_are_computed_from_those_of_the_samples_are_followed() -> None:
    # As front ends of sound networks pad: to whole frames, at least one.
    model = build(
        """g (float[1,n] x) => (float[A,B,C] y)
          <int64[1] one, int64[1] four, int64[1] zero, int64[3] frames, float[3,4] w> {
            extent = Shape <start = 1> (x)
            least = Max (extent, one)
            more = Sub (four, one)
            filled = Add (least, more)
            whole = Div (filled, four)
            end = Mul (whole, four)
            behind = Sub (end, extent)
            ends = Concat <axis = 0> (zero, zero, zero, behind)
            padded = Pad (x, ends)
            windows = Reshape (padded, frames)
            last = Transpose <perm = [0, 2, 1]> (windows)
            [c] y = MatMul (w, last)
        }""",
        {"one": [1], "four": [4], "zero": [0], "frames": [1, -1, 4]},
    )
    costs = count_costs(gs.import_onnx(model), {"x": (1, 18)})
    assert not costs.not_counted
    assert costs.total == NodeCost(5 * 12, 12)


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_tell_what_narrower_nodes_cost(name: str) -> None:
    network = NETWORKS[name]
    full, narrow = (
        count_costs(gs.import_onnx(model), *run_shapes(input_specs(model), sizes))
        for model, sizes in (
            (model, {"x": (3, 9, 7)} if name == "dynamic size" else None)
            for model in (network.teacher(), network.student())
        )
    )
    assert full.by_width.keys() == narrow.by_width.keys()
    assert full.total.parameters == count_parameters(network.teacher())
    for key, shape in full.by_width.items():
        student = narrow.by_width[key]
        assert shape.cost(student.inputs, student.outputs) == narrow.linears[key]
        assert shape.cost() == full.linears[key]


@pytest.mark.parametrize(
    ("name", "macs"), [("squeezenet", 349_151_936), ("shufflenet", 124_664_528)]
)
def test_networks_of_the_model_zoo(name: str, macs: int) -> None:
    model = Canonicalize()(zoo_model(name, divisor=1)).model
    costs = count_costs(gs.import_onnx(model), *run_shapes(input_specs(model)))
    assert costs.total == NodeCost(macs, count_parameters(model))
    assert not costs.not_counted
