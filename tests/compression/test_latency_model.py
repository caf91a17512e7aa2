"""Seconds at any levels are those that were measured, where they were."""

from __future__ import annotations

import dataclasses

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compress_options import CompressOptions, CostName
from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.cost_model import NodeState
from fskd_onnx.compression.latency_model import LatencyModel, chain_cases
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.passes import SplitTerms
from fskd_onnx.passes.analysis.factorizable import Form
from fskd_onnx.passes.factorizations import FACTORIZATIONS
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.teacher_analysis import prepared, study_teacher
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.runtime.providers import open_runtime
from tests.helpers import build

TEXT = """g (float[N,8,12,12] x) => (float[N,6] z)
  <float[16,8,3,3] w1, float[16] b1, float[16,16,5,3] w2, float[6,16] w3> {
    [c1] y1 = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w1, b1)
    r1 = Relu (y1)
    [c2] y2 = Conv <pads = [2,1,2,1], dilations = [1,1]> (r1, w2)
    r2 = Relu (y2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    [c3] z = Gemm <transB = 1> (f, w3)
}"""
RANKS = {
    Form.SPATIAL_SVD: (3,),
    Form.CHANNEL_SVD: (4,),
    Form.TUCKER: (3, 5),
    Form.DECOUPLE: (2,),
}


def study() -> TeacherStudy:
    model = prepared(LoadedModel.load(build(TEXT)))
    return study_teacher(model, CompressOptions(), None, open_runtime(["cpu"]))


@pytest.mark.parametrize("form", Form)
def test_the_nodes_of_a_chain_are_those_that_are_given_out(form: Form) -> None:
    known = study()
    cases = LinearCase.find(known.model.graph(), known.shapes)
    for name in ("c1", "c2"):
        graph: gs.Graph = known.model.graph()
        FACTORIZATIONS[form].of({name: RANKS[form]}).run(graph)
        SplitTerms({name}).run(graph)
        made = LinearCase.find(graph, known.shapes)
        expected = [case for key, case in made.items() if key == name or key not in cases]
        node = known.cost_model.nodes[name]
        state = NodeState(node.cost.inputs, node.cost.outputs, form, RANKS[form])
        found = chain_cases(cases[name], node, state)
        assert [_plain(case) for case in found] == [_plain(case) for case in expected]


def _plain(case: LinearCase) -> LinearCase:
    """Leave out what says nothing: steps of one, and no padding."""
    silent = {"strides": 1, "dilations": 1, "pads": 0}
    stated = tuple(
        (name, value)
        for name, value in case.attributes
        if name not in silent or set(value) != {silent[name]}
    )
    return dataclasses.replace(case, attributes=stated)


class Counting(NodeLatency):
    """Says that a node takes as many seconds as it has weights, and one more."""

    def __init__(self) -> None:
        super().__init__(open_runtime(["cpu"]))

    def seconds(self, cases):  # type: ignore[no-untyped-def]
        return [1.0 + case.inputs * case.outputs // case.groups for case in cases]


def test_seconds_are_those_measured() -> None:
    known = study()
    cases = LinearCase.find(known.model.graph(), known.shapes)
    model = LatencyModel(known.cost_model, cases, Counting())
    node = known.cost_model.nodes["c2"]
    assert model(node, NodeState(16, 16)) == 257
    assert model(node, None) == 0
    # A product of what was measured: (1 + 8 * 16) (1 + 16 * 8) / (1 + 16 * 16).
    narrow = model(node, NodeState(8, 8))
    assert narrow == pytest.approx(129 * 129 / 257)
    chain = model(node, NodeState(16, 16, Form.CHANNEL_SVD, (4,)))
    assert chain == 2 * 65
    assert model(node, NodeState(8, 8, Form.CHANNEL_SVD, (4,))) == pytest.approx(
        chain * narrow / 257
    )


def test_a_plan_for_latency_takes_what_is_fast() -> None:
    known = study()
    cases = LinearCase.find(known.model.graph(), known.shapes)
    model = LatencyModel(known.cost_model, cases, Counting())
    plan = known.choose(CostName.LATENCY, 0.5, model)
    # Of these "seconds" a depthwise node takes nearly none.
    assert plan.reduced(UnitKind.FACTORS) or plan.reduced(UnitKind.WIDTH)
    seconds = sum(
        model(node, node.state(dict.fromkeys(node.units, 0)))
        for node in known.cost_model.nodes.values()
    )
    levels = {
        at: next(
            number
            for number, level in enumerate(unit.levels)
            if (level.method, level.after) == (record.method, record.after)
            or (not level.method and not record.method)
        )
        for at, (unit, record) in enumerate(zip(known.candidates, plan.units, strict=True))
    }
    left = sum(
        model(node, node.state({u: levels[u] for u in node.units}))
        for node in known.cost_model.nodes.values()
    )
    assert left <= 0.5 * seconds
