"""A plan carried out, and the pairs that it knows."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.rewrite import carry_out, pairs_of, pairs_through
from fskd_onnx.passes import DropBlocks, PruneChannels, export
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.base import PassResult
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.results import Evidence
from tests.compressible import loaded, teacher
from tests.helpers import check, initializers, linears

NARROW = UnitPlan("c2", UnitKind.WIDTH, "l1", (12,), (5,), (0, 3, 4, 7, 11))
CHAIN = UnitPlan("c3", UnitKind.FACTORS, "channel-svd", (8,), (4,))
GONE = UnitPlan("s2", UnitKind.BLOCK, "drop-block", (1,), (0,))


def made(*units: UnitPlan) -> gs.Graph:
    graph = loaded(teacher("two blocks")).graph()
    carry_out(Plan("t", units), graph)
    return graph


def test_channels_go_then_blocks_then_kernels_become_chains() -> None:
    model = loaded(teacher("two blocks")).canonical
    graph = made(CHAIN, GONE, NARROW)
    step: PassResult = PruneChannels({"c2": NARROW.kept or ()})(model)
    plain = DropBlocks(["s2"])(step.model).model
    student = export(graph, like=model)
    check(student)
    names = list(linears(student))
    assert len(names) == 5
    assert [name for name in names if name in linears(plain)] == ["c1", "c2", "c3", "fc"]
    for name in ("w1", "w2", "w6"):
        np.testing.assert_array_equal(initializers(student)[name], initializers(plain)[name])


def test_a_rank_that_the_channels_leave_no_room_for_leaves_the_node_whole() -> None:
    wide = dataclasses.replace(CHAIN, unit="c2", after=(6,))
    student = made(NARROW, wide)
    assert [node.op for node in student.nodes].count("Conv") == 5
    assert [node.op for node in made(wide).nodes].count("Conv") == 6


def test_an_empty_plan_changes_nothing() -> None:
    own = loaded(teacher("two blocks"))
    graph = own.graph()
    carry_out(Plan("t", ()), graph)
    assert export(graph, like=own.canonical) == export(own.graph(), like=own.canonical)


def test_a_plan_of_another_network_is_refused() -> None:
    for unit in (
        dataclasses.replace(NARROW, unit="other"),
        dataclasses.replace(NARROW, kept=(0, 40)),
        dataclasses.replace(GONE, unit="other"),
    ):
        with pytest.raises(PreconditionError):
            made(unit)


def test_pairs_name_the_teachers_outputs_and_the_channels_that_stay() -> None:
    own = loaded(teacher("two blocks"))
    channels = PrunableChannels(own.graph())
    pairs = pairs_of(Plan("t", (CHAIN, GONE, NARROW)), channels, made(CHAIN, GONE, NARROW))
    (inner,) = pairs.keys() - {"c1", "c2", "c3", "fc"}
    assert pairs[inner].teacher is None
    outputs = {"c1": "y1", "c2": "y2", "c3": "y3", "fc": "z"}
    for name, output in outputs.items():
        assert pairs[name].teacher == output
        assert pairs[name].evidence == Evidence.PLAN
    kept = {name: tuple(np.asarray(pairs[name].channels).tolist()) for name in outputs}
    every = tuple(range(8))
    assert kept == {"c1": every, "c2": NARROW.kept, "c3": every, "fc": (0, 1, 2, 3)}


def test_pairs_in_the_teacher_are_found_through_a_student_in_between() -> None:
    teacher_channels = PrunableChannels(loaded(teacher("two blocks")).graph())
    first = Plan("t", (NARROW, CHAIN))
    between = made(NARROW, CHAIN)
    earlier = pairs_of(first, teacher_channels, between)
    channels = PrunableChannels(between)
    narrower = dataclasses.replace(NARROW, before=(5,), after=(2,), kept=(1, 4))
    inner = UnitPlan("c3/factor1", UnitKind.WIDTH, "l1", (4,), (3,), (0, 1, 3))
    second = Plan("s", (narrower, inner))
    carry_out(second, between)
    pairs = pairs_of(second, channels, between)
    found = pairs_through(pairs, channels, earlier)
    assert list(found) == list(pairs)
    assert found["c2"].channels == (3, 11)  # of the teacher
    assert found["c2"].teacher == earlier["c2"].teacher
    assert found["c3/factor1"].teacher is None
    assert "ends at 'c3'" in found["c3/factor1"].reason
    assert found["c3"].channels == tuple(range(8))
    # A node that got another name by its fit is left to the search for pairs.
    del earlier["c2"]
    assert "c2" not in pairs_through(pairs, channels, earlier)
