"""What errors of a network's outputs are relative to, and how they add up.

Outputs differ in their scales (boxes in pixels, scores of 0..1), and so do parts of one output that
are computed apart and joined last (``fskd_onnx.passes.analysis.output_parts``). Each counts on a
scale of its own: by its error relative to how much it varies over the samples. The error of all is
the mean of theirs::

    error = mean over parts of ||student - teacher||^2 / ||teacher - mean||^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What varies by less, in units of the type's precision and of its own size, is constant.
_ROUNDINGS = 4.0

Weights = list[NDArray[np.float64]]
"""What the squared error of each number of a sample counts, (numbers of a sample,) per output."""


@dataclass(frozen=True, eq=False)
class Scales:
    """What errors of the parts of an output are relative to.

    Attributes:
        numbers: (numbers of a sample,) the part that each number of a sample is of.
        energies: (parts,) ``||teacher - mean||^2`` over all samples. Where the teacher does not
            vary, as over a single sample, it is ``||teacher||^2``, and where that is zero too, 1.
        varies: (parts,) whether the teacher varies.
    """

    numbers: NDArray[np.intp]
    energies: NDArray[np.float64]
    varies: NDArray[np.bool_]

    @staticmethod
    def of(teacher: NDArray[Any], rows: int = 1, numbers: NDArray[np.intp] | None = None) -> Scales:
        """Measure those of an output.

        Args:
            teacher: its values, (samples, ...).
            rows: how many rows belong to a sample, see ``fskd_onnx.runtime.sample_axis``; the mean
                is that of all rows.
            numbers: see above; None: the output is of one part.
        """
        exact = teacher.astype(np.float64)
        about = exact - exact.mean(axis=(0, 1) if rows > 1 else 0)
        energy, size = (np.sum(x**2, axis=0).reshape(-1) for x in (about, exact))
        which = np.zeros(len(size), np.intp) if numbers is None else numbers
        energies, sizes = np.bincount(which, energy), np.bincount(which, size)
        is_float = np.issubdtype(teacher.dtype, np.floating)
        rounding = (_ROUNDINGS * np.finfo(teacher.dtype).eps) ** 2 if is_float else 0.0
        varies = energies > rounding * sizes
        constant = np.where(sizes > 0, sizes, 1.0)
        return Scales(which, np.where(varies, energies, constant), varies)

    def errors(self, teacher: NDArray[Any], student: NDArray[Any]) -> NDArray[np.float64]:
        """Return the relative error of each part, (parts,); not finite where one overflows."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.sum((student.astype(np.float64) - teacher.astype(np.float64)) ** 2, axis=0)
            found: NDArray[np.float64] = np.bincount(self.numbers, squares.ravel()) / self.energies
        return found


def weights_of(scales: Sequence[Scales], samples: int) -> Weights:
    """Return the weights with which squared errors add up to relative ones, sample by sample.

    Parts that do not vary are not among those that the mean error is of, unless none varies; their
    errors are added.

    Args:
        scales: of each output.
        samples: how many there are.
    """
    counted = sum(int(scale.varies.sum()) for scale in scales)
    count = counted or sum(len(scale.varies) for scale in scales)
    return [samples / (scale.energies * count)[scale.numbers] for scale in scales]
