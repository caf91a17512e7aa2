"""The format of images: one sample per file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.arrays import check_finite
from fskd_onnx.samples.files import files_with_suffix, reading
from fskd_onnx.samples.images import fit_image, to_tensor
from fskd_onnx.serialization.interface import InputSpec

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFiles:
    """Image files, see `SampleFormat`."""

    name = "images"
    words = f"images ({', '.join(suffix.removeprefix('.') for suffix in _SUFFIXES)})"

    def find(self, source: Path) -> list[Path]:
        """Return the image itself, or those of a folder, by name."""
        return files_with_suffix(source, _SUFFIXES)

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
        return [ImagePart(item, preprocess) for item in items]


@dataclass(frozen=True)
class ImagePart:
    """One image, see `SourcePart`."""

    path: Path
    preprocess: Preprocess
    count: int = 1

    def describe(self, index: int) -> str:
        """Return the path of the image."""
        return str(self.path)

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """Decode the image, see `SourcePart.read`."""
        name = self.describe(index)
        with reading(self.path, "an image"), Image.open(self.path) as image:
            image.load()
        pixels = fit_image(self.preprocess, image, spec, name)
        return check_finite(to_tensor(self.preprocess, pixels[np.newaxis], spec)[0], name, spec)
