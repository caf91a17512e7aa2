"""Alignments keep the order, and find what the evidence says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.matching.alignment import CERTAIN, Alignment

Floats = NDArray[np.float64]
Order = NDArray[np.bool_]
Problem = tuple[Floats, Order, Order]

NEVER = -np.inf
EVIDENCE = st.sampled_from([NEVER, -0.5, 0.0, 0.25, 0.5, 1.0, 2.5])


@st.composite
def orders(draw: st.DrawFn, most: int) -> Order:
    """Draw a partial order, its nodes in a topological order."""
    n = draw(st.integers(1, most))
    order = np.zeros((n, n), dtype=bool)
    for i in range(n):
        for k in range(i + 1, n):
            order[i, k] = draw(st.booleans())
    for middle in range(n):
        order |= order[:, [middle]] & order[[middle]]
    return order


@st.composite
def problems(draw: st.DrawFn, most: int = 5) -> Problem:
    student, teacher = draw(orders(most)), draw(orders(most))
    shape = len(student), len(teacher)
    rows = st.lists(EVIDENCE, min_size=shape[1], max_size=shape[1])
    evidence = draw(st.lists(rows, min_size=shape[0], max_size=shape[0]))
    return np.array(evidence).reshape(shape), student, teacher


def chain(n: int) -> Order:
    return np.triu(np.ones((n, n), dtype=bool), 1)


def unordered(n: int) -> Order:
    return np.zeros((n, n), dtype=bool)


def chains(
    problem: Problem, last: tuple[int, int] | None = None
) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield all chains of possible pairs that begin behind one."""
    evidence, student, teacher = problem
    for i, j in np.argwhere(evidence > NEVER).tolist():
        if last is None or (student[last[0], i] and teacher[last[1], j]):
            yield ((i, j),)
            for rest in chains(problem, (i, j)):
                yield ((i, j), *rest)


@given(problems(most=4))
def test_a_value_is_the_weight_of_the_heaviest_chain(problem: Problem) -> None:
    evidence, student, teacher = problem
    expected = np.full(evidence.shape, NEVER)
    for pairs in chains(problem):
        weight = sum(evidence[pair] for pair in pairs)
        for pair in pairs:
            expected[pair] = max(expected[pair], weight)
    np.testing.assert_allclose(Alignment(evidence, student, teacher).values(), expected)


@given(problems(), st.integers(0, 2**32 - 1))
def test_every_alignment_keeps_the_order(problem: Problem, seed: int) -> None:
    evidence, student, teacher = problem
    alignment = Alignment(evidence, student, teacher)
    first = alignment.settle()
    bonus = np.random.default_rng(seed).uniform(0, 3, evidence.shape)
    second = alignment.settle(bonus)
    assert [*first, *second] == list(alignment.pairs.values())
    pairs = list(alignment.pairs.values())
    assert len({pair.student for pair in pairs}) == len(pairs)
    assert len({pair.teacher for pair in pairs}) == len(pairs)
    for one in pairs:
        assert evidence[one.student, one.teacher] > NEVER
        assert CERTAIN < one.certainty <= 1
        for other in pairs:
            in_front = student[one.student, other.student]
            assert in_front == teacher[one.teacher, other.teacher]


@given(problems())
def test_nothing_is_paired_that_nothing_speaks_for(problem: Problem) -> None:
    evidence, student, teacher = problem
    for pair in Alignment(evidence, student, teacher).settle():
        assert evidence[pair.student, pair.teacher] > 0


@given(orders(7), st.data())
def test_certain_evidence_is_found(teacher: Order, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, len(teacher) - 1), min_size=1)))
    student = teacher[np.ix_(places, places)]
    evidence = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(
        -0.5, 0.5, (len(places), len(teacher))
    )
    evidence[np.arange(len(places)), places] = 2.0
    alignment = Alignment(evidence, student, teacher)
    alignment.settle()
    assert [alignment.pairs[i].teacher for i in range(len(places))] == places


