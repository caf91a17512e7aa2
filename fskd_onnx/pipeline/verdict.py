"""The verdict on a fit: whether it brings the student closer beyond what few samples say by chance.

Sums of squares are ruled by a few samples, and one of three that the student gets badly wrong makes
any change look like a gain. So the verdict is on the ratio r of the error after to that before of
each independent sample, in which all count the same: on the mean of log r, with the standard error
that its spread over the samples tells. The spread of a handful is itself known badly, so it is
averaged with a spread that is usual (a scaled inverse chi-squared prior, Gelman et al., "Bayesian
Data Analysis", section 2.6)::

    s^2 = (k s0^2 + (n - 1) sd^2) / (k + n - 1),    mean(log r) +- t(k + n - 1) s / sqrt(n)

A fit stands where the upper end of this interval is a gain, where the sum of the errors falls with
any one of the samples left out, and falls by more than the spread of the differences explains, and
where no single error rises by much of that. The spread is that of one large error, where one is
there; so it is not asked for where the error of each of four and more samples falls.
"""

from __future__ import annotations

import numpy as np
import scipy.special
from numpy.typing import NDArray

from fskd_onnx.results import Verdict

Floats = NDArray[np.float64]

# Measured on 1,384 fits of small random networks to 3-20 samples, half with heavy tails, that
# lessen the sum of the errors: 14 are worse on 500 fresh samples. Of the 1,255 that stand, 4 are, 2
# of them by weights that blow up (``weight_growth``); of those that do not stand 114 are better by
# a tenth and more. The usual spread of log r is 0.5.
_USUAL_SPREAD, _WEIGHT = 0.5, 2.0
_CONFIDENCE = 0.95  # of either end
# The sum of the errors is tested with less confidence, but for a handful. One error may not rise by
# more than this part of what all fall by together: it stands for others, still larger, that fresh
# samples have. Measured on 511 fits of random networks that stand without this, 2 of them worse on
# fresh samples: 16 do not stand with it, both among them. Of 236 others that did not stand, the
# errors of all samples fall in 7 with four and more; each is 12 times better on fresh ones.
_CONFIDENCE_OF_SUM, _HANDFUL = 0.9, 4
_LARGEST_RISE = 0.2
# Errors below this part of the teacher's mean square are rounding, and ratios beyond this say no
# more than that one of the two is.
_ROUNDING = 1e-12
_LARGEST_LOG = 20.0


def judge(before: Floats, after: Floats, size: float) -> Verdict:
    """Judge a fit by the squared errors on samples that it has not seen.

    Args:
        before: (n,) of the untouched student on each independent sample.
        after: (n,) of fitted ones.
        size: mean square of the teacher's outputs over these samples, in the same units.
    """
    n = len(before)
    finite = np.isfinite(before), np.isfinite(after)
    least = _ROUNDING * size or np.finfo(np.float64).tiny
    old, new = (
        np.log(np.where(known, errors, 0.0) + least)
        for known, errors in zip(finite, (before, after), strict=True)
    )
    ratios = np.clip(new - old, -_LARGEST_LOG, _LARGEST_LOG)
    ratios[~finite[0]], ratios[~finite[1]] = -_LARGEST_LOG, _LARGEST_LOG
    mean = float(ratios.mean())
    freedom = _WEIGHT + n - 1
    spread = np.sqrt((_WEIGHT * _USUAL_SPREAD**2 + np.sum((ratios - mean) ** 2)) / freedom)
    margin = float(scipy.special.stdtrit(freedom, _CONFIDENCE) * spread / np.sqrt(n))
    is_open = mean + margin >= 0
    doubt = "that interval reaches beyond 1" if is_open else _doubt_of_sum(before, after)
    return Verdict(
        independent_count=n,
        error_ratio=float(np.exp(mean)),
        interval=(float(np.exp(mean - margin)), float(np.exp(mean + margin))),
        stands=not doubt,
        doubt=doubt,
    )


def _doubt_of_sum(before: Floats, after: Floats) -> str:
    """Return why the sum of the errors may not fall on other samples; "" where it is sure to."""
    if not _falls_without_any(before, after):
        return "the gain hangs on one of them"
    gains = before - after
    n, total = len(gains), float(gains.sum())
    if not np.isfinite(total):  # of a student that is finite for no sample
        return "" if np.isfinite(after).all() else "the error of one is not finite"
    if n >= _HANDFUL and gains.min() >= 0:
        # One large error among small ones makes the spread, and no doubt.
        return "" if total > 0 else "their errors do not fall"
    confidence = _CONFIDENCE if n < _HANDFUL else _CONFIDENCE_OF_SUM
    spread = float(gains.std(ddof=1)) if n > 1 else 0.0
    if total <= float(scipy.special.stdtrit(max(n - 1, 1), confidence)) * spread * np.sqrt(n):
        return "the sum of their errors falls by no more than its spread"
    if float(-gains.min()) > _LARGEST_RISE * total:
        return "the error of one rises by much of what all fall by together"
    return ""


def _falls_without_any(before: Floats, after: Floats) -> bool:
    """Whether the sum of the errors falls, and does so without any one of the samples."""
    rest = ~np.eye(len(before), dtype=bool)
    selections = (np.ones(len(before), bool), *(rest if len(before) > 1 else ()))
    return all(_total(after[some]) < _total(before[some]) for some in selections)


def _total(errors: Floats) -> float:
    """Return a sum of errors; what is not finite is worse than all else."""
    total = float(errors.sum())
    return total if np.isfinite(total) else np.inf
