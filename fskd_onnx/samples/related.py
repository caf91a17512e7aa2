"""Samples that are not independent: found by comparing what they show.

Crops of one photo, frames of one video, moved, mirrored or noisy copies share content, however far
it is moved. Two samples are compared by their correlation at every displacement, computed with the
Fourier transform, after all frequencies are made equally strong over all samples (phase
correlation, Kuglin and Hines 1975). Independent samples then correlate like noise, at every
displacement alike; samples that share content correlate by about the part that they share, at one::

    sample ─▶ thumbnail ─▶ spectrum / mean amplitude ─┐
                                                      ├─▶ product ─▶ correlation by displacement
    another, as it is and mirrored ───────────────────┘

Objects of one kind that are centred in their images, as digits are, resemble each other where they
are. So without a displacement much more is asked for than with one. Samples that are linked to a
third one are related as well (single linkage).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

_VALUES = 4096  # of a thumbnail: 64 x 64, 16 x 16 x 16
_CHANNELS = 4  # shorter axes count channels: nothing moves along them
# Up to this many samples all pairs are compared, then each sample with the most similar ones.
_ALL_PAIRS = 80
_CANDIDATES = 8
_MOST_SAMPLES = 4096
_ROWS = 256  # pairs at a time
# Larger values are taken for that, so that single precision holds the sums of their squares.
_LARGEST = 1e15
# Displacements up to this part of the side do not count as such.
_NEAR = 0.15
# Least correlation of related samples without a displacement and with one, in deviations of that of
# independent samples, and bounds of it. Measured, in deviations: 10^5 pairs of Fashion-MNIST and of
# MNIST reach 21 without a displacement and 14 with one, pairs of different photos 10 and 12 (of 64
# x 64); consecutive frames, and copies with noise of a twentieth of their range, begin at 30.
_DEVIATIONS_NEAR, _DEVIATIONS_FAR = 25.0, 12.0
_LEAST, _ENOUGH, _BEYOND_CHANCE = 0.22, 0.75, 8.0


@dataclass(frozen=True)
class Fingerprint:
    """What samples are compared by.

    Attributes:
        digest: of all inputs' bytes; equal for identical samples only.
        thumbnails: the inputs that hold values of signals, not ids, by name, made small.
    """

    digest: bytes
    thumbnails: Mapping[str, Floats]

    @staticmethod
    def of(sample: Mapping[str, NDArray[Any]]) -> Fingerprint:
        """Look at one sample: each input without an axis of samples."""
        digest = hashlib.blake2b(digest_size=16)
        thumbnails = {}
        for name, values in sample.items():
            digest.update(f"{name} {values.dtype} {values.shape} ".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
            if values.dtype.itemsize == 1 or not np.issubdtype(values.dtype, np.integer):
                small = _thumbnail(values) if values.dtype.kind not in "OSUb" else None
                if small is not None:
                    thumbnails[name] = small
        return Fingerprint(digest.digest(), thumbnails)


def find_groups(prints: Sequence[Fingerprint], given: Indices | None) -> list[Indices]:
    """Divide samples into groups that are independent of each other.

    Args:
        prints: of each sample.
        given: number of the group of each sample; None where they are to be found.

    Returns:
        The samples of each group, ascending, groups in the order of their first sample. Of
        identical samples only the first is in one.
    """
    first: dict[bytes, int] = {}
    for index, found in enumerate(prints):
        first.setdefault(found.digest, index)
    used = np.array(list(first.values()), np.intp)
    if given is not None:
        labels = given[used]
    else:
        labels = _related([prints[index].thumbnails for index in used])
    groups = np.split(used[np.argsort(labels, kind="stable")], np.cumsum(np.bincount(labels))[:-1])
    return sorted((group for group in groups if len(group)), key=lambda group: int(group[0]))


def _thumbnail(values: NDArray[Any]) -> Floats | None:
    """Return a sample made small by means over neighbours, and over channels if it is still large.

    None for a single value.
    """
    if values.size < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        small = _means(values.astype(np.float32))
    return np.clip(np.nan_to_num(small, posinf=0.0, neginf=0.0), -_LARGEST, _LARGEST)


def _means(small: Floats) -> Floats:
    """Return the means of `_thumbnail`."""
    moving = sum(size > _CHANNELS for size in small.shape) or 1
    side = int(_VALUES ** (1 / moving) + 1e-9)
    for axis, size in enumerate(small.shape):
        if size > side:
            edges = np.arange(side) * size // side
            counts = np.diff(edges, append=size).astype(np.float32)
            shape = [-1 if other == axis else 1 for other in range(small.ndim)]
            small = np.add.reduceat(small, edges, axis=axis) / counts.reshape(shape)
    if small.size > _VALUES:
        channels = tuple(axis for axis, size in enumerate(small.shape) if size <= _CHANNELS)
        small = small.mean(axis=channels, keepdims=True)
    return small


def _related(samples: Sequence[Mapping[str, Floats]]) -> Indices:
    """Return the number of the group of each sample."""
    alone = np.arange(len(samples), dtype=np.intp)
    stacked = _largest_that_varies(samples)
    if stacked is None:
        return alone
    if len(samples) > _MOST_SAMPLES:
        logger.warning(
            "samples: related ones are not looked for among more than %d; where some are crops of "
            "one photo or frames of one video, give --groups",
            _MOST_SAMPLES,
        )
        return alone
    spectra = _Spectra(stacked)
    pairs = spectra.candidates()
    near, far, deviation = spectra.correlations(pairs)
    linked = near >= _least(_DEVIATIONS_NEAR, deviation)
    linked |= far >= _least(_DEVIATIONS_FAR, deviation)
    one, other = pairs[linked].T
    edges = coo_matrix((np.ones(len(one)), (one, other)), shape=(len(alone), len(alone)))
    labels: Indices = connected_components(edges, directed=False)[1].astype(np.intp)
    return labels


def _least(deviations: float, deviation: float) -> float:
    """Return the least correlation of related samples."""
    least = min(max(deviations * deviation, _LEAST), _ENOUGH)
    return max(least, _BEYOND_CHANCE * deviation)


def _largest_that_varies(samples: Sequence[Mapping[str, Floats]]) -> Floats | None:
    """Return the thumbnails of the largest input that differs between samples, stacked."""
    for name in sorted(samples[0], key=lambda name: -samples[0][name].size):
        stacked = np.stack([sample[name] for sample in samples])
        if len(samples) > 1 and (stacked != stacked[:1]).any():
            return stacked
    return None


class _Spectra:
    """Spectra of samples in which all frequencies are equally strong."""

    def __init__(self, samples: Floats) -> None:
        """Transform (count, ...) samples."""
        axes = range(1, samples.ndim)
        self._axes = [axis for axis in axes if samples.shape[axis] > _CHANNELS] or list(axes)
        self._sides = [samples.shape[axis] for axis in self._axes]
        self._across = tuple(axis for axis in axes if axis not in self._axes)
        levelled = samples - samples.mean(axis=tuple(self._axes), keepdims=True)
        spectra = scipy.fft.rfftn(levelled, axes=self._axes)
        amplitude = np.sqrt(np.mean(np.abs(spectra) ** 2, axis=0))
        spectra /= np.maximum(amplitude, 1e-6 * amplitude.max() or 1.0)
        # Energy in the full spectrum, of which the other half is the same.
        last = self._axes[-1]
        weight = np.full(spectra.shape[last], 2.0)
        weight[0] = 1.0
        if self._sides[-1] % 2 == 0:
            weight[-1] = 1.0
        shape = [-1 if axis == last else 1 for axis in range(spectra.ndim)]
        energy = np.sum(np.abs(spectra) ** 2 * weight.reshape(shape), axis=tuple(axes))
        norm = np.sqrt(np.where(energy > 0, energy, 1.0)).reshape(-1, *[1] * len(axes))
        self._spectra = (spectra / norm).astype(np.complex64)

    def candidates(self) -> Indices:
        """Return the (pairs, 2) samples to compare: those with similar amplitudes.

        Amplitudes are the same wherever content is; added to those of the mirrored sample, they are
        the same for both.
        """
        count = len(self._spectra)
        if count <= _ALL_PAIRS:
            return np.stack(np.triu_indices(count, 1), axis=1).astype(np.intp)
        amplitude = np.abs(self._spectra)
        for axis in self._axes[:-1]:
            amplitude = amplitude + np.take(amplitude, self._negative(axis), axis)
        signature = np.log(amplitude.reshape(count, -1) + 1e-6)
        signature -= signature.mean(axis=0)
        norm = np.linalg.norm(signature, axis=1, keepdims=True)
        signature /= np.where(norm > 0, norm, 1.0)
        pairs = []
        for start in range(0, count, _ROWS):
            rows = np.arange(start, min(start + _ROWS, count))
            likeness = signature[rows] @ signature.T
            likeness[np.arange(len(rows)), rows] = -np.inf
            best = np.argpartition(-likeness, _CANDIDATES, axis=1)[:, :_CANDIDATES]
            pairs.append(np.stack([np.repeat(rows, _CANDIDATES), best.reshape(-1)], axis=1))
        return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0).astype(np.intp)

    def correlations(self, pairs: Indices) -> tuple[Floats, Floats, float]:
        """Return the greatest correlation of pairs, and the deviation of independent samples.

        Args:
            pairs: (pairs, 2) samples.

        Returns:
            (pairs,) without a displacement worth the name and (pairs,) beyond that, whichever of
            the two is mirrored or not; and the deviation over displacements of the median pair.
        """
        near = self._is_near()
        greatest = [np.full(len(pairs), -1.0, np.float32) for _ in range(2)]
        squares = []
        for start in range(0, len(pairs), _ROWS):
            part = slice(start, start + _ROWS)
            for found in self._by_displacement(pairs[part]):
                for kept, where in zip(greatest, (near, ~near), strict=True):
                    if where.any():
                        kept[part] = np.maximum(kept[part], found[:, where].max(axis=1))
                squares.append(np.mean(found**2, axis=1))
        deviation = float(np.sqrt(np.median(np.concatenate(squares)))) if squares else 1.0
        return greatest[0], greatest[1], deviation

    def _by_displacement(self, pairs: Indices) -> Iterator[Floats]:
        """Yield the (pairs, displacements) correlations, of samples and of their mirror images."""
        one, other = self._spectra[pairs[:, 0]], self._spectra[pairs[:, 1]]
        # Real samples: the conjugate spectrum of one mirrored along the last axis is its spectrum
        # at negative frequencies of the other axes.
        mirrored = other
        for axis in self._axes[:-1]:
            mirrored = np.take(mirrored, self._negative(axis), axis)
        for second in (other.conj(), mirrored):
            product = np.sum(one * second, axis=self._across, keepdims=True)
            found = scipy.fft.irfftn(product, s=self._sides, axes=self._axes)
            yield found.reshape(len(pairs), -1) * float(np.prod(self._sides))

    def _negative(self, axis: int) -> Indices:
        size = self._spectra.shape[axis]
        return np.asarray(-np.arange(size) % size, np.intp)

    def _is_near(self) -> NDArray[np.bool_]:
        """Return which displacements are too small to tell moved content from centred objects."""
        near = np.ones([1] * (len(self._sides)), bool)
        for axis, side in enumerate(self._sides):
            distance = np.minimum(np.arange(side), side - np.arange(side))
            shape = [-1 if other == axis else 1 for other in range(len(self._sides))]
            near = near & (distance <= max(1, _NEAR * side)).reshape(shape)
        return near.reshape(-1)
