"""The cost at any levels is what is counted in the graph that they are carried out in."""

from __future__ import annotations

import functools

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.cost_model import fits, multiply_adds, parameters
from fskd_onnx.compression.costs import NodeCost, count_costs
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from tests.compressible import TEXTS, carried_out, random_levels, samples_of, study, teacher
from tests.networks import NETWORKS

WITH_SAMPLES = ("dynamic size", "two blocks")  # an open extent; blocks are judged by samples
ALL = [name for name in (*NETWORKS, *TEXTS) if name != "slopes"]


@functools.cache
def analysed(name: str) -> TeacherStudy:
    model = teacher(name)
    return study(model, samples_of(model, 6) if name in WITH_SAMPLES else None)


def counted(known: TeacherStudy, levels: list[int]) -> NodeCost:
    made = carried_out(known, known.plan(levels))
    return count_costs(gs.import_onnx(made), known.shapes, known.count).total


@pytest.mark.parametrize("name", ALL)
def test_mixtures_cost_what_the_student_does(name: str) -> None:
    known, rng = analysed(name), np.random.default_rng(0)
    for share in (0.2, 0.5, 0.5, 0.5, 1.0):
        levels = random_levels(known, rng, share)
        total = known.cost_model.total(levels)
        assert total == counted(known, levels)
        whole = known.costs.total
        for measure, before, after in (
            (multiply_adds, whole.macs, total.macs),
            (parameters, whole.parameters, total.parameters),
        ):
            gained = [
                term.cost((0,) * len(term.units)) - term.cost(tuple(levels[u] for u in term.units))
                for term in known.cost_model.terms(measure)
            ]
            assert before - sum(gained) == after


def test_each_level_costs_what_the_student_does() -> None:
    known = analysed("two blocks")
    for at, unit in enumerate(known.candidates):
        for level in {1, len(unit.levels) // 2, len(unit.levels) - 1} - {0}:
            if level >= len(unit.levels):
                continue
            levels = [0] * len(known.candidates)
            levels[at] = level
            assert known.cost_model.total(levels) == counted(known, levels)
    assert {unit.kind for unit in known.candidates if len(unit.levels) > 1} == set(UnitKind)


def test_all_forms_cost_what_the_student_does() -> None:
    seen = set()
    known = analysed("two blocks")
    for at, unit in enumerate(known.candidates):
        if unit.kind != UnitKind.FACTORS:
            continue
        firsts = {level.method: number for number, level in enumerate(unit.levels) if level.method}
        for method, number in firsts.items():
            levels = [0] * len(known.candidates)
            levels[at] = number
            assert known.cost_model.total(levels) == counted(known, levels)
            seen.add(method)
    assert seen == set(Form)


def test_a_chain_without_room_for_its_rank_leaves_the_node_whole() -> None:
    shape = LinearShape(8, 4, (3, 3))
    assert fits(Form.CHANNEL_SVD, shape, (7,))
    assert not fits(Form.CHANNEL_SVD, shape, (8,))
    assert not fits(Form.TUCKER, shape, (4, 2))


def test_constants_of_channels_make_a_student_smaller_than_planned_and_never_larger() -> None:
    known, rng = analysed("slopes"), np.random.default_rng(0)
    for _ in range(5):
        levels = random_levels(known, rng)
        planned, made = known.cost_model.total(levels), counted(known, levels)
        assert planned.macs == made.macs
        assert planned.parameters >= made.parameters