@given(problems())
def test_evidence_is_not_written_to(problem: Problem) -> None:
    evidence, student, teacher = problem
    before = evidence.copy()
    Alignment(evidence, student, teacher).settle()
    np.testing.assert_array_equal(evidence, before)


@given(problems())
def test_a_settled_alignment_has_no_more_to_say(problem: Problem) -> None:
    alignment = Alignment(*problem)
    alignment.settle()
    assert alignment.settle() == []


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(0, 99))
def test_evidence_at_the_ends_of_a_chain_places_what_is_between(n: int, seed: int) -> None:
    # In the middle, all places look the same; as many nodes on either side leave one way.
    evidence = np.full((n, n), 0.5)
    evidence[0], evidence[:, 0] = NEVER, NEVER
    evidence[0, 0] = 0.5 + np.random.default_rng(seed).uniform(0, 1)
    alignment = Alignment(evidence, chain(n), chain(n))
    alignment.settle()
    assert {i: pair.teacher for i, pair in alignment.pairs.items()} == {i: i for i in range(n)}


def test_places_as_good_as_each_other_stay_open() -> None:
    # One node, behind the first, and two places.
    evidence = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    student = chain(2)
    teacher = np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    alignment = Alignment(evidence, student, teacher)
    (pair,) = alignment.settle()
    assert (pair.student, pair.teacher) == (0, 0)
    assert alignment.rivals() == {1: [1, 2]}
    (late,) = alignment.settle(np.array([[0.0, 0, 0], [0, 0, 1]]))
    assert (late.student, late.teacher) == (1, 2)
    assert late.certainty > 0.99
    assert alignment.rivals() == {}


def test_the_certainty_is_the_lesser_share_of_both_sides() -> None:
    # Differences of a tenth: of two values, the better has e / (e + 1).
    evidence = np.array([[1.0, 0.9]])
    (pair,) = Alignment(evidence, unordered(1), unordered(2)).settle()
    assert pair.certainty == pytest.approx(np.e / (np.e + 1))
    evidence = np.array([[1.0, 0.0], [0.9, 0.0]])
    pairs = Alignment(evidence, unordered(2), unordered(2)).settle()
    assert (pairs[0].student, pairs[0].teacher) == (0, 0)
    assert pairs[0].certainty == pytest.approx(np.e / (np.e + 1), rel=1e-3)


def test_a_fixed_pair_rules_out_what_does_not_fit() -> None:
    alignment = Alignment(np.ones((3, 3)), chain(3), chain(3))
    assert alignment.is_open(0, 1)
    alignment.fix(1, 1, 1.0)
    open_pairs = {(i, j) for i in range(3) for j in range(3) if alignment.is_open(i, j)}
    assert open_pairs == {(0, 0), (2, 2)}


def test_what_is_left_out_has_no_partner() -> None:
    alignment = Alignment(np.eye(3) * 2, chain(3), chain(3))
    alignment.leave_out(1)
    alignment.settle()
    assert sorted(alignment.pairs) == [0, 2]
    assert alignment.rivals() == {}
    assert not alignment.is_open(1, 1)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_either_side_may_be_empty(shape: tuple[int, int]) -> None:
    alignment = Alignment(np.ones(shape), chain(shape[0]), chain(shape[1]))
    assert alignment.settle() == []
    assert alignment.rivals() == {}
    assert alignment.values().shape == shape


@given(problem=problems())
@settings(max_examples=30)
def test_with_a_partner_for_every_node_nothing_is_open(problem: Problem) -> None:
    evidence, student, teacher = problem
    alignment = Alignment(evidence, student, teacher)
    alignment.settle()
    left = set(range(len(evidence))) - set(alignment.pairs)
    assert set(alignment.rivals()) <= left
    if not left:
        assert alignment.settle(np.full(evidence.shape, 5.0)) == []
