"""The greedy choice of channels takes what the others are best reconstructed from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.fitting.greedy_choice import choose_channels, order_of_choice
from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels


def gram(columns: Array) -> Array:
    """The centred Gram matrix of (channels, columns)."""
    centred = columns - columns.mean(1, keepdims=True)
    return np.asarray(centred @ centred.T)


def lost(evidence: list[tuple[Array, Array]], chosen: Sequence[int] | Channels) -> float:
    """What the readers no longer see if all channels are reconstructed from the chosen ones."""
    error = 0.0
    for r, h in evidence:
        kept = np.array(chosen)
        rest = r - r[:, kept] @ np.linalg.pinv(r[np.ix_(kept, kept)]) @ r[kept]
        error += float(np.sum(h * rest)) / float(np.sum(h * r))
    return error


def random_evidence(seed: int, channels: int, readers: int = 1) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    evidence = []
    for _ in range(readers):
        mix = rng.standard_normal((channels, channels)) * rng.uniform(0.1, 2, channels)
        m = rng.standard_normal((channels, 5))
        evidence.append((gram(mix @ rng.standard_normal((channels, 50))), m @ m.T))
    return evidence


def test_copies_are_chosen_once() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40))
    r = gram(x[[0, 1, 0, 2, 1, 0]])
    chosen = choose_channels([(r, np.eye(6))], 3)
    assert {[0, 1, 0, 2, 1, 0][j] for j in chosen} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_of_linear_combinations_a_basis_is_chosen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 40))
    r = gram(np.vstack([x, 1e-3 * x.sum(0), x[0] - x[1], 50 * rng.standard_normal((1, 3)) @ x]))
    evidence = [(r, np.eye(6))]
    assert lost(evidence, choose_channels(evidence, 3)) < 1e-9
    assert lost(evidence, choose_channels(evidence, 2)) > 1e-6


def test_constant_channels_come_last() -> None:
    x = np.random.default_rng(2).standard_normal((5, 40))
    x[[0, 3]] = 7.0
    r = gram(x)
    np.testing.assert_array_equal(choose_channels([(r, np.eye(5))], 3), [1, 2, 4])
    np.testing.assert_array_equal(choose_channels([(r, np.eye(5))], 4), [0, 1, 2, 4])


def test_nothing_but_constant_channels_keeps_their_order() -> None:
    np.testing.assert_array_equal(choose_channels([(np.zeros((5, 5)), np.eye(5))], 3), [0, 1, 2])
    np.testing.assert_array_equal(choose_channels([(np.eye(5), np.zeros((5, 5)))], 2), [0, 1])


def test_what_readers_see_decides() -> None:
    # Independent channels; the loudest is read by nobody, the quietest by large weights.
    r = np.diag([100.0, 1.0, 0.01, 4.0])
    h = np.diag([0.0, 1.0, 1e4, 1.0])
    np.testing.assert_array_equal(choose_channels([(r, h)], 2), [2, 3])
    np.testing.assert_array_equal(choose_channels([(r, np.eye(4))], 2), [0, 3])


def test_each_reader_counts_alike_whatever_its_scale() -> None:
    one = (np.diag([3.0, 2.0, 1.0]), np.eye(3))
    other = (np.diag([1.0, 2.0, 30.0]) * 1e-6, np.eye(3) * 1e-4)
    np.testing.assert_array_equal(choose_channels([one, other], 1), [2])
    np.testing.assert_array_equal(choose_channels([one, other, one, one], 1), [0])


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 3), st.data())
@settings(max_examples=60)
def test_properties(seed: int, channels: int, readers: int, data: st.DataObject) -> None:
    """Distinct and ascending; nested; the same under a permutation and under scales."""
    evidence = random_evidence(seed, channels, readers)
    before = [(r.copy(), h.copy()) for r, h in evidence]
    width = data.draw(st.integers(1, channels))
    chosen = choose_channels(evidence, width)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == width
    assert set(choose_channels(evidence, width - 1)) <= set(chosen)
    for (r, h), (r0, h0) in zip(evidence, before, strict=True):
        np.testing.assert_array_equal(r, r0)
        np.testing.assert_array_equal(h, h0)

    order = np.array(data.draw(st.permutations(range(channels))))
    turned = [(r[np.ix_(order, order)], h[np.ix_(order, order)]) for r, h in evidence]
    assert {int(order[j]) for j in choose_channels(turned, width)} == set(chosen)
    scaled = [(1e4 * r, 1e-4 * h) for r, h in evidence]
    np.testing.assert_array_equal(choose_channels(scaled, width), chosen)
    np.testing.assert_array_equal(choose_channels(evidence, channels), np.arange(channels))


def test_greedy_is_mostly_the_best_and_always_better_than_chance() -> None:
    best, better = 0, []
    for seed in range(40):
        evidence = random_evidence(seed, 7, 1 + seed % 2)
        errors = np.array([lost(evidence, kept) for kept in itertools.combinations(range(7), 3)])
        mine = lost(evidence, choose_channels(evidence, 3))
        assert mine < min(errors.mean(), float(np.median(errors)))
        best += int(mine <= errors.min() * (1 + 1e-9))
        better.append(np.mean(errors < mine * (1 - 1e-9)))
    assert best > 20
    assert np.mean(better) < 0.05


@pytest.mark.parametrize("readers", [1, 3])
def test_many_picks_are_those_of_plain_elimination(readers: int) -> None:
    """Matrices are formed anew on the way, and readers of the same array are one."""
    evidence = random_evidence(3, 90, readers)
    evidence += [(evidence[0][0], h) for _, h in random_evidence(4, 90)]
    rest = [(r.copy(), h / np.sum(h * r)) for r, h in evidence]
    picks: list[int] = []
    for _ in range(45):
        gains = sum(np.sum(r * (h @ r), axis=0) / np.maximum(np.diag(r), 1e-9) for r, h in rest)
        picks.append(max(set(range(90)) - set(picks), key=lambda j: float(gains[j])))
        rest = [
            (r - np.outer(r[picks[-1]], r[picks[-1]]) / r[picks[-1], picks[-1]], h) for r, h in rest
        ]
    np.testing.assert_array_equal(order_of_choice(evidence, 45), picks)


def test_a_reader_that_sees_nothing_has_no_say() -> None:
    [(r, h)] = random_evidence(3, 6)
    still, blind = np.zeros((6, 6)), np.zeros((6, 6))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        chosen = order_of_choice([(still, h), (r, blind), (r, h)], 4)
    np.testing.assert_array_equal(chosen, order_of_choice([(r, h)], 4))
