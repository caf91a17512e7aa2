"""Branches are merged in a teacher where its student has them as one node, and only there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from fskd_onnx.matching.branches import sums_to_merge
from fskd_onnx.passes import Canonicalize, MergeBranches
from tests.helpers import build, initializers, linears
from tests.matching.test_pairing import canonical, nameless, outputs, teachers
from tests.students import renamed, with_fresh_weights, with_noise


def blocks(count: int, kind: str, width: int = 8) -> onnx.ModelProto:
    """x ─▶ stem ─▶ Relu ─▶ (3 x 3 + 1 x 1 + BatchNormalization ─▶ Relu), several ─▶ fc ─▶ z.

    Args:
        count: of blocks.
        kind: "branches", or "shortcut" for 3 x 3 with its input added.
        width: of all of them.
    """
    weights, nodes = [], []
    for k in range(count):
        weights += [
            f"float[{width},{width},3,3] a{k}, float[{width}] b{k}, float[{width},{width},1,1] c{k}"
        ]
        weights += [f"float[{width}] {name}{k}" for name in ("s", "t", "m", "v")]
        if kind == "shortcut":
            nodes.append(f"""
            [big{k}] p{k} = Conv <pads = [1,1,1,1]> (r{k}, a{k}, b{k})
            z{k} = Add (p{k}, r{k})
            r{k + 1} = Relu (z{k})""")
            continue
        nodes.append(f"""
            [big{k}] p{k} = Conv <pads = [1,1,1,1]> (r{k}, a{k}, b{k})
            [small{k}] q{k} = Conv (r{k}, c{k})
            i{k} = BatchNormalization (r{k}, s{k}, t{k}, m{k}, v{k})
            y{k} = Add (p{k}, q{k})
            z{k} = Add (y{k}, i{k})
            r{k + 1} = Relu (z{k})""")
    return build(f"""g (float[N,3,8,8] x) => (float[N,5] z)
      <float[{width},3,3,3] w0, {", ".join(weights)}, float[{width},5] wf, float[5] bf> {{
        [stem] y = Conv <pads = [1,1,1,1]> (x, w0)
        r0 = Relu (y)
        {"".join(nodes)}
        g = GlobalAveragePool (r{count})
        f = Flatten (g)
        [fc] z = Gemm (f, wf, bf)
    }}""")


def merged(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """Merge some sums of branches, all of them if none is named."""
    return MergeBranches(names or None)(model).model


def wanted(teacher: onnx.ModelProto, student: onnx.ModelProto) -> set[str]:
    """Give the teacher's sums that the student does not have; the other way round there is none."""
    theirs, mine = sums_to_merge(canonical(teacher), canonical(renamed(student, seed=1).model))
    assert not mine
    return set(theirs)


def wanted_of_student(teacher: onnx.ModelProto, student: onnx.ModelProto) -> set[str]:
    """Give the student's sums that the teacher does not have; it has none that is not wanted."""
    other = renamed(student, seed=1)
    theirs, mine = sums_to_merge(canonical(teacher), canonical(other.model))
    assert not theirs
    return {other.old[name] for name in mine}


CHANGES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "as it is": lambda model: model,
    "noise": lambda model: with_noise(model, 0.3),
    "fresh": with_fresh_weights,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["branches", "shortcut"])
def test_a_merged_student_has_none_of_them(kind: str, change: str) -> None:
    teacher = blocks(3, kind)
    student = CHANGES[change](merged(teacher))
    assert wanted(teacher, student) == {"z0", "z1", "z2"}
    whole = Canonicalize()(merged(teacher)).model
    expected = {"stem": "y", "z0": "z0", "z1": "z1", "z2": "z2", "fc": "z"}
    found = {p.student: p.teacher for p in nameless(whole, student).values()}
    assert set(found.values()) == set(expected.values())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["branches", "shortcut"])
def test_a_student_of_the_same_structure_has_all_of_them(kind: str, change: str) -> None:
    teacher = blocks(3, kind)
    student = CHANGES[change](teacher)
    assert wanted(teacher, student) == set()
    found = nameless(teacher, student)
    assert teachers(found) == outputs(teacher)


@pytest.mark.parametrize("kind", ["branches", "shortcut"])
def test_some_may_be_merged(kind: str) -> None:
    teacher = blocks(3, kind)
    assert wanted(teacher, with_noise(merged(teacher, "z1"), 0.1)) == {"z1"}


def test_without_branches_there_is_nothing_to_merge() -> None:
    plain = merged(blocks(2, "branches"))
    assert wanted(plain, plain) == set()
    assert wanted_of_student(plain, plain) == set()


def test_a_pruned_merged_student_pairs_with_the_sums() -> None:
    teacher = blocks(1, "branches", width=12)
    student = merged(teacher)
    whole = Canonicalize()(student).model
    values = initializers(student)
    keep = np.arange(1, 12, 2)
    name = linears(whole)["big0"].weight.name
    assert name in values
    smaller = onnx.ModelProto()
    smaller.CopyFrom(student)
    cut = {
        name: values[name][keep],
        name.replace("weight", "bias"): values[name.replace("weight", "bias")][keep],
        "wf": values["wf"][keep],
    }
    for tensor in smaller.graph.initializer:
        if tensor.name in cut:
            tensor.CopyFrom(onnx.numpy_helper.from_array(cut[tensor.name], tensor.name))
    del smaller.graph.value_info[:]
    assert wanted(teacher, smaller) == {"z0"}
    assert teachers(nameless(whole, smaller)) == {"stem": "y", "big0": "z0", "fc": "z"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["branches", "shortcut"])
