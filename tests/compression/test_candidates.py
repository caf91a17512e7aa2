"""Levels of units: within the limits, with the errors of their readers, or a reason."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx.compress_options import CompressOptions
from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.candidates import (
    Candidates,
    block_candidate,
    factor_candidates,
    full_ranks,
    width_candidates,
)
from fskd_onnx.compression.channel_scores import greedy_scores
from fskd_onnx.compression.factor_ranks import chain_costs
from fskd_onnx.compression.sensitivity import Sensitivity
from fskd_onnx.compression.width_errors import Reading
from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape
from tests.compressible import options, teacher
from tests.helpers import linears


def unit(width: int, groups: int = 1, reason: str = "") -> ChannelUnit:
    members = {"w": tuple(range(width))}
    return ChannelUnit("w", ("w",), ("r",), width, groups, reason, members)


def reading(width: int, seed: int = 0) -> Reading:
    rng = np.random.default_rng(seed)
    weights, columns = rng.standard_normal((width, 5)), rng.standard_normal((width, 4 * width))
    return Reading("r", weights @ weights.T, columns @ columns.T, columns @ columns.T)


def widths(found: Candidates) -> list[int]:
    return [level.after[0] for level in found.levels]


@pytest.mark.parametrize(
    ("width", "groups", "round_to", "ratio", "expected"),
    [
        (10, 1, 1, 0.9, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (10, 1, 8, 0.9, [10, 8, 6, 4, 2]),
        (24, 1, 8, 0.9, [24, 20, 16, 12, 8, 4]),
        (64, 1, 8, 0.5, [64, 56, 48, 40, 32]),
        (64, 1, 8, 1.0, [64, 56, 48, 40, 32, 24, 16, 8]),
        (12, 4, 1, 0.9, [12, 8, 4]),
        (64, 1, 16, 0.1, [64]),
        (3, 1, 8, 0.9, [3, 2]),
    ],
)
def test_widths_are_within_the_limits(
    width: int, groups: int, round_to: int, ratio: float, expected: list[int]
) -> None:
    chosen = CompressOptions(round_to=round_to, max_ratio=ratio)
    scores = {"l1": np.arange(width, dtype=float)}
    found = width_candidates(unit(width, groups), scores, [reading(width)], {}, chosen)
    assert widths(found) == expected
    assert bool(found.reason) == (len(expected) == 1)
    for level in found.levels[1:]:
        assert level.kept is not None
        assert len(level.kept) == level.after[0]


def test_wide_units_have_few_levels() -> None:
    scores = {"l1": np.arange(160.0)}
    same = np.eye(160)
    one = Reading("r", same, same, same)
    found = width_candidates(unit(160), scores, [one], {}, CompressOptions())
    assert len(found.levels) == 13
    assert widths(found)[-1] == 16


def test_each_width_takes_the_method_of_the_least_error() -> None:
    seen = reading(8)
    scores = {"l1": np.arange(8.0), "thinet": np.arange(8.0)[::-1]}
    found = width_candidates(unit(8), scores, [seen], {"r": Sensitivity(0.25, 3.0)}, options())
    for level in found.levels[1:]:
        count = level.after[0]
        kept = {"l1": range(8 - count, 8), "thinet": range(count)}
        errors = {method: seen.errors([channels])[0] for method, channels in kept.items()}
        least = min(errors.values())
        assert level.error == pytest.approx(0.25 * least + 3 * least**2)
        assert level.method == min(errors, key=lambda method: errors[method])


def test_errors_of_all_readers_add_up() -> None:
    one, other = reading(6), Reading("q", *[np.eye(6)] * 3)
    scores = {"l1": np.arange(6.0)}
    weights = {"r": Sensitivity(0.5), "q": Sensitivity(2.0)}
    found = width_candidates(unit(6), scores, [one, other], weights, options())
    for level in found.levels[1:]:
        assert level.kept is not None
        expected = 0.5 * one.errors([level.kept])[0] + 2 * other.errors([level.kept])[0]
        assert level.error == pytest.approx(expected)


def test_what_stays_whole_has_a_reason() -> None:
    scores = {"l1": np.arange(8.0)}
    for found, why in (
        (width_candidates(unit(8, reason="no"), scores, [reading(8)], {}, options()), "no"),
        (width_candidates(unit(8), {}, [reading(8)], {}, options()), "no method"),
        (width_candidates(unit(8), scores, [], {}, options()), "nothing is known"),
        (width_candidates(unit(8), scores, [reading(8)], {}, options(), "skip"), "skip"),
        (block_candidate("s", 0.5, "why"), "why"),
    ):
        assert len(found.levels) == 1
        assert found.levels[0].method == ""
        assert why in found.reason
    assert [level.after for level in block_candidate("s", 0.5, "").levels] == [(1,), (0,)]


def test_greedy_takes_first_what_explains_most() -> None:
    gram = np.diag([1.0, 5.0, 3.0])
    assert greedy_scores([Reading("r", np.eye(3), gram, gram)]).tolist() == [1, 3, 2]


def test_chains_are_those_that_are_allowed_and_cost_no_less_than_the_limit() -> None:
    linear = linears(teacher("two blocks"))["c2"]
    shape = LinearShape.of(linear)
    every = factor_candidates(linear, None, options())
    assert every.kind == UnitKind.FACTORS
    assert {level.method for level in every.levels[1:]} == set(Form)
    some = factor_candidates(linear, None, options(methods=("tucker", "l1"), max_ratio=0.5)).levels
    assert {level.method for level in some[1:]} == {"tucker"}
    whole = shape.inputs * shape.outputs * shape.taps
    for level in some[1:]:
        cost = chain_costs(Form.TUCKER, shape, level.after, (1, 1), (1, 1)).parameters
        assert whole / 2 <= cost < whole
        assert all(
            rank < full
            for rank, full in zip(level.after, full_ranks(linear, Form.TUCKER), strict=True)
        )
    assert factor_candidates(linear, None, options(methods=("l1",))).levels == some[:1]


@pytest.mark.parametrize(("methods", "most"), [(("auto",), 3), (("decouple",), 4)])
def test_auto_has_no_terms_that_take_as_long_as_the_node(
    methods: tuple[str, ...], most: int
) -> None:
    linear = linears(teacher("two blocks"))["c2"]
    levels = factor_candidates(linear, None, CompressOptions(methods=methods, max_ratio=1.0)).levels
    terms = [level.after[0] for level in levels if level.method == Form.DECOUPLE]
    assert terms[0] == most


def test_errors_of_chains_fall_with_the_rank() -> None:
    linear = linears(teacher("two blocks"))["c2"]
    only = options(methods=("channel-svd",))
    levels = factor_candidates(linear, None, only).levels
    errors = [level.error for level in levels[1:]]
    assert errors == sorted(errors)
    spectrum = np.linalg.svd(linear.matrix[0], compute_uv=False) ** 2
    for level in levels[1:]:
        tail = spectrum[level.after[0] :].sum() / spectrum.sum()
        assert level.error == pytest.approx(tail, rel=1e-6, abs=1e-9)


def test_a_node_that_cannot_be_a_chain_says_why() -> None:
    grouped = linears(teacher("grouped"))["gr"]
    found = factor_candidates(grouped, None, options(), "nothing is known of it")
    assert (len(found.levels), found.reason) == (1, "it has groups")
    plain = linears(teacher("grouped"))["c3"]
    found = factor_candidates(plain, None, options(), "nothing is known of it")
    assert (len(found.levels), found.reason) == (1, "nothing is known of it")
