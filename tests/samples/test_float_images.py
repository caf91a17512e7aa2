"""Floats that are given beside a normalisation, and pixels that are none, are said."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from fskd_onnx.options import Preprocess
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

IMAGE = (InputSpec("x", (None, 3, 4, 4), np.dtype(np.float32)),)
VECTOR = (InputSpec("x", (None, 6), np.dtype(np.float32)),)
UNIT = Preprocess(preset="unit")
NOISE = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("values", "preprocess", "said"),
    [
        (NOISE, UNIT, "look as if they were already normalised: floats"),
        (PIXELS.astype(np.float32), UNIT, "look like pixels of 0..255"),
        (PIXELS % 3, UNIT, "already normalised and then cast to uint8"),
        (PIXELS, UNIT, ""),
        (PIXELS * 0, UNIT, ""),
        (NOISE, Preprocess(), ""),
        (NOISE, Preprocess(layout="NCHW"), ""),
        (PIXELS.astype(np.float32), Preprocess(), ""),
    ],
)
def test_values_that_are_not_what_the_normalisation_is_for_are_said(
    values: Any, preprocess: Preprocess, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load_samples(values, IMAGE, preprocess)
    assert len(caplog.messages) == bool(said)
    assert all(said in message for message in caplog.messages)


def test_what_is_no_image_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_samples(np.zeros((4, 6), np.float32), VECTOR, UNIT)
    assert caplog.messages == []
