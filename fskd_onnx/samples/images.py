"""Images -> tensors: resize and crop, then ``(pixel * scale - mean) / std`` in the model's layout.

No normalisation is guessed: a wrong one gives plausible numbers and a bad fit, so images without a
preset or explicit values are an error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fskd_onnx.errors import PreprocessError
from fskd_onnx.options import CHANNEL_COUNTS, Layout, Preprocess

if TYPE_CHECKING:
    from fskd_onnx.serialization.interface import InputSpec


_MODES = {1: "L", 3: "RGB"}
# Pillow converts these modes to 8 bits by clipping, which turns nearly every pixel white.
_DEEP_MODES = ("I", "F")
# In pixels; an image of a few bytes can be a million times as long as it is wide.
_LARGEST = 2**28


def fit_image(
    preprocess: Preprocess, image: Image.Image | NDArray[np.uint8], spec: InputSpec, name: str
) -> NDArray[np.uint8]:
    """Bring one image to the channels and the size that the model takes.

    Args:
        preprocess: what was asked for.
        image: any 8-bit image, or pixels H x W, H x W x C or C x H x W with C = 1 or 3.
        spec: the model's input.
        name: what to call the image in an error.

    Returns:
        Pixels, height x width x channels, channels in RGB order.

    Raises:
        PreprocessError: the image cannot be brought to the model's size with what was asked
            for, has more than 8 bits per channel, or the input takes no images.
    """
    preprocess.resolve(name)  # says which image it is about; what uses the constants could not
    target = _ImageInput.of(spec, preprocess.layout)
    if isinstance(image, np.ndarray):
        image = _to_image(image, target, name)
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise PreprocessError(
            f"{name}: has more than 8 bits per channel (mode {image.mode}); "
            "convert it to 8 bits, or give the tensors as .npy"
        )
    image = image.convert(_MODES[target.channels])
    if preprocess.resize is not None:
        size = _resized(image.size, preprocess.resize)
        if math.prod(size) > _LARGEST:
            raise PreprocessError(
                f"{name}: is {image.height} x {image.width} pixels and --resize makes it "
                f"{size[1]} x {size[0]}, which is too large; give --resize HxW"
            )
        image = image.resize(size, Image.Resampling.BILINEAR)
    if preprocess.crop is not None:
        image = _centre_crop(image, preprocess.crop, name)
    width, height = image.size
    if not (_agrees(target.height, height) and _agrees(target.width, width)):
        given = {"--resize": preprocess.resize, "--crop": preprocess.crop}
        options = " and ".join(option for option, value in given.items() if value is not None)
        raise PreprocessError(
            f"{name}: is {height} x {width} pixels{f' after {options}' if options else ''} and the "
            f"model's input {spec.name!r} takes {target.height or 'any'} x "
            f"{target.width or 'any'}; give {_sizes_to_give(target)}"
        )
    return np.asarray(image, dtype=np.uint8).reshape(height, width, target.channels)


def to_tensor(preprocess: Preprocess, pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    """Normalise pixels and put them in the model's layout.

    Args:
        preprocess: what was asked for.
        pixels: N x H x W (grayscale) or N x H x W x C with C channels in RGB order.
        spec: the model's input; its type is the result's type. An input that takes uint8
            does its own normalisation and gets the pixels, if that is what was asked for.

    Returns:
        N x C x H x W or N x H x W x C, contiguous.

    Raises:
        PreprocessError: no normalisation is given, it does not suit the channels or the
            input's type, or the input takes no images.
    """
    constants = preprocess.resolve()
    target = _ImageInput.of(spec, preprocess.layout)
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    channels = pixels.shape[-1]
    for values in (constants.mean, constants.std):
        if len(values) not in (1, channels):
            raise PreprocessError(
                f"the normalisation has {len(values)} values per pixel and the model's input "
                f"{spec.name!r} takes {channels} channel(s); give --mean and --std to match"
            )
    if constants.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    if np.issubdtype(spec.dtype, np.floating):
        tensor = (pixels * constants.scale - constants.mean) / np.asarray(constants.std)
    elif spec.dtype == np.uint8 and constants.leaves_pixels:
        tensor = pixels
    elif spec.dtype == np.uint8:
        raise PreprocessError(
            f"the model's input {spec.name!r} takes uint8 pixels, so it normalises them "
            "itself; give --preprocess raw"
        )
    else:
        raise PreprocessError(
            f"the model's input {spec.name!r} takes {spec.dtype}, which images cannot become; "
            "give the tensors as .npy or .npz"
        )
    if target.layout == "NCHW":
        tensor = np.moveaxis(tensor, -1, 1)
    return np.ascontiguousarray(tensor, dtype=spec.dtype)


@dataclass(frozen=True)
class _ImageInput:
    """A model's input read as an image; None is a size that the model leaves open."""

    layout: Layout
    channels: int
    height: int | None
    width: int | None

    @classmethod
    def of(cls, spec: InputSpec, layout: Layout | None) -> _ImageInput:
        if len(spec.shape) != 4:
            raise PreprocessError(
                f"the model's input {spec.name!r} has {len(spec.shape)} dimensions and images need "
                "4 (N, C, H, W or N, H, W, C); give the tensors as .npy or .npz"
            )
        _, first, middle, last = spec.shape
        if layout is None:
            channels_last = last in CHANNEL_COUNTS and first not in CHANNEL_COUNTS
            layout = "NHWC" if channels_last else "NCHW"
        if layout == "NCHW":
            channels, height, width = first, middle, last
        else:
            height, width, channels = first, middle, last
        if channels is None:
            channels = 3
        if channels not in CHANNEL_COUNTS:
            raise PreprocessError(
                f"the model's input {spec.name!r} takes {channels} channels in layout {layout} and "
                "images have 1 or 3; give --layout, or the tensors as .npy"
            )
        return cls(layout, channels, height, width)


