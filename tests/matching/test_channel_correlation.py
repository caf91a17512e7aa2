"""Activations tell of channels where no other channel correlates nearly as well."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.errors import MatchError
from fskd_onnx.linalg.moments import Moments
from fskd_onnx.matching.channel_correlation import channels_from_moments
from tests.helpers import Array

ROWS = [5, 0, 3]


def activations(noise: float, columns: int = 500) -> tuple[Array, Array]:
    """Return (3, columns) of a student and (8, columns) of a teacher."""
    rng = np.random.default_rng(0)
    teacher = rng.standard_normal((8, columns))
    return teacher[ROWS] + noise * rng.standard_normal((3, columns)), teacher


def moments(student: Array, teacher: Array) -> Moments:
    return Moments.of(student[np.newaxis], teacher[np.newaxis])


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_channels_are_those_of_the_largest_correlation(noise: float) -> None:
    channels, confidence = channels_from_moments(moments(*activations(noise)))
    assert channels.tolist() == ROWS
    assert confidence > 0.999


def test_a_channel_that_two_of_the_teacher_fit_is_left_open() -> None:
    student, teacher = activations(0.3)
    teacher[7] = teacher[0] + 0.01 * teacher[6]
    with pytest.raises(MatchError, match=r"channel 1 .* teacher's [07] by 0\.\d+ and with [07] by"):
        channels_from_moments(moments(student, teacher))


def test_close_correlations_are_told_apart_where_one_leaves_nothing_unexplained() -> None:
    student, teacher = activations(0.0)
    teacher[7] = teacher[0] + 0.1 * teacher[6]
    assert channels_from_moments(moments(student, teacher))[0].tolist() == ROWS


def test_a_channel_without_a_counterpart_is_left_open() -> None:
    student, teacher = activations(0.1)
    student[2] = np.random.default_rng(1).standard_normal(student.shape[1])
    with pytest.raises(MatchError, match=r"channel 2 correlates .* by only 0\.\d\d"):
        channels_from_moments(moments(student, teacher))


def test_a_constant_channel_is_left_open() -> None:
    student, teacher = activations(0.1)
    student[1] = 3.0
    with pytest.raises(MatchError, match="channel 1"):
        channels_from_moments(moments(student, teacher))


def test_few_samples_say_little() -> None:
    with pytest.raises(MatchError, match="leaves it open"):
        channels_from_moments(moments(*activations(1.0, columns=8)))