def test_a_merged_teacher_has_none_of_the_students(kind: str, change: str) -> None:
    student = blocks(3, kind)
    teacher = Canonicalize()(merged(student)).model
    assert wanted_of_student(teacher, CHANGES[change](student)) == {"z0", "z1", "z2"}
    some = merged(student, "z0", "z2")
    assert wanted_of_student(some, with_noise(student, 0.1)) == {"z0", "z2"}


def test_a_shortcut_behind_a_dropout_is_one_nevertheless() -> None:
    student = blocks(2, "shortcut")
    teacher = onnx.ModelProto()
    teacher.CopyFrom(student)
    at = next(i for i, node in enumerate(teacher.graph.node) if node.output[0] == "z0")
    add = teacher.graph.node[at]
    dropout = onnx.helper.make_node("Dropout", ["p0"], ["d0"], "drop")
    add.input[0] = "d0"
    teacher.graph.node.insert(at, dropout)
    theirs, mine = sums_to_merge(canonical(teacher), canonical(with_noise(student, 0.1)))
    assert (theirs, mine) == (frozenset(), frozenset())


def test_a_sum_that_no_branch_spans_is_not_merged_in_a_student() -> None:
    student = build("""g (float[N,6,8,8] x) => (float[N,6,8,8] z)
      <float[6,6,1,3] a, float[6,6,3,1] b, float[6,6,1,1] c> {
        p = Conv <pads = [0,1,0,1]> (x, a)
        q = Conv <pads = [1,0,1,0]> (x, b)
        y = Add (p, q)
        r = Relu (y)
        z = Conv (r, c)
    }""")
    assert wanted_of_student(merged(student), student) == set()
    found = nameless(merged(student), student)
    assert {name: p.teacher for name, p in found.items()} == {"p": None, "q": None, "z": "z"}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["branches", "shortcut"])
def test_branches_have_no_partner_where_the_teacher_has_them_merged(kind: str, change: str) -> None:
    student = blocks(3, kind)
    teacher = Canonicalize()(merged(student)).model
    found = nameless(teacher, CHANGES[change](student))
    for name, partner in found.items():
        if name.startswith(("big", "small")):
            assert partner.teacher is None
            assert partner.reason.startswith("it is summed with ")
        else:
            assert partner.teacher == {"stem": "y", "fc": "z"}[name]


def test_a_residual_around_a_node_that_was_decomposed_stays() -> None:
    """The student adds as often as the teacher: what it adds is no branch of one node any more."""
    whole = """g (float[N,6] x) => (float[N,4] z) <float[6,6] w, float[6,4] v> {
        p = MatMul (x, w)
        y = Add (x, p)
        z = MatMul (y, v)
    }"""
    factors = """g (float[N,6] x) => (float[N,4] z) <float[6,2] a, float[2,6] b, float[6,4] v> {
        q = MatMul (x, a)
        p = MatMul (q, b)
        y = Add (p, x)
        z = MatMul (y, v)
    }"""
    merged = "g (float[N,6] x) => (float[N,4] z) <float[6,6] w, float[6,4] v> {"
    merged += "y = MatMul (x, w) z = MatMul (y, v) }"
    teacher = build(whole)
    for student, expected in ((factors, frozenset()), (merged, frozenset({"y"}))):
        graphs = canonical(teacher), canonical(build(student))
        assert sums_to_merge(*graphs) == (expected, frozenset())


def test_a_shortcut_that_was_dropped_with_its_node_is_not_merged() -> None:
    """A merged node gives as many channels as it reads, and the student has no such node."""
    teacher = build("""g (float[N,3] x) => (float[N,4] z)
      <float[3,6] u, float[6,6] w, float[6,4] v> {
        [first] p = MatMul (x, u)
        r = Relu (p)
        [around] q = MatMul (r, w)
        y = Add (r, q)
        [last] z = MatMul (y, v)
    }""")
    student = build("""g (float[N,3] x) => (float[N,4] z)
      <float[3,6] u, float[6,1] a, float[1,4] b> {
        [first] p = MatMul (x, u)
        r = Relu (p)
        [factor] q = MatMul (r, a)
        [last] z = MatMul (q, b)
    }""")
    assert sums_to_merge(canonical(teacher), canonical(student)) == (frozenset(), frozenset())
    assert teachers(nameless(teacher, with_fresh_weights(student))) == {
        "first": "p",
        "factor": None,
        "last": "z",
    }


def test_a_shortcut_that_the_teacher_has_around_moved_rows_is_not_merged() -> None:
    """Its matrix sees positions as samples, so its sum is none of branches of one tensor."""

    def network(summed: str, inner: str) -> onnx.ModelProto:
        return build(f"""g (float[N,4,6] x) => (float[N,4,5] z)
          <float[6,6] w, float[6,3] q, float[6,3] k, float[3,6] c, float[6,5] d,
           float[3,2] c0, float[2,6] c1, int64[2] flat = {{-1,6}}, int64[3] back = {{-1,4,6}}> {{
            r = Sigmoid (x)
            {summed}
            [q] a = MatMul (y, q)
            [k] b = MatMul (y, k)
            m = Mul (a, b)
            {inner}
            [d] z = MatMul (e, d)
        }}""")

    moved = "rows = Reshape (r, flat) [p] s = MatMul (rows, w) t = Reshape (s, back) y = Add (t, r)"
    teacher = network(moved, "[c] e = MatMul (m, c)")
    student = network(
        "[p] s = MatMul (r, w) y = Add (s, r)", "[c0] f = MatMul (m, c0) [c] e = MatMul (f, c1)"
    )
    assert sums_to_merge(canonical(teacher), canonical(student)) == (frozenset(), frozenset())
    assert nameless(teacher, student)["p"].teacher == "s"
