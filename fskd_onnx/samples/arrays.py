"""Arrays of samples, matched to the inputs of a model by name.

The samples lie along the axis on which the input has them; along the first one where only that
fits. An array that is what an input takes as a whole is the same for all samples.
"""

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
        load: returns the arrays.
        count: number of samples.
        axes: the axis of each array that the samples lie on; None for one that all samples share.
        preprocess: how pixels become tensors.
    """

    name: str
    load: Callable[[], Mapping[str, NDArray[Any]]]
    count: int
    axes: Mapping[str, int | None]
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
            _check_type(arrays[spec.name], spec, name)
        readings = {spec.name: _readings(arrays[spec.name], spec, name) for spec in inputs}
        count = _common_count(readings, name)
        axes = {
            key: next(axis for axis, size in found if size in (None, count))
            for key, found in readings.items()
        }
        return cls(name, load, count, axes, preprocess)

    def describe(self, index: int) -> str:
        """Return what to call one sample in an error."""
        return f"{self.name}, sample {index}"

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """Return one input of one sample, see `SourcePart.read`."""
        name = self.describe(index)
        array, axis = self.load()[spec.name], self.axes[spec.name]
        if axis is not None:
            sample = np.asarray(array[(slice(None),) * axis + (index,)])
        else:
            sample = np.asarray(array if array.ndim == len(spec.shape) else array[0])
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
        SamplesError: an input has no array, or there are none.
    """
    if not isinstance(arrays, Mapping) or not all(isinstance(key, str) for key in arrays):
        raise SamplesError(f"{name}: are no arrays by input name; give a dict of arrays")
    candidates = [key for key in arrays if key not in LABEL_NAMES]
    if len(inputs) == len(candidates) == 1 and inputs[0].name not in arrays:
        return {inputs[0].name: _array(arrays[candidates[0]], name)}
    for spec in inputs:
        if spec.name not in arrays:
            raise SamplesError(
                f"{name}: has no array for the model's input {spec.name!r} (it has "
                f"{', '.join(candidates) or 'none'}); name the arrays after the inputs"
            )
    return {spec.name: _array(arrays[spec.name], name) for spec in inputs}


def _array(values: Any, name: str) -> NDArray[Any]:
    """Return values as an array.

    Raises:
        SamplesError: they are none.
    """
    try:
        return np.asarray(values)
    except ValueError as error:  # lists of several lengths
        raise SamplesError(f"{name}: are lists of several lengths; give an array") from error


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


def is_image_input(spec: InputSpec) -> bool:
    """Return whether an input may be one of normalised images."""
    return bool(spec.axis == 0 and len(spec.shape) == 4 and np.issubdtype(spec.dtype, np.floating))


def _holds_pixels(dtype: np.dtype[Any], spec: InputSpec) -> bool:
    """Return whether values of a type are pixels, to be normalised for an input."""
    return dtype == np.uint8 and is_image_input(spec)


_Reading = tuple[int | None, int | None]
"""The axis of an array that samples lie on and their number, or None twice where all share it."""


def _takes(spec: InputSpec) -> str:
    """Return a clause that says what an input takes."""
    sizes = ["?" if size is None else str(size) for size in spec.shape]
    if spec.axis is not None:
        sizes[spec.axis] = "N"
    return f"the model's input {spec.name!r} takes {spec.dtype} of shape ({', '.join(sizes)})"


def _check_type(array: NDArray[Any], spec: InputSpec, name: str) -> None:
    """Refuse an array whose type cannot become the input's."""
    if array.ndim == 0 and spec.axis is not None:
        raise SamplesError(
            f"{name}: is a single value; {_takes(spec)}, N being the number of samples"
        )
    both_float = all(np.issubdtype(dtype, np.floating) for dtype in (array.dtype, spec.dtype))
    converts = both_float or _holds_pixels(array.dtype, spec)
    if not converts and array.dtype.newbyteorder("=") != spec.dtype:
        raise SamplesError(f"{name}: holds {array.dtype}; {_takes(spec)}; convert the samples")


def _readings(array: NDArray[Any], spec: InputSpec, name: str) -> list[_Reading]:
    """Return the ways in which an array may hold an input of samples, the usual one first."""
    found: list[_Reading] = []
    if _holds_pixels(array.dtype, spec):
        return [(0, len(array))]
    if spec.axis is not None:
        for axis in dict.fromkeys((spec.axis, 0)):
            sample = *array.shape[:axis], *array.shape[axis + 1 :]
            if array.ndim == len(spec.shape) and _fits(sample, spec.sample_shape):
                found.append((axis, array.shape[axis]))
    elif array.ndim == len(spec.shape) + 1 and _fits(array.shape[1:], spec.shape):
        if not len(array) or (array != array[:1]).any():
            raise SamplesError(
                f"{name}: holds several values for the model's input {spec.name!r}, which is the "
                "same for all samples; give one"
            )
        found.append((None, None))
    if (spec.axis is None or spec.batch_size) and _fits(array.shape, spec.shape):
        found.append((None, None))
    if not found:
        number = ", N being the number of samples" if spec.axis is not None else ""
        raise SamplesError(f"{name}: has shape {array.shape}; {_takes(spec)}{number}")
    return found


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(
        size in (None, extent) for size, extent in zip(wanted, shape, strict=True)
    )


def _common_count(readings: Mapping[str, Sequence[_Reading]], name: str) -> int:
    """Return the number of samples that all arrays may hold."""
    usual = {key: found[0][1] for key, found in readings.items() if found[0][1] is not None}
    counts = [size for found in readings.values() for _, size in found if size is not None]
    for count in counts:
        sizes = ([size for _, size in found] for found in readings.values())
        if all(count in found or None in found for found in sizes):
            return count
    if not counts:
        raise SamplesError(f"{name}: holds no input that differs from sample to sample")
    listed = ", ".join(f"{key} has {count}" for key, count in usual.items())
    raise SamplesError(
        f"{name}: inputs differ in their number of samples: {listed}; give as many of each"
    )
