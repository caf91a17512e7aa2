"""Figures of one output, against other ways of computing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fskd_onnx.reporting.output_agreement import are_scores, compare_output, ranks
from tests.helpers import Array

RNG = np.random.default_rng(0)
SCORES = arrays.arrays(np.float32, (6, 7), elements=st.floats(-8, 8, width=32))


def softmax(scores: Array) -> Array:
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


@given(SCORES, SCORES)
def test_classes_are_compared_by_rank_and_by_divergence(teacher: Array, student: Array) -> None:
    found = compare_output("y", "z", teacher, student, 0.5)
    if found.top1_agreement is None:  # rows of unit length
        return
    assert found.top1_agreement == np.mean(teacher.argmax(1) == student.argmax(1))
    assert found.top5_agreement is not None
    assert found.top5_agreement >= found.top1_agreement
    pairs = zip(softmax(teacher), softmax(student), strict=True)
    expected = np.mean([scipy.stats.entropy(p, q) for p, q in pairs])
    assert found.kl_divergence == pytest.approx(expected, rel=1e-4, abs=1e-9)
    of_both = compare_output("y", "z", softmax(teacher), softmax(student), 0.5)
    if of_both.kl_divergence is not None:
        assert of_both.kl_divergence == pytest.approx(expected, rel=1e-4, abs=1e-7)


@given(SCORES)
def test_an_output_agrees_with_itself(values: Array) -> None:
    found = compare_output("y", "y", values, values, 0.0)
    assert found.cosine is None or found.cosine == pytest.approx(1)
    assert found.top1_agreement in (None, 1.0)
    assert found.kl_divergence in (None, 0.0)


def test_the_cosine_is_that_of_samples() -> None:
    teacher, student = RNG.standard_normal((2, 5, 3, 2))
    found = compare_output("boxes", "boxes", teacher, student, 0.5)
    flat = teacher.reshape(5, -1), student.reshape(5, -1)
    cosines = [t @ s / np.linalg.norm(t) / np.linalg.norm(s) for t, s in zip(*flat, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines))
    assert found.relative_mse == 0.5
    assert found.top1_agreement is found.top5_agreement is found.kl_divergence is None
    assert compare_output("y", "y", teacher, np.zeros_like(teacher), 1.0).cosine is None


UNIT = RNG.standard_normal((6, 8))
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("values", "name", "scores"),
    [
        (RNG.standard_normal((6, 10)), "logits", True),
        (RNG.standard_normal((6, 10, 1, 1)), "", True),
        (np.eye(6), "one-hot", True),
        (RNG.standard_normal((6, 10)), "Transpose_12", True),
        (RNG.standard_normal((6, 10)), "statement_pool10_1", True),
        (RNG.standard_normal((6, 10)), "last_hidden_state", False),
        (RNG.standard_normal((6, 10)), "/head/BBoxes:0", False),
        (softmax(RNG.standard_normal((6, 10))), "prob", True),
        (UNIT, "output", False),
        (RNG.standard_normal((6, 10)), "sentence_embedding", False),
        (RNG.standard_normal((6, 4)), "pred_boxes", False),
        (RNG.standard_normal((6, 4, 2)), "maps", False),
        (RNG.standard_normal((6, 1)), "probability", False),
        (np.full((6, 3), "text"), "names", False),
    ],
)
def test_scores_of_classes_are_rows_that_say_nothing_else(
    values: Any, name: str, scores: bool
) -> None:
    assert are_scores(values, name) == scores


def test_ranks_count_greater_scores() -> None:
    scores = np.array([[3.0, 2, 1], [1, 1, 1]])
    assert ranks(scores, np.array([2, 0])).tolist() == [2, 0]
