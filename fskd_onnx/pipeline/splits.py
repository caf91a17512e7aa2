"""Which samples are fitted on, and which are held out to judge the fit.

With many samples one fit is made on nine tenths of them, and judged on the rest. A few would leave
too few to judge on, so there every fold is held out in turn: the verdict then hears every sample,
at the price of a fit per fold, and the student that is given out is fitted to all::

    many samples   [ fit                                   | judge ]
    few samples    [ judge | fit           ]   [ fit | judge | fit ]   ...   [ fit to all ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.samples.batches import Batch, plan_batches

_HELD_OUT = 0.1  # fraction of the samples that no block is fitted on
_FOLDS = 5
# Fewer judge by accident: one of ten samples refuses many a good fit. And the fit misses them.
_LEAST_HELD_OUT = 6


@dataclass(frozen=True)
class SampleSplit:
    """Samples to fit on, and samples that such a fit never sees.

    Attributes:
        batches: of the samples to fit on, in folds.
        held_out: indices of the others, ascending.
    """

    batches: list[Batch]
    held_out: NDArray[np.intp]


@dataclass(frozen=True)
class Splits:
    """How samples are divided.

    Attributes:
        trials: splits whose held-out samples, together, give the verdict: one, or where too few
            could be held out, one for each fold in turn.
        final: the split of the fit that is given out: the trial, or where there are several, one
            with all samples to fit on.
        batches: all samples in batches that the batches of every split are among.
    """

    trials: tuple[SampleSplit, ...]
    final: SampleSplit
    batches: list[Batch]


def split_samples(count: int, copies: int, seed: int, size: int, fixed_size: int | None) -> Splits:
    """Divide samples into folds and held-out ones.

    Args:
        count: number of samples; copy k of sample i is sample ``k * count + i``.
        copies: how many of each sample there are to fit on, itself included.
        seed: for the order.
        size: samples per batch, at most.
        fixed_size: the batch size that a model insists on.
    """
    offsets = np.arange(copies) * count

    def split(folds: Sequence[NDArray[np.intp]], held_out: NDArray[np.intp]) -> SampleSplit:
        # A copy in another fold than its source would let that fold be tested on what it has seen.
        folds = [(offsets[:, np.newaxis] + fold).reshape(-1) for fold in folds]
        return SampleSplit(plan_batches(folds, size, fixed_size), np.sort(held_out))

    shuffled = np.random.default_rng(seed).permutation(count)
    held_out = round(_HELD_OUT * count)
    if held_out >= _LEAST_HELD_OUT:
        final = split(np.array_split(shuffled[held_out:], _FOLDS), shuffled[:held_out])
        judging = plan_batches([final.held_out], size, fixed_size)
        return Splits((final,), final, final.batches + judging)
    folds = np.array_split(shuffled, min(_FOLDS, count))
    trials = [split(folds[:k] + folds[k + 1 :], fold) for k, fold in enumerate(folds)]
    final = split(folds, np.empty(0, np.intp))
    return Splits(tuple(trials), final, final.batches)
