"""Arrays that hold samples along their first axis, matched to the inputs of a model by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.images import fit_image, to_tensor
from fskd_onnx.samples.labels import LABEL_NAMES
from fskd_onnx.serialization.interface import InputSpec

UNNAMED = "one array without a name"
"""Key of an array that comes without a name."""

# A folder may hold more files than a process may have open, or than fit into memory.
_OPEN_AT_ONCE = 4


@dataclass(frozen=True)
class ArrayPart:
    """Arrays by input name that hold the same samples.

    Attributes:
        name: what to call them in an error.
        load: returns the arrays, (count, ...) each.
        count: number of samples.
        preprocess: how pixels become tensors.
    """

    name: str
    load: Callable[[], Mapping[str, NDArray[Any]]]
    count: int
    preprocess: Preprocess

    @classmethod
    def of(
        cls,
        name: str,
        load: Callable[[], Mapping[str, NDArray[Any]]],
        inputs: Sequence[InputSpec],
        preprocess: Preprocess,
    ) -> ArrayPart:
        """Check all that can be told without looking at values.

        Raises:
            SamplesError: an array is not what the model takes, or they differ in length.
        """
        arrays = load()
        for spec in inputs:
            _check_array(arrays[spec.name], spec, name)
        counts = {spec.name: len(arrays[spec.name]) for spec in inputs}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{key} has {count}" for key, count in counts.items())
            raise SamplesError(f"{name}: inputs differ in their number of samples: {listed}")
        return cls(name, load, next(iter(counts.values())), preprocess)

    def describe(self, index: int) -> str:
        """Return what to call one sample in an error."""
        return f"{self.name}, sample {index}"

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """Return one input of one sample, see `SourcePart.read`."""
        name = self.describe(index)
        sample = np.asarray(self.load()[spec.name][index])
        if _holds_pixels(sample.dtype, spec):
            pixels = fit_image(self.preprocess, sample, spec, name)
            tensor = to_tensor(self.preprocess, pixels[np.newaxis], spec)[0]
        else:
            # Overflow on the way to float16 is reported below as what it becomes: not finite.
            with np.errstate(over="ignore"):
                tensor = sample.astype(spec.dtype)
        return check_finite(tensor, name, spec)


def open_array_items(
    items: Sequence[Path],
    read: Callable[[Path, tuple[InputSpec, ...]], Mapping[str, NDArray[Any]]],
    inputs: tuple[InputSpec, ...],
    preprocess: Preprocess,
) -> list[ArrayPart]:
    """Open files or folders of arrays, few of them at a time.

    Args:
        items: their paths.
        read: returns the arrays of one of them by input name.
        inputs: the model's inputs.
        preprocess: how pixels become tensors.

    Raises:
        SamplesError: an item cannot be read, or is not what the model takes.
    """
    # The cache lives and dies with this call's samples, so it is never stale.
    cached = lru_cache(maxsize=_OPEN_AT_ONCE)(read)
    return [
        ArrayPart.of(str(item), partial(cached, item, inputs), inputs, preprocess) for item in items
    ]


def by_input(
    arrays: Mapping[str, Any], inputs: Sequence[InputSpec], name: str
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the model's inputs; a single array may have any name.

    Args:
        arrays: arrays by name; labels and others may be among them.
        inputs: the model's inputs.
        name: what to call the arrays in an error.

    Raises:
        SamplesError: an input has no array.
    """
    candidates = [key for key in arrays if key not in LABEL_NAMES]
    if len(inputs) == len(candidates) == 1 and inputs[0].name not in arrays:
        return {inputs[0].name: np.asarray(arrays[candidates[0]])}
    for spec in inputs:
        if spec.name not in arrays:
            raise SamplesError(
                f"{name}: has no array for the model's input {spec.name!r} (it has "
                f"{', '.join(candidates) or 'none'}); name the arrays after the inputs"
            )
    return {spec.name: np.asarray(arrays[spec.name]) for spec in inputs}


def check_finite(tensor: NDArray[Any], name: str, spec: InputSpec) -> NDArray[Any]:
    """Return a tensor whose values are all finite.

    Args:
        tensor: a sample as the model takes it.
        name: what to call the sample in an error.
        spec: the model's input.

    Raises:
        SamplesError: it holds NaN or infinite values.
    """
    if np.issubdtype(tensor.dtype, np.inexact) and not np.isfinite(tensor).all():
        raise SamplesError(
            f"{name}: holds NaN or infinite values as {spec.dtype} for input {spec.name!r}; "
            "remove or repair this sample"
        )
    return tensor


def _holds_pixels(dtype: np.dtype[Any], spec: InputSpec) -> bool:
    """Return whether values of a type are pixels, to be normalised for an input."""
    image_input = len(spec.shape) == 4 and np.issubdtype(spec.dtype, np.floating)
    return dtype == np.uint8 and image_input


def _check_array(array: NDArray[Any], spec: InputSpec, name: str) -> None:
    """Refuse an array whose type or shape cannot become the model's input."""
    shape = ", ".join("?" if size is None else str(size) for size in ("N", *spec.shape[1:]))
    takes = f"the model's input {spec.name!r} takes {spec.dtype} of shape ({shape})"
    if array.ndim == 0:
        raise SamplesError(f"{name}: is a single value; {takes}, the samples along the first axis")
    if _holds_pixels(array.dtype, spec):
        return
    both_float = all(np.issubdtype(dtype, np.floating) for dtype in (array.dtype, spec.dtype))
    if not both_float and array.dtype.newbyteorder("=") != spec.dtype:
        raise SamplesError(f"{name}: holds {array.dtype}; {takes}; convert the samples")
    fits = array.ndim == len(spec.shape) and all(
        wanted in (None, size) for wanted, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        raise SamplesError(
            f"{name}: has shape {array.shape}; {takes}, N being the number of samples"
        )
