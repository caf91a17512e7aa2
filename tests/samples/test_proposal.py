"""A model's metadata proposes a normalisation, and is never taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from fskd_onnx import RunOptions, compare
from fskd_onnx.errors import PreprocessError
from fskd_onnx.samples.proposal import propose
from tests.helpers import build


@pytest.mark.parametrize(
    ("metadata", "proposal"),
    [
        ({"Image.NominalPixelRange": "Normalized_0_1"}, "proposes --preprocess unit"),
        (
            {
                "Image.NominalPixelRange": "NominalRange_0_255",
                "Image.BitmapPixelFormat": "Bgr8",
            },
            "proposes --preprocess raw --channel-order BGR",
        ),
        ({"Image.NominalPixelRange": "Normalized_1_1"}, "proposes --preprocess inception"),
        (
            {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"},
            "proposes --preprocess imagenet",
        ),
        ({"image_mean": "0.5", "image_std": "0.5"}, "proposes --preprocess inception"),
        ({"mean": "0.1,0.2,0.3", "std": "1"}, "proposes --mean 0.1,0.2,0.3 --std 1"),
    ],
)
def test_what_metadata_states_is_proposed(metadata: dict[str, str], proposal: str) -> None:
    assert propose(metadata).endswith(proposal)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"Image.NominalPixelRange": "NominalRange_16_235"},
        {"mean": "0.5"},
        {"mean": "nonsense", "std": "1"},
        {"mean": "[[[", "std": "1"},
        {"mean": "0.5", "std": "0"},
        {"mean": "NaN", "std": "1"},
        {"mean": "1,2", "std": "1,2"},
    ],
)
def test_what_states_nothing_proposes_nothing(metadata: dict[str, str]) -> None:
    assert propose(metadata) == ""


def test_the_error_that_lists_presets_proposes_one() -> None:
    model = build("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu (x) }")
    pixels = np.arange(5 * 48, dtype=np.uint8).reshape(5, 3, 4, 4)
    run = RunOptions(("cpu",))
    with pytest.raises(PreprocessError) as plain:
        compare(model, model, pixels, run)
    model.metadata_props.add(key="Image.NominalPixelRange", value="Normalized_1_1")
    with pytest.raises(PreprocessError) as proposed:
        compare(model, model, pixels, run)
    assert str(proposed.value) == (
        f"{plain.value}; the model's metadata (Image.NominalPixelRange Normalized_1_1) proposes "
        "--preprocess inception"
    )
