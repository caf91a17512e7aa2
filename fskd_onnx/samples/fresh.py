"""Samples moved and mixed anew at each draw, for work that looks at the same few samples often.

Images are mirrored and shifted by whole pixels, what comes from beyond the border repeats it. Some
of a draw are mixes of two samples (mixup, Zhang et al. 2018), half of it where samples are few::

    x = s a + (1 - s) b,    s uniform in 0..1

No label is mixed: the teacher says what it makes of a mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.samples.augment import SHIFT, spatial_axis
from fskd_onnx.samples.reader import SampleReader

# Of a draw, at most, and so many for each draw of all samples: where each is seen often, mixes keep
# weights from following it; where there are many, mixes tell less than samples do.
_MOST_MIXED, _MIXED = 0.5, 50.0

Arrays = dict[str, NDArray[Any]]


class FreshSamples:
    """Draws of moved and mixed samples; the same draw is the same whenever it is asked for."""

    def __init__(
        self,
        samples: SampleReader,
        indices: NDArray[np.intp],
        seed: int,
        *,
        as_they_are: bool = False,
    ) -> None:
        """Look at the inputs: images are moved, and floats are mixed where all inputs are floats.

        Args:
            samples: where they come from.
            indices: those to draw.
            seed: of all draws.
            as_they_are: whether none is moved or mixed.
        """
        self._samples, self._indices, self._seed = samples, indices, seed
        self._share = min(_MOST_MIXED, _MIXED / len(indices))
        axes = {spec.name: spatial_axis(spec) for spec in samples.inputs if spec.axis == 0}
        self._spatial = {
            name: axis for name, axis in axes.items() if axis is not None and not as_they_are
        }
        own = [spec for spec in samples.inputs if spec.axis is not None]
        floats = all(np.issubdtype(spec.dtype, np.floating) for spec in own)
        self._mixes = floats and not as_they_are
        self._own = {spec.name for spec in own}

    def draw(self, number: int, count: int) -> Arrays:
        """Return samples of a draw, per input stacked along a new first axis.

        Args:
            number: of the draw.
            count: how many samples; each is there about as often as every other.
        """
        rng = np.random.default_rng([self._seed, number])
        rounds = -(-count // len(self._indices))
        order = np.concatenate([rng.permutation(self._indices) for _ in range(rounds)])[:count]
        arrays = self._moved(self._samples.take(order), rng)
        return self._mixed(arrays, rng) if self._mixes and count > 1 else arrays

    def _moved(self, arrays: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> Arrays:
        """Move each sample, all of its images alike."""
        found = dict(arrays)
        count = len(next(iter(arrays.values())))
        shifts, mirrored = rng.uniform(-SHIFT, SHIFT, (count, 2)), rng.random(count) < 0.5
        for name, axis in self._spatial.items():
            found[name] = np.stack(
                [
                    _move(image, axis, shift, bool(mirror))
                    for image, shift, mirror in zip(found[name], shifts, mirrored, strict=True)
                ]
            )
        return found

    def _mixed(self, arrays: Arrays, rng: np.random.Generator) -> Arrays:
        """Mix some samples with others of the draw."""
        count = len(next(iter(arrays.values())))
        shares = np.where(rng.random(count) < self._share, rng.random(count), 1.0)
        others = rng.permutation(count)
        found = dict(arrays)
        for name in self._own:
            array = arrays[name]
            share = shares.reshape(-1, *[1] * (array.ndim - 1))
            found[name] = (share * array + (1 - share) * array[others]).astype(array.dtype)
        return found


def _move(image: NDArray[Any], axis: int, shift: NDArray[np.float64], mirror: bool) -> NDArray[Any]:
    """Move one image, height and width at ``axis`` and the next, by parts of its sides."""
    for at, part in zip((axis, axis + 1), shift.tolist(), strict=True):
        side = image.shape[at]
        index = np.clip(np.arange(side) + round(part * side), 0, side - 1)
        image = image.take(index[::-1] if mirror and at == axis + 1 else index, at)
    return image
