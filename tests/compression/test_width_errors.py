"""The error of fewer channels is what regression on the columns themselves leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.compression.width_errors import Reading
from tests.helpers import Array

WIDTH = 7


def columns(seed: int, count: int = 50) -> Array:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((WIDTH, WIDTH))
    drawn = mixed @ rng.standard_normal((WIDTH, count))
    return np.asarray(drawn - drawn.mean(axis=1, keepdims=True))


def regression(weights: Array, fitted: Array, judged: Array, kept: list[int]) -> float:
    """Solve for what is gone by least squares, a ridge being rows of targets of zero."""
    gone = [channel for channel in range(WIDTH) if channel not in kept]
    ridge = np.sqrt(0.01 * np.mean(np.sum(fitted**2, axis=1)))
    seen = np.concatenate([fitted[kept].T, ridge * np.eye(len(kept))])
    wanted = np.concatenate([fitted[gone].T, np.zeros((len(kept), len(gone)))])
    found = np.linalg.lstsq(seen, wanted, rcond=None)[0]
    rebuilt = judged.copy()
    rebuilt[gone] = found.T @ judged[kept]
    off = np.sum((weights @ (judged - rebuilt)) ** 2) / np.sum((weights @ judged) ** 2)
    return float(min(off, 1.0))


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.permutations(range(WIDTH)),
    st.lists(st.integers(1, WIDTH), min_size=1, unique=True),
)
def test_errors_are_those_of_regressions(seed: int, order: list[int], widths: list[int]) -> None:
    nested = [sorted(order[:width]) for width in widths]
    weights = np.random.default_rng(seed).standard_normal((4, WIDTH))
    fitted, judged = columns(seed), columns(seed + 1)
    reading = Reading("r", weights.T @ weights, fitted @ fitted.T, judged @ judged.T)
    expected = [regression(weights, fitted, judged, kept) for kept in nested]
    assert reading.errors(nested) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_nothing_is_lost_where_all_channels_stay() -> None:
    same = np.eye(WIDTH)
    reading = Reading("r", same, columns(0) @ columns(0).T, columns(1) @ columns(1).T)
    assert reading.errors([range(WIDTH)]) == [0]


def test_without_samples_the_error_is_the_share_of_the_weights_that_go() -> None:
    weights = np.random.default_rng(0).standard_normal((5, WIDTH))
    reading = Reading("r", weights.T @ weights, np.eye(WIDTH), np.eye(WIDTH))
    share = np.sum(weights[:, [1, 4]] ** 2) / np.sum(weights**2)
    assert reading.errors([[0, 2, 3, 5, 6]]) == [pytest.approx(share, rel=1e-12)]


def test_a_reader_that_reads_nothing_loses_nothing() -> None:
    nothing = np.zeros((WIDTH, WIDTH))
    assert Reading("r", nothing, np.eye(WIDTH), np.eye(WIDTH)).errors([[0]]) == [0]
    assert Reading("r", np.eye(WIDTH), nothing, nothing).errors([[0]]) == [0]


def test_channels_that_are_dead_in_one_half_do_no_harm() -> None:
    fitted = np.diag([0.0, 0, 1, 1, 1, 1, 1])
    reading = Reading("r", np.eye(WIDTH), fitted, np.eye(WIDTH))
    assert reading.errors([[0, 1]]) == [pytest.approx(5 / 7)]
