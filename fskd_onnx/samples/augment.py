"""Augmentation: moved copies of image samples, which the teacher labels as it does the samples.

Every move is an affine map of the coordinates, so all moves together are one resampling per copy.
Pixels from beyond the border repeat the border. To add a move, enter a function in
`MOVES`, and its name in ``MOVE_NAMES`` of ``fskd_onnx.options``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from fskd_onnx.errors import SamplesError
from fskd_onnx.samples.reader import SizedReader
from fskd_onnx.serialization.interface import InputSpec

Matrix = NDArray[np.float64]

SHIFT = 0.08  # of the side: 2 of 28 pixels, 18 of 224
_LEAST_CROP = 0.8  # of the side
_ANGLE = 10.0  # degrees
_CHANNELS = (1, 3, 4)


def _flip(rng: np.random.Generator) -> Matrix:
    return np.diag([1.0, rng.choice([-1.0, 1.0]), 1.0])


def _shift(rng: np.random.Generator) -> Matrix:
    matrix = np.eye(3)
    matrix[:2, 2] = rng.uniform(-SHIFT, SHIFT, 2)
    return matrix


def _crop(rng: np.random.Generator) -> Matrix:
    """Enlarge a window of the image to the whole."""
    side = rng.uniform(_LEAST_CROP, 1.0)
    matrix = np.diag([side, side, 1.0])
    matrix[:2, 2] = rng.uniform(side - 1.0, 1.0 - side, 2) / 2
    return matrix


def _rotate(rng: np.random.Generator) -> Matrix:
    angle = np.deg2rad(rng.uniform(-_ANGLE, _ANGLE))
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


MOVES: dict[str, Callable[[np.random.Generator], Matrix]] = {
    "flip": _flip,
    "shift": _shift,
    "crop": _crop,
    "rotate": _rotate,
}
"""Ways to move an image, by name: each draws a 3 x 3 map from where a pixel goes to where it comes
from, about the centre of an image of side 1."""


class Augmented:
    """Samples followed by copies: index ``copy * len(samples) + i`` is a copy of sample ``i``.

    Copy 0 is the sample itself. A copy is the same whenever it is asked for.

    Attributes:
        inputs: the model's inputs.
        shapes: shape of one sample of each input.
    """

    def __init__(
        self,
        samples: SizedReader,
        moves: Sequence[str],
        seed: int,
    ) -> None:
        """Prepare the copies.

        Args:
            samples: images, as tensors.
            moves: names in `MOVES`; all inputs that are images are moved by the same map.
            seed: decides every move.

        Raises:
            SamplesError: a move is unknown, or no input is an image.
        """
        unknown = [move for move in moves if move not in MOVES]
        if unknown:
            raise SamplesError(f"augmentation '{unknown[0]}' is not one of {', '.join(MOVES)}")
        self.inputs, self.shapes = samples.inputs, samples.shapes
        self._samples = samples
        self._moves = [MOVES[move] for move in moves]
        self._seed = seed
        self._spatial = {
            spec.name: axis for spec in self.inputs if (axis := spatial_axis(spec)) is not None
        }
        if not self._spatial:
            raise SamplesError(
                "augmentation moves images, and no input of the model is one; leave --augment out"
            )

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[np.generic]]:
        """Return samples and copies, stacked in the order asked for, see `Samples.take`."""
        copies, sources = np.divmod(indices, len(self._samples))
        arrays = self._samples.take(sources)
        for name, axis in self._spatial.items():
            array = arrays[name] = arrays[name].copy()
            for row, (copy, source) in enumerate(zip(copies, sources, strict=True)):
                if copy:
                    array[row] = _resample(array[row], axis, self._map(int(copy), int(source)))
        return arrays

    def describe(self, index: int) -> str:
        """Return what to call a sample, or the sample that a copy is of."""
        return self._samples.describe(index % len(self._samples))

    def _map(self, copy: int, source: int) -> Matrix:
        """Return the composed map of one copy."""
        rng = np.random.default_rng([self._seed, copy, source])
        matrix = np.eye(3)
        for move in self._moves:
            matrix = matrix @ move(rng)
        return matrix


def spatial_axis(spec: InputSpec) -> int | None:
    """Return the axis of a sample that is its height; None where it is no image."""
    if len(spec.shape) != 4 or not np.issubdtype(spec.dtype, np.floating):
        return None
    if spec.shape[1] in _CHANNELS:
        return 1
    return 0 if spec.shape[3] in _CHANNELS else None


def _resample(image: NDArray[np.generic], axis: int, matrix: Matrix) -> NDArray[np.generic]:
    """Move one image, height and width at ``axis`` and the next, about its centre."""
    sides = np.array(image.shape[axis : axis + 2], dtype=float)
    linear = np.eye(3)
    linear[axis : axis + 2, axis : axis + 2] = (
        sides[:, np.newaxis] * matrix[:2, :2] / sides[np.newaxis]
    )
    offset, centre = np.zeros(3), (sides - 1) / 2
    moved = linear[axis : axis + 2, axis : axis + 2] @ centre
    offset[axis : axis + 2] = centre - moved + matrix[:2, 2] * sides
    wide = image.astype(np.float64)
    result = scipy.ndimage.affine_transform(wide, linear, offset, order=1, mode="nearest")
    return np.asarray(result.astype(image.dtype))
