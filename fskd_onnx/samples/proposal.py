"""What a model's own metadata states about its images: proposed, never taken.

Two ways are in use: the metadata of ONNX for images (``Image.NominalPixelRange``,
``Image.BitmapPixelFormat``; https://github.com/onnx/onnx/blob/main/docs/MetadataProps.md), and
lists of numbers called ``mean`` and ``std`` that exporters write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import onnx

from fskd_onnx.errors import MissingNormalizationError, PreprocessError
from fskd_onnx.option_checks import is_number
from fskd_onnx.options import CHANNEL_COUNTS, PRESETS
from fskd_onnx.printable import shortened

_RANGE, _FORMAT = "Image.NominalPixelRange", "Image.BitmapPixelFormat"
_PRESET_OF_RANGE: Mapping[str, str] = MappingProxyType(
    {"NominalRange_0_255": "raw", "Normalized_0_1": "unit", "Normalized_1_1": "inception"}
)
_MEANS, _STDS = ("mean", "image_mean"), ("std", "image_std")
_TOLERANCE = 1e-3


@contextmanager
def proposing_preset(model: onnx.ModelProto) -> Iterator[None]:
    """Add what the metadata of a model states to the error that nothing says how it sees images.

    Raises:
        PreprocessError: the block raised it.
    """
    try:
        yield
    except MissingNormalizationError as error:
        stated = {entry.key: entry.value for entry in model.metadata_props}
        proposal = propose(stated)
        if not proposal:
            raise
        raise PreprocessError(f"{error}; {proposal}") from error


def propose(metadata: Mapping[str, str]) -> str:
    """Return what a model's metadata proposes, a clause; "" where it says nothing of images.

    Args:
        metadata: of the model, by key.
    """
    bgr = metadata.get(_FORMAT, "").lower().startswith("bgr")
    order = " --channel-order BGR" if bgr else ""
    preset = _PRESET_OF_RANGE.get(metadata.get(_RANGE, ""))
    if preset is not None:
        return (
            f"the model's metadata ({_RANGE} {metadata[_RANGE]}) proposes "
            f"--preprocess {preset}{order}"
        )
    mean = _numbers(metadata, _MEANS)
    std = _numbers(metadata, _STDS)
    if mean is None or std is None or min(std) <= 0:
        return ""
    named = next(
        (
            name
            for name, known in PRESETS.items()
            if _close(known.mean, mean) and _close(known.std, std)
        ),
        None,
    )
    texts = (",".join(f"{value:g}" for value in values) for values in (mean, std))
    given = "--mean {} --std {}".format(*texts)
    chosen = given if named is None else f"--preprocess {named}"
    return f"the model's metadata ({shortened(given)}) proposes {chosen}{order}"


def _numbers(metadata: Mapping[str, str], keys: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the numbers that one of some keys holds, one or one per channel; None without."""
    for key in keys:
        text = metadata.get(key, "")
        try:
            found = json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
        except (ValueError, RecursionError):
            continue
        if len(found) in CHANNEL_COUNTS and all(map(is_number, found)):
            return tuple(map(float, found))
    return None


def _close(known: tuple[float, ...], stated: tuple[float, ...]) -> bool:
    """Whether numbers are the same, one value standing for all channels."""
    count = max(len(known), len(stated))
    both = (values * (count // len(values)) for values in (known, stated))
    return all(abs(one - other) < _TOLERANCE for one, other in zip(*both, strict=True))
