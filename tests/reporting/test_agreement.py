"""Agreement of outputs: the numbers, and outputs that cannot be held against each other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.linalg.output_scales import Scales, weights_of
from fskd_onnx.reporting.agreement import (
    agreement,
    sample_errors,
    worst_samples,
)
from fskd_onnx.results import SampleError
from tests.helpers import Array


def outputs(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_error_is_relative_to_the_teachers_variance() -> None:
    teacher, student = outputs(0, 6, 4) + 100, outputs(1, 6, 4) + 100
    found = agreement([teacher], [student])
    t, s = teacher.astype(np.float64), student.astype(np.float64)
    expected = ((t - s) ** 2).sum() / ((t - t.mean(0)) ** 2).sum()
    assert found.relative_mse == pytest.approx(expected, rel=1e-12)
    mean = agreement([teacher], [np.broadcast_to(t.mean(0), t.shape)])
    assert mean.relative_mse == pytest.approx(1.0, rel=1e-12)
    assert agreement([teacher], [teacher]).relative_mse == 0.0


def test_each_output_counts_on_its_own_scale() -> None:
    one, other = outputs(0, 6, 4), 100 * outputs(1, 6, 2, 3)
    found = agreement([one, other], [one + 1, other + 1])
    errors = [t.size / ((t.astype(np.float64) - t.mean(0)) ** 2).sum() for t in (one, other)]
    assert found.relative_mse == pytest.approx(sum(errors) / 2, rel=1e-5)


def test_without_variance_the_error_is_relative_to_the_size() -> None:
    one = np.array([[3.0, 4.0]])
    assert agreement([one], [one + np.array([0.0, 5.0])]).relative_mse == pytest.approx(1.0)
    assert agreement([one], [one]).relative_mse == 0.0
    still = np.full((4, 2), 2.0)
    assert agreement([still], [still + 1]).relative_mse == pytest.approx(0.25)
    zero = np.zeros((4, 2))
    assert agreement([zero], [zero + 0.5]).relative_mse == pytest.approx(2.0)
    assert agreement([zero], [zero]).relative_mse == 0.0


def test_outputs_of_other_shapes_are_refused() -> None:
    one, other = [outputs(0, 4, 3), outputs(0, 4, 6, 2)], [outputs(0, 4, 3), outputs(0, 4, 5, 2)]
    with pytest.raises(ModelError, match=r"^output 2 .* \(5, 2\) .* teacher \(6, 2\)"):
        agreement(one, other)


def test_small_types_do_not_overflow() -> None:
    teacher = np.array([[6e4], [-6e4]], np.float16)
    assert agreement([teacher], [-teacher]).relative_mse == pytest.approx(4.0)


def test_what_is_not_finite_is_not_hidden() -> None:
    teacher, student = outputs(0, 6, 4), outputs(1, 6, 4)
    student[0, 0] = np.nan
    assert np.isnan(agreement([teacher], [student]).relative_mse)


SCORES = np.array([[1, 2, 0], [5, 4, 3], [0, 1, 9], [7, 0, 6]], np.float32)


@pytest.mark.parametrize(
    ("teacher", "student", "top1"),
    [
        ([SCORES], [SCORES[:, [0, 2, 1]]], 0.5),
        ([SCORES.reshape(4, 3, 1, 1)], [SCORES.reshape(4, 3, 1, 1)], 1.0),
        ([outputs(0, 4, 3, 2), SCORES], [outputs(1, 4, 3, 2), -SCORES], 0.0),
        ([outputs(0, 4, 3, 2)], [outputs(1, 4, 3, 2)], None),
        ([outputs(0, 4, 1)], [outputs(1, 4, 1)], None),
        ([outputs(0, 4)], [outputs(1, 4)], None),
    ],
    ids=["rows", "maps of one position", "second output", "maps", "one class", "no class"],
)
def test_top_1(teacher: list[Array], student: list[Array], top1: float | None) -> None:
    assert agreement(teacher, student).top1_agreement == top1


def test_an_output_that_overflows_is_an_error_without_a_warning() -> None:
    teacher: list[Array] = [np.ones((4, 3), np.float32)]
    student: list[Array] = [np.full((4, 3), np.inf, np.float32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isfinite(agreement(teacher, student).relative_mse)
        assert not np.isfinite(sample_errors(teacher, student)).any()


@pytest.mark.parametrize("rows", [1, 8])
def test_the_mean_of_the_errors_of_samples_is_the_error_of_all(rows: int) -> None:
    teacher, student = outputs(0, 6, 8, 4), outputs(1, 6, 8, 4)
    weights = weights_of([Scales.of(teacher, rows)], 6)
    errors = sample_errors([teacher], [student], weights)
    assert errors.shape == (6,)
    expected = agreement([teacher], [student], weights=weights).relative_mse
    assert errors.mean() == pytest.approx(expected, rel=1e-12)
    assert sample_errors([teacher[:1]], [student[:1]]).shape == (1,)


def test_the_worst_samples_come_first_and_what_is_not_finite_before_them() -> None:
    found = worst_samples(np.array([0.1, np.nan, 0.0, 0.3]), str, np.arange(4.0))
    assert [(sample.name, sample.error_before) for sample in found] == [
        ("1", 1.0),
        ("3", 3.0),
        ("0", 0.0),
    ]
    assert worst_samples(np.zeros(3), str) == ()
    many = worst_samples(np.arange(20.0), str)
    assert len(many) == 8
    assert many[0] == SampleError("19", 19.0)
