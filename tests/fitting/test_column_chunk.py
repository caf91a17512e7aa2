"""Targets and predictions of a chunk, of some rows, and of a part of its columns."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.fitting.column_chunk import ColumnChunk
from fskd_onnx.passes.analysis.affine import AffineMap

ROWS = np.array([0, 2])


def chunk(residual: bool) -> ColumnChunk:
    rng = np.random.default_rng(1)
    of_targets = [rng.standard_normal((2, 3, 7)).astype(np.float32) for _ in range(3)]
    pair = (of_targets[1], of_targets[2]) if residual else None
    return ColumnChunk(4, rng.standard_normal((2, 5, 7)), of_targets[0], pair)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("rows", [ROWS, np.arange(3)], ids=["some", "all"])
def test_the_error_is_seen_behind_the_shortcut(residual: bool, rows: np.ndarray) -> None:
    whole = chunk(residual)
    fitted = AffineMap(np.ones((2, len(rows), 5)), np.full((2, len(rows)), 0.5))
    prediction, target, shortcut = whole.predict(fitted, rows)
    expected = np.tile(whole.x.sum(axis=1, keepdims=True) + 0.5, (1, len(rows), 1))
    theirs = whole.targets[:, rows]
    np.testing.assert_array_equal(whole.of_output(rows), theirs)
    if whole.residual is not None:
        theirs, mine = (part[:, rows] for part in whole.residual)
        np.testing.assert_array_equal(shortcut, mine)
        expected = expected + mine
        np.testing.assert_allclose(whole.of_sum(rows), theirs - mine, atol=1e-6)
    np.testing.assert_array_equal(target, theirs)
    np.testing.assert_allclose(prediction, expected, rtol=1e-5, atol=1e-5)
    assert prediction.dtype == np.float32
    assert whole.of_output(rows).dtype == np.float64


@pytest.mark.parametrize("residual", [False, True])
def test_a_part_is_a_view_of_some_columns(residual: bool) -> None:
    whole = chunk(residual)
    part = whole.part(slice(2, 5))
    assert (len(whole), len(part), part.fold) == (7, 3, 4)
    pairs = [(whole.x, part.x), (whole.targets, part.targets)]
    if whole.residual is not None and part.residual is not None:
        pairs += list(zip(whole.residual, part.residual, strict=True))
    assert (part.residual is None) != residual
    for everything, some in pairs:
        some[:] = 9
        assert (everything[..., 2:5] == 9).all()
        assert not (everything[..., [0, 1, 5, 6]] == 9).any()


@pytest.mark.parametrize("residual", [False, True])
def test_columns_that_are_finite_throughout_are_told(residual: bool) -> None:
    whole = chunk(residual)
    assert whole.finite() is None
    whole.x[1, 2, 0] = np.nan
    whole.targets[0, 1, 3] = np.inf
    bad = [0, 3]
    if whole.residual is not None:
        whole.residual[0][0, 0, 4] = whole.residual[1][1, 0, 6] = -np.inf
        bad += [4, 6]
    finite = whole.finite()
    assert finite is not None
    assert np.flatnonzero(~finite).tolist() == bad
    assert len(whole.part(finite)) == 7 - len(bad)
    assert whole.part(finite).finite() is None
