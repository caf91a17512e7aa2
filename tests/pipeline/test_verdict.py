"""What few samples say by chance is no gain."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.pipeline.verdict import judge
from tests.helpers import Array


def stands(before: list[float], after: list[float], size: float = 100.0) -> bool:
    return judge(np.array(before), np.array(after), size).stands


def test_gains_on_all_samples_stand() -> None:
    assert stands([10, 12, 9], [1, 2, 1.5])
    assert stands([10, 12, 9], [4, 5, 3])
    assert stands([1.0] * 20, [0.7] * 20)
    assert not stands([1.0] * 3, [0.9] * 3)  # by three samples no one can tell


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([8.9, 44.2, 4.9], [3.0, 1.3, 4.9]),  # the sum falls to a sixth
        ([2835, 86, 66], [1653, 79, 311]),
        ([31.9, 52.4, 626], [38.7, 52.4, 395]),
        ([11.2, 9.5, 7.6], [11.2, 9.5, 6.9]),
    ],
)
def test_gains_that_hang_on_a_sample_do_not(before: list[float], after: list[float]) -> None:
    """Measured: fits to three samples that were worse on fresh ones."""
    assert sum(after) < sum(before)
    assert not stands(before, after)


def test_rounding_is_no_gain() -> None:
    assert not stands([1e-12] * 30, [1e-13] * 30)
    assert not stands([0.0] * 30, [0.0] * 30)
    assert not stands([0.0] * 5, [0.0] * 5, size=0.0)


def test_what_overflows_is_worse_than_all_else() -> None:
    assert stands([np.inf] * 5, [2.0] * 5)
    assert stands([np.nan] * 5, [2.0] * 5)
    assert not stands([2.0] * 5, [0.1, 0.1, 0.1, 0.1, np.inf])


@pytest.mark.parametrize("n", [3, 7, 20])
def test_samples_that_differ_widely_seldom_show_a_gain_by_chance(n: int) -> None:
    rng = np.random.default_rng(n)

    def heavy() -> Array:
        return np.exp(rng.standard_normal(n))

    wrong = [stands(list(heavy()), list(heavy())) for _ in range(1000)]
    # Of fits that change errors without a gain; these are a hundredth of all.
    assert np.mean(wrong) < 0.15
    right = [stands(list(heavy()), list(0.05 * heavy())) for _ in range(200)]
    assert np.mean(right) > (0.25 if n == 3 else 0.8)  # three tell little of so wide a spread


def test_the_sum_falls_by_more_than_its_spread() -> None:
    before, small = [2.6] * 5 + [10.0] * 5 + [1.0] * 2, [1e-3] * 5
    assert stands(before, [*small, *[10.1] * 5, 1.0, 1.0])
    assert not stands(before, [*small, *[11.0] * 5, 1.0, 1.0])


def test_one_large_error_among_small_ones_is_no_doubt_where_all_fall() -> None:
    """Measured: a network that is linear but for a few samples, fitted to rounding."""
    before = [30.0, *[0.1] * 9]
    assert stands(before, [1e-9] * 10)
    assert stands(before[:4], [1e-9] * 4)
    assert not stands(before[:3], [1e-9] * 3)
    assert not stands(before, [1e-9, 0.5, *[1e-9] * 8])


@pytest.mark.parametrize(
    ("before", "after", "doubt"),
    [
        ([1.0] * 3, [0.9] * 3, "that interval reaches beyond 1"),
        ([30.0, 1.0, 1.0, 1.0], [1.0, 0.01, 0.01, 3.5], "hangs on one"),
        ([2.6] * 5 + [10.0] * 5 + [1.0] * 2, [1e-3] * 5 + [11.0] * 5 + [1.0] * 2, "its spread"),
        ([1.0] * 12, [1e-3] * 11 + [4.0], "the error of one rises"),
        ([1.0] * 12, [0.1] * 12, ""),
    ],
)
def test_the_doubt_says_which_test_failed(
    before: list[float], after: list[float], doubt: str
) -> None:
    verdict = judge(np.array(before), np.array(after), 100.0)
    assert doubt in verdict.doubt
    assert verdict.stands == (verdict.doubt == "")


def test_no_error_rises_far() -> None:
    small = [1e-3] * 11
    assert stands([1.0] * 12, [*small, 2.0])
    assert not stands([1.0] * 12, [*small, 4.0])


def test_more_samples_narrow_the_interval() -> None:
    few, many = (judge(np.ones(n), np.full(n, 0.5), 1.0) for n in (3, 30))
    for verdict in (few, many):
        low, high = verdict.interval
        assert low < verdict.error_ratio < high
        assert verdict.error_ratio == pytest.approx(0.5)
    assert many.interval[1] < 0.8 * few.interval[1]
    assert (few.independent_count, many.independent_count) == (3, 30)
