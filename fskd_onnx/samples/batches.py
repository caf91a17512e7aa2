"""Samples that run together: batches that never straddle folds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[np.generic]]
"""Arrays by the name of the tensor."""

# Larger batches than fit the caches are slower, in whole networks and more so in segments; this
# many input values per batch is 32 samples of 28 x 28 and 6 of 224 x 224 x 3.
_VALUES_PER_BATCH = 2**20
_BATCH_LIMITS = (4, 32)


@dataclass(frozen=True)
class Batch:
    """Samples that run together.

    Attributes:
        samples: (size,) indices; where the model takes batches of one size only, padded with
            repeated ones.
        count: number of samples in front of the padding.
        fold: the fold of cross-validation that all of them belong to.
    """

    samples: NDArray[np.intp]
    count: int
    fold: int


@dataclass
class BatchLimit:
    """How large batches may be where neither a model nor the user says how many samples run.

    Attributes:
        most: samples per batch, at most; None sets no limit.
        largest: samples of the largest batch that was planned under it; 0 without any.
    """

    most: int | None = None
    largest: int = 0


_LIMIT: ContextVar[BatchLimit | None] = ContextVar("limit", default=None)


@contextmanager
def limited_batches(most: int | None) -> Iterator[BatchLimit]:
    """Set a limit for all batches of a size of our own choice that a ``with`` block plans."""
    limit = BatchLimit(most)
    token = _LIMIT.set(limit)
    try:
        yield limit
    finally:
        _LIMIT.reset(token)


def plan_batches(
    folds: Sequence[NDArray[np.intp]], size: int, fixed_size: int | None
) -> list[Batch]:
    """Divide samples into batches that never straddle folds.

    Args:
        folds: sample indices of each fold.
        size: samples per batch, at most, as far as `limited_batches` allows; folds are divided
            evenly.
        fixed_size: the batch size of a model that takes no other; batches are padded to it.

    Returns:
        The batches, fold by fold.
    """
    batches = []
    limit = _LIMIT.get() or BatchLimit()
    size = min(size, limit.most or size)
    for fold, members in enumerate(folds):
        parts = math.ceil(len(members) / (fixed_size or size))
        if fixed_size is None:
            for part in np.array_split(members, parts):
                batches.append(Batch(part, len(part), fold))
                limit.largest = max(limit.largest, len(part))
            continue
        for start in range(0, len(members), fixed_size):
            part = members[start : start + fixed_size]
            batches.append(Batch(np.resize(part, fixed_size), len(part), fold))
    return batches


def first_batches(batches: Sequence[Batch], samples: int) -> list[Batch]:
    """Return the first batches that hold so many samples together, or all."""
    ends = np.cumsum([batch.count for batch in batches])
    return list(batches[: int(np.searchsorted(ends, samples)) + 1])


def default_batch_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Choose a batch size from the shapes of the tensors of one sample."""
    values = sum(math.prod(shape) for shape in shapes.values())
    low, high = _BATCH_LIMITS
    return int(np.clip(_VALUES_PER_BATCH // max(values, 1), low, high))
