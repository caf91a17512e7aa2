"""Affine maps compose, group by group."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.passes import AffineMap
from tests.helpers import Array


def draw(groups: int, n: int, m: int, seed: int = 0) -> AffineMap:
    rng = np.random.default_rng(seed)
    return AffineMap(rng.standard_normal((groups, n, m)), rng.standard_normal((groups, n)))


def apply(affine: AffineMap, x: Array) -> Array:
    """(groups, m, columns) -> (groups, n, columns)."""
    return np.asarray(affine.matrix @ x + affine.shift[:, :, np.newaxis])


def test_one_map_after_another() -> None:
    first, second = draw(2, 4, 3), draw(2, 5, 4, seed=1)
    x = np.random.default_rng(2).standard_normal((2, 3, 7))
    both = second.after(first)
    assert both.shape == (2, 5, 3)
    np.testing.assert_allclose(apply(both, x), apply(second, apply(first, x)), rtol=1e-12)


def test_the_identity_leaves_every_bit() -> None:
    affine = draw(3, 4, 5)
    for same in (
        AffineMap.identity(3, 4).after(affine),
        affine.after(AffineMap.identity(3, 5)),
    ):
        np.testing.assert_array_equal(same.matrix, affine.matrix)
        np.testing.assert_array_equal(same.shift, affine.shift)


def test_a_map_per_channel_has_a_group_per_channel() -> None:
    affine = AffineMap.per_channel(np.array([2.0, 3.0]), np.array([5.0, 7.0]))
    assert affine.shape == (2, 1, 1)
    np.testing.assert_array_equal(apply(affine, np.ones((2, 1, 1))).reshape(-1), [7.0, 10.0])


def test_some_of_the_outputs() -> None:
    affine = draw(2, 4, 3)
    some = affine.of_targets(np.array([3, 1]))
    np.testing.assert_array_equal(some.matrix, affine.matrix[:, [3, 1]])
    np.testing.assert_array_equal(some.shift, affine.shift[:, [3, 1]])


@pytest.mark.parametrize(
    ("matrix", "shift"), [((2, 3, 3), (6,)), ((2, 3, 3), (2, 2)), ((3, 3), (3,)), ((1, 3, 4), (1,))]
)
def test_shapes_that_do_not_agree_are_refused(
    matrix: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="takes no shift"):
        AffineMap(np.zeros(matrix), np.zeros(shift))
