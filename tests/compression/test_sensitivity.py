"""Sensitivities of linear networks, where it is known what they are."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from fskd_onnx.compression.analysis import analyse
from fskd_onnx.compression.channel_scores import reader_places
from fskd_onnx.compression.output_errors import output_errors
from fskd_onnx.compression.sensitivity import noises, sensitivity
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


def found(model: onnx.ModelProto, samples: Array, seed: int = 0) -> dict[str, float]:
    """Give the sensitivity of each node."""
    own, chosen, runtime = loaded(model), options(), cpu()
    graph = own.graph()
    channels = PrunableChannels(graph)
    views = list(channels.linears.values())
    with TensorStore() as store:
        read = open_samples({"x": samples}, own, chosen.run)
        divided = divide_samples((own,), read, chosen.fit, store, runtime)
        batches, decoded = divided.splits.final.batches, divided.decoded
        nodes = list(analyse(runtime, graph, views, reader_places(channels), decoded, batches))
        changes = noises(nodes, seed)
        errors = output_errors(runtime, own.graph, changes, decoded, batches)
    return {change.name: sensitivity(errors[change]) for change in changes}


def test_an_error_of_a_node_passes_through_rotations_as_it_is() -> None:
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
            z = Concat <axis = 1> (y1, y2)
        }""",
        {"a": orthogonal(1), "b": 2 * orthogonal(2)},
    )
    assert found(model, white()) == pytest.approx({"one": 0.2, "two": 0.8}, rel=1e-3)


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
