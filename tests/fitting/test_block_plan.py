"""Plans say what each block reads, and where its error may be seen."""

from __future__ import annotations

import math

import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.fitting.block_plan import common_epilogue, plan_blocks
from fskd_onnx.matching.channels import match_models
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.runtime import column_sampling
from tests.fitting.four_blocks import network, plans
from tests.helpers import build


@pytest.fixture(autouse=True)
def few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_sampling, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(column_sampling, "_COLUMNS_PER_UNKNOWN", 5)


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    return network("x")


def test_plans_name_what_each_block_needs(teacher: onnx.ModelProto) -> None:
    planned = plans(teacher)
    assert [plan.name for plan in planned] == ["n1", "n2", "n3", "n4"]
    assert [plan.index for plan in planned] == [0, 1, 2, 3]
    assert [plan.student_tensors for plan in planned] == [
        ["image"],
        ["r1", "r1"],
        ["pool", "r2"],
        ["transposed"],
    ]
    assert [plan.uses[0].epilogue for plan in planned] == [
        Epilogue(low=0.0),
        Epilogue("r1", "s2", 0.0),
        Epilogue("r2", "s3"),
        Epilogue(),
    ]
    assert len({plan.uses[0].sampling.seed for plan in planned}) == 4
    assert plans(teacher) == planned
    assert [plan.uses[0].sampling for plan in plans(teacher, seed=5)] != [
        plan.uses[0].sampling for plan in planned
    ]


@pytest.mark.parametrize("needs_patches", [False, True])
def test_the_number_of_columns_follows_from_the_unknowns(
    teacher: onnx.ModelProto, needs_patches: bool
) -> None:
    unknowns = [18, 36, 4, 4] if needs_patches else [4, 4, 4, 4]
    columns = [plan.uses[0].sampling.columns for plan in plans(teacher, needs_patches)]
    assert columns == [5 * (count + 1) for count in unknowns]


SHORTCUT = """net (float[N,2,6,6] x) => (float[N,4,6,6] y)
    <float[4,2,3,3] w1, float[4,2,1,1] w2> {
    %s
    s = Add(c, k)
    y = Relu(s)
}"""
BLOCK, PROJECTION = "[n] c = Conv<pads=[1,1,1,1]>(x, w1)", "[m] k = Conv(x, w2)"


@pytest.mark.parametrize(
    ("nodes", "epilogues"),
    [
        ((PROJECTION, BLOCK), {"n": Epilogue("k", "s", 0.0), "m": Epilogue()}),
        ((BLOCK, PROJECTION), {"m": Epilogue("c", "s", 0.0), "n": Epilogue()}),
    ],
)
def test_a_shortcut_that_is_corrected_later_is_not_repaired_twice(
    nodes: tuple[str, ...], epilogues: dict[str, Epilogue]
) -> None:
    graph = gs.import_onnx(build(SHORTCUT % "\n".join(nodes)))
    planned = plan_blocks(match_models(graph, graph), graph, graph, True, 0)
    assert {plan.name: plan.uses[0].epilogue for plan in planned} == epilogues
    assert {plan.name: plan.uses[0].teacher_sum for plan in planned} == {
        name: epilogue.sum_output for name, epilogue in epilogues.items()
    }


def test_a_sum_that_the_teacher_does_not_have_is_not_looked_behind() -> None:
    student = gs.import_onnx(build(SHORTCUT % f"{PROJECTION}\n{BLOCK}"))
    text = SHORTCUT.replace("y = Relu(s)", "z = Relu(c)\ny = Add(z, s)")
    teacher = gs.import_onnx(build(text % f"{PROJECTION}\n{BLOCK}"))
    planned = plan_blocks(match_models(teacher, student), student, teacher, True, 0)
    [block] = next(plan.uses for plan in planned if plan.name == "n")
    assert (block.epilogue, block.teacher_sum) == (Epilogue(), None)
    assert block.student_tensors == ["x"]
    assert block.teacher_columns.tensors == ("c",)


# x1 ─▶ [in] ─▶ + ─▶ r ─▶ [one] ─▶ + x1 ─▶ Relu ─▶ z1       x2 ─▶ [two] ─▶ + x2 ─▶ Relu ─▶ z2
SHARED = """net (float[N,4,6,6] x1, float[N,4,6,6] x2) => (float[N,4,6,6] z1, float[N,4,6,6] z2)
    <float[4,4,3,3] v, float[4,4,3,3] w, float[4] b> {
    [two] y2 = Conv<pads=[1,1,1,1]>(x2, w, b)
    %s
    [in] y = Conv<pads=[1,1,1,1]>(x1, v)
    r = Relu(y)
    [one] y1 = Conv<pads=[1,1,1,1]>(r, w, b)
    s1 = Add(y1, x1)
    z1 = Relu(s1)
}"""
BEHIND = ("s2 = Add(y2, x2) z2 = Relu(s2)", "z2 = Relu(y2)", "s2 = Add(y2, x2) z2 = Abs(s2)")


@pytest.mark.parametrize("behind", BEHIND)
def test_nodes_of_the_same_weights_are_one_block_behind_all_that_they_read(behind: str) -> None:
    graph = gs.import_onnx(build(SHARED % behind))
    first, block = plan_blocks(match_models(graph, graph), graph, graph, True, 3)
    assert [use.name for use in first.uses] == ["in"]
    assert [use.name for use in block.uses] == ["two", "one"]
    assert [use.block_input for use in block.uses] == ["x2", "r"]
    assert [use.partner.output.name for use in block.uses] == ["y2", "y1"]
    columns = [use.sampling.columns for use in block.uses]
    assert columns == [math.ceil(5 * (36 + 1) / 2)] * 2
    assert len({use.sampling.seed for use in (*first.uses, *block.uses)}) == 3
    sums = [use.teacher_sum for use in block.uses]
    seen = common_epilogue([use.epilogue for use in block.uses])
    if "s2" not in behind:
        assert sums == [None, None]
        assert block.student_tensors == ["x2", "r"]
        assert seen == Epilogue()
    else:
        assert sums == ["s2", "s1"]
        assert block.student_tensors == ["x2", "x2", "r", "x1"]
        assert seen == (Epilogue() if "Abs" in behind else Epilogue("x2", "s2", 0.0))


def test_errors_that_are_seen_alike_are_seen_behind_all_uses() -> None:
    clipped, capped = Epilogue(low=0.0), Epilogue(low=0.0, high=6.0)
    added, other = Epilogue("a", "s", 0.0), Epilogue("b", "t", 0.0)
    assert common_epilogue([clipped]) == common_epilogue([clipped, clipped]) == clipped
    assert (
        common_epilogue([clipped, capped]) == common_epilogue([clipped, Epilogue()]) == Epilogue()
    )
    assert common_epilogue([added, other]) == added
    assert common_epilogue([added, clipped]) == Epilogue()
