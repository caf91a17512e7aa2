"""The format of images: one sample per file, read as a viewer shows it.

A picture is turned upright by its EXIF orientation, and what is transparent in it shows white. What
a viewer would show one after the other is refused.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from fskd_onnx.errors import SamplesError, one_of
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import check_finite
from fskd_onnx.samples.files import files_with_suffix, reading
from fskd_onnx.samples.images import fit_image, to_tensor
from fskd_onnx.serialization.interface import InputSpec

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""Of files that are samples by themselves, in lower case."""

# What is in the file decides, not the suffix. Other formats have forms that Pillow reads in ways
# that are not a viewer's, and some start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# A second picture in a JPEG is its depth, its preview or the other eye's; viewers show the first.
_FIRST_COUNTS = ("JPEG", "MPO")

_TRANSPARENT = "what is transparent in images is read as white, as viewers show it"

_UPRIGHT: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


class ImageFiles:
    """Image files, see `SampleFormat`."""

    name = "images"
    words = f"images ({', '.join(suffix.removeprefix('.') for suffix in IMAGE_SUFFIXES)})"

    def find(self, source: Path) -> list[Path]:
        """Return the image itself, or those of a folder, by name."""
        return files_with_suffix(source, IMAGE_SUFFIXES)

    def open(
        self, items: Sequence[Path], inputs: tuple[InputSpec, ...], preprocess: Preprocess
    ) -> list[ImagePart]:
        """Open images; each is decoded when it is read.

        Raises:
            SamplesError: the model has several inputs.
        """
        if len(inputs) != 1:
            source = items[0] if len(items) == 1 else items[0].parent
            names = ", ".join(spec.name for spec in inputs)
            raise SamplesError(
                f"{source}: images are samples of one input and the model has {len(inputs)} "
                f"({names}); give .npz files with one array per input"
            )
        notes: set[str] = set()
        return [ImagePart(item, preprocess, notes) for item in items]


@dataclass(frozen=True)
class ImagePart:
    """One image, see `SourcePart`.

    Attributes:
        path: its file.
        preprocess: how it becomes a tensor.
        notes: what was noted already about an image of the same source.
    """

    path: Path
    preprocess: Preprocess
    notes: set[str] = field(default_factory=set)
    count: int = 1

    def describe(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.path)

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """Decode the image, see `SourcePart.read`."""
        name = self.describe(index)
        image, transparent = decode(self.path)
        if transparent and _TRANSPARENT not in self.notes:
            self.notes.add(_TRANSPARENT)
            logger.info("%s: %s", name, _TRANSPARENT)
        pixels = fit_image(self.preprocess, image, spec, name)
        return check_finite(to_tensor(self.preprocess, pixels[np.newaxis], spec)[0], name, spec)


def decode(path: Path) -> tuple[Image.Image, bool]:
    """Return the picture in a file, upright and opaque, and whether anything in it was not.

    Raises:
        SamplesError: the file is broken, is no image of a format that is read, or holds several
            pictures to be shown one after the other.
    """
    # Pillow warns of large pictures below its limit, of broken EXIF, of palettes; none of it tells
    # a user more than the picture does.
    with warnings.catch_warnings(), reading(path, "an image"), _File(path) as file:
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise SamplesError(
                f"{path}: cannot be read as an image: it is no {one_of(_FORMATS)} file, or not all "
                "of one; convert it, or copy it again"
            ) from error
        with opened as image:
            frames = 1 if image.format in _FIRST_COUNTS else getattr(image, "n_frames", 1)
            if frames > 1:
                raise SamplesError(
                    f"{path}: is animated, with {frames} frames; give images that stand still"
                )
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            if not _may_be_transparent(image):
                return upright, False
            return _on_white(upright.convert("RGBA"))


class _File(io.BufferedReader):
    """A file that is asked for no more bytes than it has: memory is allocated for all of these."""

    def __init__(self, path: Path) -> None:
        """Open a file."""
        super().__init__(io.FileIO(path))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that are left where it is negative."""
        return super().read(-1 if size is None else min(size, self._size))


def _orientation(image: Image.Image) -> object:
    """Return the EXIF orientation; 1, which is upright, where there is none that can be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of a broken block any error comes, and viewers show the picture as it is
        return 1


def _may_be_transparent(image: Image.Image) -> bool:
    """Return whether a picture has an alpha channel, or a colour that is transparent."""
    return image.mode in ("LA", "PA", "RGBA") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return a picture on a white ground, and whether that can be seen."""
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB"), True
