"""How long steps are, by how many there are."""

from __future__ import annotations

import pytest

from fskd_onnx.gradient.gradient_steps import lengths


def test_steps_are_longest_where_there_are_two_hundred() -> None:
    of_matrices, of_others = lengths(0.02, 200)
    assert (of_matrices, of_others) == (0.01, 0.02)
    assert lengths(0.02, 50) == pytest.approx((of_matrices / 2, of_others / 2))


def test_more_steps_along_orthogonalized_momentum_are_shorter() -> None:
    assert lengths(0.02, 800) == pytest.approx((0.005, 0.02))
