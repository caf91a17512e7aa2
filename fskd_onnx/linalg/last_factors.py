"""The last factors of a kernel, given all others: an ordinary regression.

The last factors M of all chains see z = T P of the patches P, side by side, and the kernel is
K = M T. They solve::

    min over M of  tr(M T G T' M') - 2 tr(M T C')

Channels of a grouped factor see only a part of z, so that of T G T' no more than blocks are needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factor_step import Target, inverse_of, regular, regular_all
from fskd_onnx.linalg.factorization import Factorization, Indices, Mask


@dataclass(frozen=True)
class _Systems:
    """Regressions of so many channels on so many values each.

    Attributes:
        rows: (systems, n, 1) the channels.
        places: (systems, 1, k) what these see, of z.
        gram: (systems, k, k) T G T' there.
        cross: (systems, n, k) C T' there.
    """

    rows: Indices
    places: Indices
    gram: Array
    cross: Array

    def error(self, matrix: Array) -> float:
        """Return what M, (channels, values), adds to the energy of the targets."""
        own = matrix[self.rows, self.places]
        return float(np.sum((own @ self.gram - 2.0 * self.cross) * own))

    def solution(self) -> Array:
        """Return the best weights, (systems, n, k)."""
        if len(self.gram) == 1:
            return inverse_of(regular(self.gram[0]))(self.cross[0])[np.newaxis]
        solved = np.linalg.solve(regular_all(self.gram), self.cross.swapaxes(1, 2))
        return np.asarray(solved.swapaxes(1, 2))


class LastFactors:
    """The regression of a block's last factors."""

    def __init__(self, block: Factorization, target: Target) -> None:
        """Give the last factors what they see.

        Args:
            block: the factors; how the last ones are grouped counts, not their weights.
            target: the moments.
        """
        self._block, self._energy = block, target.energy
        self._systems = list(_systems(block, target))

    def error(self, block: Factorization) -> float:
        """Return the error of a block that has other last factors at most."""
        return self._energy + sum(system.error(block.last_matrix) for system in self._systems)

    def best(self) -> Factorization:
        """Return the block with the best last factors."""
        matrix = np.zeros(self._block.last_matrix.shape)
        for system in self._systems:
            matrix[system.rows, system.places] = system.solution()
        return self._block.with_last(matrix)


def _systems(block: Factorization, target: Target) -> Iterator[_Systems]:
    mask, patches = block.last_mask, block.last_patches
    if mask is None:
        seen = target.seen_by(patches)
        rows, places = map(np.arange, seen.cross.shape)
        yield _Systems(
            rows[np.newaxis, :, np.newaxis],
            places[np.newaxis, np.newaxis],
            seen.gram[np.newaxis],
            seen.cross[np.newaxis],
        )
        return
    each, seen_gram, cross = patches.matrix, patches.of(target.gram), patches.of(target.cross.T).T
    for members, read in _alike(mask):
        rows, places = members[:, :, np.newaxis], read[:, np.newaxis]
        gram = seen_gram[read] @ each[read].swapaxes(1, 2)
        yield _Systems(rows, places, gram, cross[rows, places])


def _alike(mask: Mask) -> Iterator[tuple[Indices, Indices]]:
    """Yield channels that see the same, (systems, n), and what they see, (systems, k), by size."""
    channels: defaultdict[bytes, list[int]] = defaultdict(list)
    for channel, seen_by_it in enumerate(mask):
        channels[seen_by_it.tobytes()].append(channel)
    sizes: defaultdict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for members in channels.values():
        sizes[len(members), int(mask[members[0]].sum())].append(members)
    for alike in sizes.values():
        yield np.array(alike), np.array([np.flatnonzero(mask[members[0]]) for members in alike])