def _agrees(wanted: int | None, size: int) -> bool:
    return wanted is None or wanted == size


def _to_image(pixels: NDArray[np.uint8], target: _ImageInput, name: str) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    elif pixels.ndim == 3 and _channels_first(shape, target):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim != 3 or pixels.shape[-1] not in CHANNEL_COUNTS or pixels.size == 0:
        raise PreprocessError(
            f"{name}: pixels of shape {shape} are no image; give height x width, and 1 or 3 "
            "channels before or after them"
        )
    if pixels.shape[-1] == 1:
        pixels = pixels.squeeze(-1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _channels_first(shape: tuple[int, ...], target: _ImageInput) -> bool:
    """Return whether C x H x W is meant; where both ends may be channels, the input decides."""
    if shape[-1] not in CHANNEL_COUNTS or shape[0] not in CHANNEL_COUNTS:
        return shape[0] in CHANNEL_COUNTS
    sizes_agree = _agrees(target.height, shape[1]) and _agrees(target.width, shape[2])
    return target.layout == "NCHW" and sizes_agree


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after a resize; as torchvision, whose users expect the same crop."""
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    shorter = min(size)
    width, height = (int(resize * side / shorter) for side in size)
    return width, height


def _sizes_to_give(target: _ImageInput) -> str:
    """Return the options that bring any image to the size of an input."""
    if target.height is None or target.width is None:
        return "--resize or --crop"
    shorter = min(target.height, target.width)
    size = f"{target.height}x{target.width}"
    if target.height == target.width:
        return f"--resize {shorter} --crop {shorter}, or --resize {size} to squeeze the whole in"
    return f"--resize {size}, or a larger --resize and --crop {size}"


def _centre_crop(image: Image.Image, crop: int | tuple[int, int], name: str) -> Image.Image:
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if image.height < height or image.width < width:
        raise PreprocessError(
            f"{name}: is {image.height} x {image.width} pixels, less than the crop of "
            f"{height} x {width}; give --resize as well, or a smaller --crop"
        )
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
