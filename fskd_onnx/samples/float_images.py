"""Whether arrays for an image input look like what a user takes them for.

Images and uint8 arrays are normalised, floats are ready tensors: who gives floats and a
normalisation expects one of the two to be otherwise, and hears which it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import ArrayPart, is_image_input
from fskd_onnx.serialization.interface import InputSpec

logger = logging.getLogger(__name__)

# Samples that are looked at.
_LOOKED_AT = 16
# Pixels of 0..255 reach beyond what normalised ones do; cast to uint8 these are next to nothing.
_NORMALISED, _CAST = 20.0, 3


def tell_of_values(part: ArrayPart, inputs: Sequence[InputSpec], preprocess: Preprocess) -> None:
    """Log a warning where the values of an image input are not what the normalisation is for.

    Args:
        part: the first of a source.
        inputs: the model's inputs.
        preprocess: what was asked for.
    """
    for spec in inputs:
        if is_image_input(spec) and part.axes[spec.name] is not None:
            said = _note(np.asarray(part.load()[spec.name][:_LOOKED_AT]), preprocess)
            if said:
                logger.warning("%s: %s", part.name, said)


def _note(values: NDArray[Any], preprocess: Preprocess) -> str:
    """Return what there is to say of values; "" where there is nothing."""
    if not values.size:
        return ""
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8:
        if 0 < high <= _CAST:
            return (
                f"these pixels, from {low:g} to {high:g}, look as if they were already normalised "
                "and then cast to uint8, which leaves next to nothing of them; save pixels of "
                "0..255, or the floats"
            )
        return ""
    asked = (preprocess.preset, preprocess.mean, preprocess.std, preprocess.scale)
    if all(value is None for value in asked) or not np.issubdtype(values.dtype, np.floating):
        return ""
    if low >= 0 and _NORMALISED < high <= 255:
        return (
            f"floats from {low:g} to {high:g} look like pixels of 0..255, and floats are taken as "
            "they are: the normalisation is for images and uint8; save them as uint8"
        )
    return (
        f"these pixels, from {low:.3g} to {high:.3g}, look as if they were already normalised: "
        "floats are taken as they are, the normalisation is for images and uint8"
    )
