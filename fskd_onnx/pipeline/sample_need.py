"""Whether more samples would help a fit, by its errors on samples that it has seen and has not.

A least-squares fit of p unknowns to n samples errs less on these than on others, by as much below
what is left with any number of samples as it errs above that elsewhere (the optimism of Efron, "How
biased is the apparent error rate of a prediction rule?", 1986)::

    unseen(n) = floor + c / n          seen(n) = floor - c / n

So both errors of one fit tell how the first one falls with n. A network of fitted blocks follows
that. Measured on 652 fits of random networks and of students of ResNet-20 and a small VGG-16, with
10 to 640 samples and a large error: 296 of them ``helps``. With four times the samples it fell in
282 of the 283 that were fitted anew, by 6% and more in 280; it was 0.83 times what this says in the
middle, and 0.48 to 1.06 times without the tenths at either end. Where there are fewer samples than
unknowns it falls faster than this says, since the ridge gives way as well.

Both errors are means over a handful of samples, so a ratio of them is known up to a factor, and
that more samples would help has to hold at the worse end of its interval. That they would not is
never said: a handful of samples with small errors looks the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import scipy.special
from numpy.typing import NDArray

from fskd_onnx.pipeline.problem import FitProblem

Floats = NDArray[np.float64]

_CONFIDENCE = 0.95  # of either end
# Twice the samples have to take off this part of the error to be worth a sentence.
_WORTH = 0.07
# Of many samples that were fitted to, so many tell the error on all of them.
_LEAST, _MOST = 8, 32


@dataclass(frozen=True)
class SampleNeed:
    """How the error of a fit falls with the number of its samples.

    Attributes:
        error: relative, on samples that the judged fits have not seen.
        ratio: by what the error on samples that the given fit has seen is less; 90% interval.
        part: samples of a judged fit, relative to those of the fit that is given out.
    """

    error: float
    ratio: tuple[float, float, float]
    part: float

    @property
    def seen(self) -> float:
        """Relative error on samples that were fitted to."""
        return self.error * self.ratio[1]

    @property
    def helps(self) -> bool:
        """Whether more samples lessen the error, beyond doubt."""
        return self._gain(self.ratio[2]) > _WORTH

    def gain(self, times: float) -> float:
        """Return what part of the error a fit to so many times the samples would take off."""
        return self._gain(self.ratio[1], times)

    def _gain(self, ratio: float, times: float = 2.0) -> float:
        # unseen(part n) - seen(n) = (1 / part + 1) c / n, in units of unseen(part n).
        excess = (1.0 - ratio) / (1.0 + 1.0 / self.part)
        return excess * (1.0 - 1.0 / times) / (ratio + 2.0 * excess)


def sample_need(
    problem: FitProblem, model: onnx.ModelProto, unseen: Floats, error: float
) -> SampleNeed | None:
    """Tell what more samples would do to a fit; None where the errors do not say.

    Args:
        problem: what the fit started from.
        model: the student that is given out.
        unseen: squared error on each independent sample of the verdict, of fits that have not seen
            it.
        error: the relative error that these come to.

    Raises:
        FskdError: a network cannot be run, or the machine has not enough memory.
    """
    trials = len(problem.splits.trials)
    if trials > 1:
        # All samples gave the verdict, each by a fit without it, and all are fitted to in the end.
        samples, target = problem.held_out[problem.judged], problem.target
    else:
        samples = _some_fitted_to(problem, len(unseen))
        target = problem.teacher_outputs(samples)
    outputs = problem.outputs(model, f"fused {problem.student.name}", samples)
    with np.errstate(invalid="ignore", over="ignore"):
        seen = problem.errors_to(target, outputs)
    if trials > 1:
        seen = problem.by_group(seen)
    ratio = _ratio(seen, unseen, paired=trials > 1)
    if ratio is None:
        return None
    return SampleNeed(error, ratio, (trials - 1) / trials if trials > 1 else 1.0)


def _some_fitted_to(problem: FitProblem, judged: int) -> NDArray[np.intp]:
    """Return a few independent samples that a fit has seen, for so many that have judged it."""
    fitted = np.concatenate([batch.samples for batch in problem.splits.final.batches])
    seen = set(fitted.tolist())
    firsts = np.array([group[0] for group in problem.groups if int(group[0]) in seen], np.intp)
    count = min(max(judged // 2, _LEAST), _MOST, len(firsts))
    rng = np.random.default_rng(problem.options.seed)
    return np.sort(rng.permutation(firsts)[:count])


def _ratio(seen: Floats, unseen: Floats, *, paired: bool) -> tuple[float, float, float] | None:
    """Return a mean of errors by that of others, between the ends of its interval.

    The interval is that of the logarithm, by the delta method.

    Args:
        seen: (m,) the former.
        unseen: (n,) the latter.
        paired: whether they are of the same samples.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = seen / seen.mean(), unseen / unseen.mean()
    if not all(np.isfinite(part).all() for part in parts) or min(map(len, parts)) < 2:
        return None
    if paired:
        variance = float(np.var(parts[0] - parts[1], ddof=1)) / len(seen)
    else:
        variance = sum(float(np.var(part, ddof=1)) / len(part) for part in parts)
    freedom = min(map(len, parts)) - 1
    margin = float(scipy.special.stdtrit(freedom, _CONFIDENCE) * np.sqrt(variance))
    ratio = float(seen.mean() / unseen.mean())
    return ratio * float(np.exp(-margin)), ratio, ratio * float(np.exp(margin))
