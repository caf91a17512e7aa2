"""Which samples are fitted on, and which are held out to judge the fit.

Samples are divided by groups that are independent of each other. With many groups one fit is made
on nine tenths of them, and judged on the rest. A few would leave too few to judge on, so there
every fold is held out in turn: the verdict then hears every sample, and the student that is given
out is fitted to all::

    many groups    [ fit                                   | judge ]
    few groups     [ judge | fit           ]   [ fit | judge | fit ]   ...   [ fit to all ]

One descent gives all of these (``fitting.coordinate_descent``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.samples.batches import Batch, plan_batches

_HELD_OUT = 0.1  # fraction of the groups that no block is fitted on
_FOLDS = 5
# Fewer judge by accident: one of ten samples refuses many a good fit. And the fit misses them.
_LEAST_HELD_OUT = 6

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class SampleSplit:
    """Samples to fit on, and samples that such a fit never sees.

    Attributes:
        batches: of the samples to fit on, in folds.
        held_out: indices of the others, ascending.
    """

    batches: list[Batch]
    held_out: Indices


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


def split_samples(
    groups: Sequence[Indices],
    count: int,
    copies: int,
    seed: int,
    size: int,
    fixed_size: int | None,
) -> Splits:
    """Divide groups of samples into folds and held-out ones.

    Args:
        groups: the samples of each group.
        count: number of samples, those that are in no group included; copy k of sample i is sample
            ``k * count + i``.
        copies: how many of each sample there are to fit on, itself included.
        seed: for the order.
        size: samples per batch, at most.
        fixed_size: the batch size that a model insists on.
    """
    offsets = np.arange(copies) * count

    def split(folds: Sequence[Indices], held_out: Indices) -> SampleSplit:
        # A copy in another fold than its source would let that fold be tested on what it has seen.
        folds = [(offsets[:, np.newaxis] + fold).reshape(-1) for fold in folds]
        return SampleSplit(plan_batches(folds, size, fixed_size), np.sort(held_out))

    shuffled = [groups[at] for at in np.random.default_rng(seed).permutation(len(groups))]
    held_out = round(_HELD_OUT * len(groups))
    if held_out >= _LEAST_HELD_OUT:
        # A group of a tenth of the samples and more is too large to be missed by the fit.
        most = _HELD_OUT * sum(map(len, groups))
        judges = [at for at, group in enumerate(shuffled) if len(group) < most][:held_out]
        rest = [group for at, group in enumerate(shuffled) if at not in set(judges)]
        final = split(_folds(rest, _FOLDS), np.concatenate([shuffled[at] for at in judges]))
        judging = plan_batches([final.held_out], size, fixed_size)
        return Splits((final,), final, final.batches + judging)
    folds = _folds(shuffled, min(_FOLDS, len(groups)))
    trials = [split(folds[:k] + folds[k + 1 :], fold) for k, fold in enumerate(folds)]
    final = split(folds, np.empty(0, np.intp))
    return Splits(tuple(trials), final, final.batches)


def _folds(groups: Sequence[Indices], count: int) -> list[Indices]:
    """Divide groups into folds of about the same number of samples, none of them empty.

    The largest come first; each goes to the first fold that has room for it, else to the one with
    most room.
    """
    total = sum(map(len, groups))
    room = [total // count + (fold < total % count) for fold in range(count)]
    folds: list[list[Indices]] = [[] for _ in range(count)]
    ordered = sorted(groups, key=len, reverse=True)
    for left, group in zip(range(len(ordered), 0, -1), ordered, strict=True):
        empty = [fold for fold in range(count) if not folds[fold]]
        free = empty if left <= len(empty) else range(count)
        fitting = [fold for fold in free if room[fold] >= len(group)]
        chosen = fitting[0] if fitting else max(free, key=lambda fold: room[fold])
        folds[chosen].append(group)
        room[chosen] -= len(group)
    return [np.concatenate(fold) for fold in folds]
