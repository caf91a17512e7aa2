"""Which columns of a tensor are looked at: a few positions of some samples.

A column is what a tensor holds at one position of one sample. A regression on u unknowns needs a
multiple of u columns, not every position of every sample, so each block takes as many as it needs,
spread evenly over all samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.samples.batches import Batch

# Accuracy with kernel adapters on two random choices of 500 samples, which differ by 0.6 among
# themselves, at 5, 20, 100 columns per unknown and at all (``tests/benchmarks/columns.py``):
# VGG-16 D 92.1 92.1 92.4 92.3 and 92.5 92.7 93.0 93.0; ResNet-20 with half of its inner channels
# 93.4 93.6 93.6 93.6 and 93.8 94.1 94.2 94.4.
_COLUMNS_PER_UNKNOWN = 50
_LEAST_COLUMNS = 4096
# Fewer than these from each of very many samples would cost more to gather than they tell.
_POSITIONS_PER_SAMPLE = 8


class Sampling(Protocol):
    """A choice of columns, the same whenever it is made."""

    def choose(
        self, offset: BatchOffset, rows: int, positions: int
    ) -> tuple[int, NDArray[np.intp]]:
        """Choose the columns of one batch.

        Args:
            offset: of the batch.
            rows: extent of the first axis of the batch's tensor.
            positions: of one row.

        Returns:
            How many rows, the first ones, are looked at, maybe none, and the (k,) positions.
        """

    def reaches(self, offset: BatchOffset, rows: int, positions: int) -> bool:
        """Whether ``choose`` would choose any."""


@dataclass(frozen=True)
class RandomSampling:
    """A number of columns at random positions.

    Attributes:
        columns: how many, over all batches; a few more where batches do not divide evenly.
        seed: for the choice of positions; each batch has its own, so they spread over all.
    """

    columns: int
    seed: tuple[int, ...]

    @staticmethod
    def of_unknowns(unknowns: int, seed: tuple[int, ...]) -> RandomSampling:
        """Return a choice that is enough for a regression on so many unknowns."""
        return RandomSampling(max(_COLUMNS_PER_UNKNOWN * (unknowns + 1), _LEAST_COLUMNS), seed)

    def choose(
        self, offset: BatchOffset, rows: int, positions: int
    ) -> tuple[int, NDArray[np.intp]]:
        """Choose the columns of one batch, see ``Sampling``."""
        count, k = self._extent(offset, rows, positions)
        if k == positions:
            return count, np.arange(positions)
        rng = np.random.default_rng([*self.seed, offset.index])
        return count, np.sort(rng.choice(positions, size=k, replace=False))

    def reaches(self, offset: BatchOffset, rows: int, positions: int) -> bool:
        """Whether ``choose`` would choose any."""
        return self._extent(offset, rows, positions)[0] > 0

    def _extent(self, offset: BatchOffset, rows: int, positions: int) -> tuple[int, int]:
        """Return how many rows are looked at, and how many positions of each."""
        # Some graphs fold positions into the first axis; a sample then has several rows.
        repeat = rows // len(offset.batch.samples)
        least = math.ceil(self.columns / (offset.samples * repeat))
        k = min(positions, max(_POSITIONS_PER_SAMPLE, least))
        # Samples are in random order, so the first of each fold are as good as any.
        share = math.ceil(self.columns / (k * repeat) * offset.in_fold / offset.samples)
        return min(offset.batch.count, max(0, share - offset.before)) * repeat, k


@dataclass(frozen=True)
class EvenSampling:
    """Positions at equal distances, the same ones in all samples.

    Attributes:
        positions: how many of each sample, at most.
    """

    positions: int

    def choose(
        self, offset: BatchOffset, rows: int, positions: int
    ) -> tuple[int, NDArray[np.intp]]:
        """Choose the columns of one batch, see ``Sampling``."""
        chosen = np.unique(np.linspace(0, positions - 1, self.positions).astype(np.intp))
        return rows * offset.batch.count // len(offset.batch.samples), chosen

    def reaches(self, offset: BatchOffset, rows: int, positions: int) -> bool:
        """Whether ``choose`` would choose any: of every batch."""
        return True


@dataclass(frozen=True)
class OfFirstBatches:
    """Another choice, made of the first batches as if there were no others.

    Attributes:
        sampling: the choice.
        offsets: of these batches.
    """

    sampling: Sampling
    offsets: tuple[BatchOffset, ...]

    def choose(
        self, offset: BatchOffset, rows: int, positions: int
    ) -> tuple[int, NDArray[np.intp]]:
        """Choose the columns of one batch, see ``Sampling``."""
        if offset.index >= len(self.offsets):
            return 0, np.arange(0)
        return self.sampling.choose(self.offsets[offset.index], rows, positions)

    def reaches(self, offset: BatchOffset, rows: int, positions: int) -> bool:
        """Whether ``choose`` would choose any."""
        known = offset.index < len(self.offsets)
        return known and self.sampling.reaches(self.offsets[offset.index], rows, positions)


@dataclass(frozen=True)
class BatchOffset:
    """Where a batch stands among all of them.

    Attributes:
        batch: the batch.
        index: its number.
        before: samples of its fold in the batches before it.
        in_fold: samples of its fold.
        samples: of all batches.
    """

    batch: Batch
    index: int
    before: int
    in_fold: int
    samples: int


def batch_offsets(batches: Sequence[Batch]) -> list[BatchOffset]:
    """Return the offset of each batch."""
    sizes: Counter[int] = Counter()
    before = []
    for batch in batches:
        before.append(sizes[batch.fold])
        sizes[batch.fold] += batch.count
    return [
        BatchOffset(batch, index, before[index], sizes[batch.fold], sizes.total())
        for index, batch in enumerate(batches)
    ]
