"""What chains cost is what is counted in the graphs that the passes make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.compression.factor_ranks import candidate_ranks, chain_costs
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank, full_rank, why_not
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.shapes import Shape, infer_shapes
from tests.helpers import build, linears, random_feeds
from tests.passes.factorized import ALL, CASES, FORMS, pass_of


def shapes_of(model: onnx.ModelProto, graph: gs.Graph) -> dict[str, Shape]:
    feeds = random_feeds(model, batch=7)
    return infer_shapes(graph, {name: (1, *value.shape[1:]) for name, value in feeds.items()})


def extents(linear: Linear, shape: Shape) -> list[int]:
    found = [extent for extent in linear.spatial_shape(shape) if extent is not None]
    assert len(found) == len(linear.spatial_shape(shape))
    return found


def counted(model: onnx.ModelProto) -> tuple[int, int]:
    """Count multiply-adds of one sample, and weights, of all linear nodes."""
    graph = gs.import_onnx(model)
    shapes = shapes_of(model, graph)
    multiply_adds = parameters = 0
    for linear in find_linear(graph):
        assert isinstance(linear, Linear)
        weights = math.prod(linear.weight.shape)
        multiply_adds += weights * math.prod(extents(linear, shapes[linear.output.name]))
        parameters += weights
    return multiply_adds, parameters


@pytest.mark.parametrize(("form", "case"), CASES)
def test_costs_are_those_of_the_graph_that_is_made(form: Form, case: str) -> None:
    cases, rank = FORMS[form]
    model = cases[case].model()
    graph = gs.import_onnx(model)
    shapes = shapes_of(model, graph)
    ((name, linear),) = linears(model).items()
    inputs, outputs = (extents(linear, shapes[t.name]) for t in (linear.input, linear.output))
    made = pass_of(form, {name: rank})(model).model
    assert chain_costs(form, LinearShape.of(linear), rank, inputs, outputs) == counted(made)


def convolution(
    outputs: int, inputs: int, kernel: Sequence[int] = (3, 3), strides: Sequence[int] = (1, 1)
) -> Linear:
    taps, steps = (",".join(map(str, values)) for values in (kernel, strides))
    model = build(
        f"g (float[N,{inputs},32,32] x) => (float[N,{outputs},A,B] z) "
        f"<float[{outputs},{inputs},{taps}] w> {{ [n] z = Conv <strides = [{steps}]> (x, w) }}"
    )
    return linears(model)["n"]


def per_position(form: Form, linear: Linear, rank: Rank, strides: Sequence[int] = (1, 1)) -> int:
    return chain_costs(form, LinearShape.of(linear), rank, strides, (1, 1)).multiply_adds


@pytest.mark.parametrize("form", Form)
def test_wide_layers_have_a_dozen_levels_in_multiples(form: Form) -> None:
    linear = convolution(256, 128)
    ranks = candidate_ranks(form, linear)
    costs = [per_position(form, linear, rank) for rank in ranks]
    whole = 256 * 128 * 9
    assert costs == sorted(costs, reverse=True)
    assert whole * 0.7 < costs[0] <= whole * 0.9
    if form != Form.DECOUPLE:
        assert all(number % 8 == 0 for rank in ranks for number in rank)
        assert len(ranks) >= 10
        assert costs[-1] < whole * 0.12
    else:
        assert ranks == [(terms,) for terms in range(7, 0, -1)]


@pytest.mark.parametrize(("width", "step"), [(12, 2), (24, 4)])
@pytest.mark.parametrize("form", Form)
def test_narrow_layers_have_finer_levels(form: Form, width: int, step: int) -> None:
    ranks = candidate_ranks(form, convolution(width, width))
    assert len(ranks) >= 4
    numbers = [number for rank in ranks for number in rank]
    assert any(number % (2 * step) for number in numbers)
    assert form == Form.DECOUPLE or not any(number % step for number in numbers)


@given(
    st.sampled_from(Form),
    st.integers(1, 70),
    st.integers(1, 70),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 4, 8, 16]),
)
def test_no_rank_costs_more_than_the_node(
    form: Form,
    outputs: int,
    inputs: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    round_to: int,
) -> None:
    linear = convolution(outputs, inputs, kernel, strides)
    if why_not(linear, form):
        return
    ranks = candidate_ranks(form, linear, round_to)
    shape, full = LinearShape.of(linear), full_rank(form, LinearShape.of(linear))
    assert len(ranks) == len(set(ranks)) <= 12
    for one, other in itertools.pairwise(ranks):
        assert all(a >= b for a, b in zip(one, other, strict=True))
    for rank in ranks:
        assert all(0 < number < most for number, most in zip(rank, full, strict=True))
        costs = chain_costs(form, shape, rank, strides, (1, 1))
        assert costs.multiply_adds < outputs * inputs * shape.taps
        assert costs.parameters < outputs * inputs * shape.taps


def test_matrices_have_levels() -> None:
    (linear,) = linears(
        build("g (float[N,64] x) => (float[N,96] z) <float[64,96] w> { [n] z = Gemm (x, w) }")
    ).values()
    assert candidate_ranks(Form.CHANNEL_SVD, linear) == [(32,), (24,), (16,), (8,)]


def test_what_gains_nothing_has_no_level() -> None:
    # The node in front of the stride would run at four times as many positions.
    assert candidate_ranks(Form.TUCKER, convolution(4, 64, (2, 1), (4, 4))) == []


def test_all_nodes_that_can_be_factorized_have_a_full_rank() -> None:
    for case in ALL.values():
        (linear,) = linears(case.model()).values()
        for form in Form:
            if not why_not(linear, form):
                assert min(full_rank(form, LinearShape.of(linear))) > 1
