"""Sensitivities of linear networks, where it is known what they are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fskd_onnx.compression import analysis, sensitivity
from fskd_onnx.compression.analysis import analyse
from fskd_onnx.compression.channel_scores import reader_places
from fskd_onnx.compression.output_errors import output_errors
from fskd_onnx.compression.sensitivity import Sensitivity, probes
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.runtime.tensor_store import TensorStore
from tests.compressible import cpu, loaded, options
from tests.helpers import Array, build

N, COUNT = 4, 32


def orthogonal(seed: int, size: int = N) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def white() -> Array:
    """Give samples (COUNT, N) with a mean of zero that vary alike and independently."""
    drawn = np.random.default_rng(0).standard_normal((COUNT, N))
    return np.linalg.qr(drawn - drawn.mean(axis=0))[0].astype(np.float32)


def sensitivities(model: onnx.ModelProto, samples: Array, seed: int = 0) -> dict[str, Sensitivity]:
    """Give the sensitivity of each node."""
    own, chosen, runtime = loaded(model), options(), cpu()
    graph = own.graph()
    channels = PrunableChannels(graph)
    views = list(channels.linears.values())
    with TensorStore() as store:
        read = open_samples({"x": samples}, own, chosen.run)
        divided = divide_samples((own,), read, chosen.fit, store, runtime)
        batches, decoded = divided.splits.final.batches, divided.decoded
        moments = analyse(runtime, graph, views, reader_places(channels), decoded, batches)
        nodes = [replace(node, patches=None) for node in moments]  # which are not kept for long
        probed = probes(nodes, seed)
        changes = [change for probe in probed for change in probe.changes]
        errors = output_errors(runtime, own.graph, changes, decoded, batches)
    return {probe.node: probe.sensitivity(errors) for probe in probed}


def found(model: onnx.ModelProto, samples: Array, seed: int = 0) -> dict[str, float]:
    """Give what small errors of each node are felt by."""
    return {name: one.slope for name, one in sensitivities(model, samples, seed).items()}


@pytest.mark.parametrize("most", [1024, 3])
def test_an_error_of_a_node_passes_through_rotations_as_it_is(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    for module in (analysis, sensitivity):
        monkeypatch.setattr(module, "MOST_OUTPUTS", most)
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float[4] b, float[4,4] c> {
            [one] y = Gemm (x, a, b)
            [two] z = MatMul (y, c)
        }""",
        {"a": orthogonal(1), "c": 3 * orthogonal(2), "b": [5, -5, 100, 0]},
    )
    assert found(model, white()) == pytest.approx({"one": 1, "two": 1}, rel=1e-3)


def test_branches_are_felt_by_their_share_of_the_output() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,8] z) <float[4,4] a, float[4,4] b> {
            [one] y1 = MatMul (x, a)
            [two] y2 = MatMul (x, b)
            k = Concat <axis = 1> (y1, y2)
            z = Neg (k)
        }""",
        {"a": orthogonal(1), "b": 2 * orthogonal(2)},
    )
    assert found(model, white()) == pytest.approx({"one": 0.2, "two": 0.8}, rel=1e-3)


def test_what_is_joined_last_counts_on_its_own_scale() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,8] z) <float[4,4] a, float[4,4] b> {
            [boxes] y1 = MatMul (x, a)
            [scores] y2 = MatMul (x, b)
            z = Concat <axis = 1> (y1, y2)
        }""",
        {"a": 1000 * orthogonal(1), "b": orthogonal(2)},
    )
    assert found(model, white()) == pytest.approx({"boxes": 0.5, "scores": 0.5}, rel=1e-3)


def test_what_nothing_reads_is_not_felt() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float[4,4] b, float[4,4] c> {
            [one] y1 = MatMul (x, a)
            [two] y2 = MatMul (y1, b)
            [three] y3 = MatMul (x, c)
            z = Add (y2, y3)
        }""",
        {"b": np.zeros((4, 4))},
    )
    felt = found(model, white())
    assert felt["one"] == 0
    assert felt["two"] == 0
    assert felt["three"] > 0.5


def test_a_constant_output_feels_nothing() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float zero> {
            [one] y = MatMul (x, a)
            z = Mul (y, zero)
        }""",
        {"zero": 0.0},
    )
    assert found(model, white()) == {"one": 0}


