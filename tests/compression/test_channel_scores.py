"""How much channels are worth, by each method, and what readers make of them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.compression.analysis import NodeMoments
from fskd_onnx.compression.channel_scores import (
    channel_scores,
    normalization_scales,
    reader_places,
    unit_readings,
)
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from tests.compressible import loaded, options, teacher
from tests.helpers import Array, initializers


def scores(name: str, method: str, unit: str) -> Array | None:
    own = loaded(teacher(name))
    channels = PrunableChannels(own.graph())
    (found,) = [one for one in channels.units if one.name == unit]
    readings = unit_readings(found, channels, reader_places(channels), None)
    scales = normalization_scales(own.model)
    chosen = options(methods=(method,))
    return channel_scores(found, channels, readings, scales, chosen, False).get(method)


def test_l1_adds_up_the_filters_of_all_writers() -> None:
    weights = initializers(teacher("residual"))
    expected = sum(np.abs(weights[name]).sum(axis=(1, 2, 3)) for name in ("w1", "w3"))
    found = scores("residual", "l1", "c1")
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_slimming_is_the_scale_of_the_normalization_behind() -> None:
    found = scores("normalized", "slimming", "c1")
    assert found is not None
    np.testing.assert_allclose(found, [1, 0.1, 1, 1, 0.2, 1, 0.1, 1], rtol=1e-6)
    assert scores("chain", "slimming", "c1") is None


def test_thinet_tells_nothing_without_samples() -> None:
    assert scores("chain", "thinet", "c1") is None


@pytest.mark.parametrize(
    ("name", "reader", "unit"), [("chain", "c2", "c1"), ("flatten", "f1", "c1")]
)
def test_what_a_reader_makes_of_channels(name: str, reader: str, unit: str) -> None:
    channels = PrunableChannels(loaded(teacher(name)).graph())
    (found,) = [one for one in channels.units if one.name == "c1"]
    (reading,) = unit_readings(found, channels, reader_places(channels), None)
    weights = initializers(teacher(name))["w2"].astype(np.float64)
    if name == "flatten":
        weights = weights.reshape(found.width, -1)
    else:
        weights = weights.transpose(1, 0, 2, 3).reshape(found.width, -1)
    assert reading.reader == reader
    np.testing.assert_allclose(reading.weights, weights @ weights.T, rtol=1e-6, atol=1e-9)


def test_channels_of_other_groups_make_up_for_nothing() -> None:
    graph: gs.Graph = loaded(teacher("grouped")).graph()
    channels = PrunableChannels(graph)
    unit = channels.units[0]
    every = np.ones((8, 8)) + np.eye(8)
    moments = {
        "gr": NodeMoments(
            channels.linears["gr"],
            None,
            {unit.name: (every, every)},
            np.zeros((2, 4)),
            np.ones((2, 4, 4)),
        )
    }
    (reading,) = unit_readings(unit, channels, reader_places(channels), moments)
    expected = every * np.kron(np.eye(2), np.ones((4, 4)))
    np.testing.assert_array_equal(reading.fitted, expected)
    np.testing.assert_array_equal(reading.judged, expected)
    assert not reading.weights[:4, 4:].any()
