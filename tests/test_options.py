"""Options are complete or refused: no normalisation by default, no impossible value, no typo."""

from __future__ import annotations

from typing import Any

import pytest

from fskd_onnx.errors import PreprocessError
from fskd_onnx.options import PRESETS, FitOptions, Preprocess


def test_an_explicit_value_overrides_the_presets() -> None:
    constants = Preprocess(preset="imagenet", std=(0.25,), channel_order="BGR").resolve()
    assert constants.std == (0.25,)
    assert constants.mean == PRESETS["imagenet"].mean
    assert constants.scale == 1 / 255
    assert constants.channel_order == "BGR"


def test_what_is_not_given_beside_explicit_values_is_neutral() -> None:
    assert Preprocess(mean=(0.5,)).resolve().std == (1.0,)
    assert Preprocess(scale=1).resolve().leaves_pixels


def test_there_is_no_silent_default() -> None:
    for preprocess in (Preprocess(), Preprocess(layout="NHWC", resize=8, channel_order="RGB")):
        with pytest.raises(PreprocessError) as caught:
            preprocess.resolve()
        assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "vgg"}, "'vgg'; there are imagenet"),
        ({"mean": (0.1, 0.2)}, "mean has 2 values"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"scale": 0.0}, "scale must be a positive"),
        ({"scale": float("inf")}, "scale must be a positive"),
        ({"layout": "CHWN"}, "layout must be NCHW or NHWC"),
        ({"channel_order": "GBR"}, "channel_order must be RGB or BGR"),
        ({"resize": 0}, "resize must be at least 1"),
        ({"crop": (3, 0)}, "crop must be at least 1"),
    ],
)
def test_impossible_values_are_refused_at_once(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PreprocessError, match=words.replace("(", r"\(")):
        Preprocess(**arguments)


@pytest.mark.parametrize("option", ["adapter", "targets", "solver"])
def test_unknown_names_are_refused_and_strings_will_do(option: str) -> None:
    arguments: dict[str, Any] = {option: "nonsense"}
    with pytest.raises(ValueError, match="nonsense"):
        FitOptions(**arguments)
    assert FitOptions(adapter="kernel", targets="kept", solver="numpy").adapter == "kernel"