def test_the_seed_decides() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float[4,4] c> {
            [one] y = MatMul (x, a)
            r = Relu (y)
            [two] z = MatMul (r, c)
        }"""
    )
    assert found(model, white(), 1) == found(model, white(), 1) != found(model, white(), 2)
    assert all(math.isfinite(value) for value in found(model, white()).values())


def test_a_linear_network_feels_a_large_error_as_it_feels_a_small_one() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float[4,4] c> {
            [one] y = MatMul (x, a)
            [two] z = MatMul (y, c)
        }""",
        {"a": orthogonal(1), "c": orthogonal(2)},
    )
    assert [one.curvature for one in sensitivities(model, white()).values()] == pytest.approx(
        [0, 0], abs=1e-3
    )


def test_what_is_missing_is_felt_more_than_noise_where_it_decides() -> None:
    """The output is only the product with what varies least."""
    model = build(
        """g (float[N,4] x) => (float[N,1] z) <float[4,4] a, float[4,1] c> {
            [one] y = MatMul (x, a)
            [two] z = MatMul (y, c)
        }""",
        {"a": np.diag([4.0, 4.0, 4.0, 1.0]), "c": [[0], [0], [0], [1]]},
    )
    felt = sensitivities(model, white())["one"]
    # Without it, a 49th of the variation, nothing of the output is left.
    assert felt.output_error(1 / 49) == pytest.approx(1, rel=1e-3)


def test_what_overflows_is_felt_without_end_and_no_error_not_at_all() -> None:
    felt = Sensitivity(math.inf, math.inf)
    assert felt.output_error(0.0) == 0
    assert felt.output_error(0.1) == math.inf


def test_errors_of_a_response_of_one_direction_are_small_ones() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,1] z) <float[4,1] a> {
            [one] y = MatMul (x, a)
            z = Relu (y)
        }"""
    )
    assert sensitivities(model, white())["one"].curvature == 0


@pytest.mark.parametrize("most", [1024, 2])
def test_channels_of_groups_and_of_wide_nodes_are_left_out_one_by_one(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    for module in (analysis, sensitivity):
        monkeypatch.setattr(module, "MOST_OUTPUTS", most)
    model = build(
        """g (float[N,4,1,1] x) => (float[N,4,1,1] z) <float[4,2,1,1] a, float[4,4,1,1] c> {
            [one] y = Conv <group = 2> (x, a)
            [two] z = Conv (y, c)
        }""",
        {
            "a": np.array([[4, 0], [0, 4], [4, 0], [0, 1]])[..., np.newaxis, np.newaxis],
            "c": np.diag([0.0, 0.0, 0.0, 1.0])[..., np.newaxis, np.newaxis],
        },
    )
    felt = sensitivities(model, white()[..., np.newaxis, np.newaxis])["one"]
    assert felt.output_error(1 / 49) == pytest.approx(1, rel=1e-3)


def test_the_channels_of_a_wide_node_are_mixed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of them together are a matrix of as many columns as rows: 40 GB of 100,000 classes.
    monkeypatch.setattr(sensitivity, "MOST_OUTPUTS", 100)
    mixed = sensitivity._with_noise((0, 0), np.eye(350)[np.newaxis])[0] - np.eye(350)
    np.testing.assert_allclose((mixed**2).sum(axis=0), sensitivity._SMALL)
    counts = np.count_nonzero(mixed, axis=0)
    assert set(counts) <= {87, 88}
    assert np.linalg.matrix_rank(mixed) == 350


def test_least_directions_of_a_wide_node_are_those_of_its_patches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Twelve channels that vary along two directions, the lesser one by a fifth of both.
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((12, 2)))[0]
    model = build(
        """g (float[N,4] x) => (float[N,1] z) <float[4,12] a, float[12,1] c> {
            [one] y = Gemm (x, a)
            [two] z = MatMul (y, c)
        }""",
        {"a": np.vstack([2 * turned[:, 0], turned[:, 1], np.zeros((2, 12))]), "c": turned[:, 1:]},
    )
    for module in (analysis, sensitivity):
        monkeypatch.setattr(module, "MOST_OUTPUTS", 8)
    # The reader sees the lesser direction alone: without it, nothing is left of the output.
    felt = sensitivities(model, white())["one"]
    # Each half of the samples has a mean of its own.
    assert felt.output_error(0.2) == pytest.approx(1, rel=0.02)
