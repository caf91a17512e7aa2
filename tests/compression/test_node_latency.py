"""Nodes are measured by their shape, each shape once, whatever the times are."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compression import node_latency
from fskd_onnx.compression.costs import run_shapes
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.errors import ModelError
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.serialization.interface import input_specs
from tests.networks import NETWORKS

RUNTIME = open_runtime(["cpu"])


def cases_of(model: onnx.ModelProto) -> dict[str, LinearCase]:
    specs = input_specs(model)
    is_open = any(None in spec.sample_shape for spec in specs)
    shapes, _ = run_shapes(specs, {"x": (3, 9, 7)} if is_open else None)
    return LinearCase.find(gs.import_onnx(model), shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_narrower_nodes_are_those_of_a_student(name: str) -> None:
    teacher, student = NETWORKS[name].teacher(), cases_of(NETWORKS[name].student())
    views = {view.name: view for view in find_linear(gs.import_onnx(teacher))}
    assert views.keys() == student.keys()
    for key, case in cases_of(teacher).items():
        view, narrow = views[key], student[key]
        assert isinstance(view, Linear)
        assert case.weight_shape == tuple(view.weight.shape)
        assert case.with_widths(narrow.inputs, narrow.outputs) == narrow
        assert case.with_widths() == case


def test_every_form_of_a_node_is_measured() -> None:
    names = ("chain", "depthwise", "grouped", "flatten", "matmul", "transposed", "rank 1", "rank 3")
    cases = [case for name in names for case in cases_of(NETWORKS[name].teacher()).values()]
    cases += [dataclasses.replace(case, dtype="float64") for case in cases if case.op == "Gemm"]
    measured = NodeLatency(RUNTIME).seconds(cases)
    assert all(seconds is not None and 0 <= seconds < 10 for seconds in measured)


def test_a_shape_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case, *_ = cases_of(NETWORKS["chain"].teacher()).values()
    nodes = NodeLatency(RUNTIME)
    first = nodes.seconds([case, case])
    assert first[0] == first[1]
    monkeypatch.setattr(node_latency, "_profiled", None)
    spent = nodes.spent
    assert nodes.seconds([case]) == first[:1]
    assert nodes.spent == spent > 0


def test_nothing_is_measured_past_the_limit() -> None:
    cases = list(cases_of(NETWORKS["chain"].teacher()).values())
    nodes = NodeLatency(RUNTIME, limit=0)
    assert nodes.seconds(cases) == [None] * len(cases)
    assert nodes.spent == 0


def test_time_by_widths_is_a_product_of_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LinearCase("Conv", 8, 16, 1, (3, 3), (1, 5, 5), "float32", has_bias=False)
    asked: list[LinearCase] = []

    def profiled(*_: object) -> list[float]:
        return [one.inputs * (one.outputs + 1) for one in asked[-1:]]

    monkeypatch.setattr(node_latency, "_MOST_NODES", 1)
    monkeypatch.setattr(node_latency, "_model", lambda cases: asked.extend(cases))
    monkeypatch.setattr(node_latency, "_profiled", profiled)
    found = NodeLatency(RUNTIME).by_widths(case, [2, 8], [4, 10, 16])
    assert found is not None
    np.testing.assert_allclose(found, np.outer([2, 8], [5, 11, 17]))
    assert [(one.inputs, one.outputs) for one in asked] == [(8, 16), (2, 16), (8, 4), (8, 10)]


def test_times_that_the_limit_leaves_out_lie_on_straight_lines() -> None:
    case = LinearCase("Conv", 8, 16, 1, (3, 3), (1, 5, 5), "float32", has_bias=False)
    nodes = NodeLatency(RUNTIME, limit=1e-9)
    (whole,) = nodes.seconds([case])  # the first is measured in any case
    found = nodes.by_widths(case, [2, 4, 8], [4, 16])
    assert found is not None
    assert whole is not None
    np.testing.assert_allclose(found, whole * np.outer([0.25, 0.5, 1], [0.25, 1]))
    assert NodeLatency(RUNTIME, limit=0).by_widths(case, [2], [4]) is None


def test_many_cases_go_into_several_models() -> None:
    case, *_ = cases_of(NETWORKS["chain"].teacher()).values()
    cases = [case.with_widths(outputs=width) for width in range(1, 60)]
    models = list(node_latency._side_by_side(cases, 24))
    assert [len(model) for model in models] == [24, 24, 11]
    assert [one for model in models for one in model] == cases
    large = [dataclasses.replace(case, others=(1, 4000, 4000 + at)) for at in range(2)]
    assert [len(model) for model in node_latency._side_by_side(large, 24)] == [1, 1]


def test_nodes_on_other_devices_are_timed_by_their_runs() -> None:
    case, *_ = cases_of(NETWORKS["chain"].teacher()).values()
    feeds = {"case0.x": np.zeros(case.input_shape, np.float32)}
    session = RUNTIME.session(node_latency._model([case]))
    assert 0 < node_latency._timed(session, feeds, "cpu") < 10


def test_a_node_that_cannot_run_is_named() -> None:
    case, *_ = cases_of(NETWORKS["chain"].teacher()).values()
    wrong = dataclasses.replace(case, attributes=(("auto_pad", "NOWHERE"),))
    with pytest.raises(ModelError, match=r"a Conv of shape \[8, 3, 3, 3\]: ONNX Runtime cannot"):
        NodeLatency(RUNTIME).seconds([wrong])
