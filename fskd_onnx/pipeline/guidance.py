"""What to do next: after a fit, where its figures call for it, and where nothing was gained.

Every sentence is for one cause that the figures of this fit show, and none is said without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fskd_onnx.options import AdapterName, FitOptions, OptimizerName, TargetsName
from fskd_onnx.pipeline.sample_need import SampleNeed
from fskd_onnx.results import Agreement, BlockReport, BlockStatus
from fskd_onnx.runtime.forward import Outputs

# A student whose error is less is its teacher, but for rounding and half precision.
_AGREES = 1e-6
# Teachers whose outputs differ less between samples, relative to their size, tell nothing apart.
_STILL = 1e-6
# Fewer independent samples are few: from 10 to 50 samples, accuracies of fitted students rise by 10
# to 36 points, and from 50 to 500 by one (docs/accuracy.md).
_FEW = 50
# With so few images, moved copies help more often than not (docs/accuracy.md: 10 samples).
_VERY_FEW = 20
# Samples of which so few are independent are alike.
_ALIKE = 0.5
# Errors of a network that leave something to be wished for, and how many times its usual block's
# error one block has that stands out.
_LARGE, _STANDS_OUT = 0.02, 4.0
# The error of a network that gives the mean of its teacher's outputs, about.
_USELESS = 0.95
_NAMED = 3  # blocks
# A number of samples, by those that there are, and to how many per cent its gain is said.
_TIMES, _STEP = 4, 5
_REFINE = 1000  # gradient steps, of which docs/accuracy.md tells


def why_no_gain(
    blocks: Sequence[BlockReport],
    before: Agreement,
    target: Outputs,
    counts: tuple[int, int],
    options: FitOptions,
    *,
    closer: bool,
) -> str:
    """Return what to do where a fit brought no gain, a clause that begins with the cause.

    Args:
        blocks: what became of each.
        before: agreement of the student as it was given.
        target: the teacher's outputs for the samples of the verdict.
        counts: of the samples, and of the independent groups that they are.
        options: of the fit.
        closer: whether the error fell, by no more than chance.
    """
    count, independent = counts
    if before.relative_mse <= _AGREES:
        return "it already agrees with its teacher, so use it as it is"
    if not _vary(target):
        return (
            "the teacher gives the same for all of them, so they tell nothing: give samples that "
            "differ, prepared as the network expects them"
        )
    if not any(block.error_before is not None for block in blocks):
        reasons = {block.reason for block in blocks}
        first = next((block for block in blocks if block.reason), None)
        named = "" if first is None else f" ('{first.student}': {first.reason})"
        others = f", for {len(reasons)} reasons" if len(reasons) > 1 else ""
        return (
            f"none of its blocks could be fitted{others}{named}: say by --map which blocks belong "
            "together"
        )
    if independent < _ALIKE * count:
        if options.run.groups is not None:
            return f"{_given_groups(counts)}: give samples of more groups, or leave --groups out"
        return f"{count} samples are {independent} independent ones: give samples that differ more"
    if independent < _FEW:
        return f"{independent} independent samples are few: give more"
    if closer:
        return "give more independent samples, which will tell"
    return f"more samples of this kind will hardly help: {_next_option(options)}"


def is_large(after: Agreement) -> bool:
    """Whether the error of a fitted student leaves something to be wished for."""
    return after.relative_mse > _LARGE


def advise(
    blocks: Sequence[BlockReport],
    after: Agreement,
    counts: tuple[int, int],
    options: FitOptions,
    need: SampleNeed | None = None,
) -> tuple[str, ...]:
    """Return what to do after a fit that brought a gain, a sentence each; mostly nothing.

    Args:
        blocks: what became of each.
        after: agreement of the fitted student.
        counts: of the samples, and of the independent groups that they are.
        options: of the fit.
        need: what more samples would do, where that was asked and the errors tell.
    """
    count, independent = counts
    found = []
    if independent < _ALIKE * count:
        found.append(
            f"{_given_groups(counts)}: classes are no groups."
            if options.run.groups is not None
            else f"{count} samples are {independent} independent ones, which count: samples that "
            "differ more tell more."
        )
    if is_large(after):
        found.extend(_for_large_error(blocks, after.relative_mse, independent, options, need))
    return tuple(found)


def _given_groups(counts: tuple[int, int]) -> str:
    return (
        f"--groups makes {counts[1]} independent ones of {counts[0]} samples, as for crops of one "
        "photo or frames of one video"
    )


def _for_large_error(
    blocks: Sequence[BlockReport],
    error: float,
    independent: int,
    options: FitOptions,
    need: SampleNeed | None,
) -> Iterator[str]:
    """Yield what to do about an error that is still large: of several causes, the first."""
    left = [b for b in blocks if b.status != BlockStatus.FITTED and b.error_before is None]
    standing_out = _standing_out(blocks)
    if error >= _USELESS:
        why = "the student has lost too much, or the samples are not what the networks expect"
        if left:
            why = f"{len(left)} of {len(blocks)} blocks were left alone, for the reasons listed"
        yield (
            f"The error is still {error:.2g}, about that of outputs that are the same for all "
            f"samples: {why}; is it a student of that teacher?"
        )
    elif need is not None and need.helps:
        off = _STEP * int(100 * need.gain(_TIMES) / _STEP)
        yield (
            f"The error is {need.error:.2g} on samples that it has not seen and {need.seen:.2g} on "
            f"those that it was fitted to: {_TIMES * independent} independent samples would take "
            f"off about {off}% of the former, or more."
        )
    elif independent < _FEW:
        yield (
            f"{independent} independent samples are few, and the error is still {error:.2g}: more "
            f"of them are the first thing to try{_copies(independent, options)}."
        )
    elif options.adapter != AdapterName.AUTO or options.targets != TargetsName.AUTO:
        yield f"The error is still {error:.2g}: {_next_option(options)}."
    elif standing_out:
        listed = ", ".join(f"{name} ({error:.2g})" for name, error in standing_out.items())
        yield (
            f"Most of the error of blocks is at {listed}: leave more of the teacher's width there."
        )
    elif len(left) * 2 > len(blocks):
        yield (
            f"{len(left)} of {len(blocks)} blocks were left alone, for the reasons listed: "
            "--map says which blocks belong together where the match does not find it."
        )


def _copies(independent: int, options: FitOptions) -> str:
    """Return what else may help where samples are very few; "" where it is asked for already."""
    if independent >= _VERY_FEW or options.augment:
        return ""
    return "; of images, copies that are moved may help as well (--augment flip,shift)"


def _next_option(options: FitOptions) -> str:
    """Return the next option that is worth trying."""
    if options.optimizer == OptimizerName.SGD:
        return f"try --optimizer {OptimizerName.BCD}"
    missing = {
        "--adapter auto": options.adapter != AdapterName.AUTO,
        "--targets auto": options.targets != TargetsName.AUTO,
    }
    tried = " and ".join(option for option, is_missing in missing.items() if is_missing)
    if tried:
        return f"try {tried}"
    others = "take a student that has lost less, or train it further"
    return others if options.refine else f"try --refine {_REFINE}, or {others}"


def _standing_out(blocks: Sequence[BlockReport]) -> Mapping[str, float]:
    """Return the blocks whose errors are far beyond that of the usual one, the worst first."""
    errors = {b.student: b.error_after for b in blocks if b.error_after is not None}
    if len(errors) <= 2 * _NAMED:
        return {}
    usual = float(np.median(list(errors.values())))
    worst = sorted(errors.items(), key=lambda item: -item[1])[:_NAMED]
    return {name: error for name, error in worst if error > max(_STANDS_OUT * usual, _LARGE)}


def _vary(target: Outputs) -> bool:
    """Whether any output differs between samples by more than rounding."""
    for output in target:
        exact = output.astype(np.float64)
        if np.sum((exact - exact.mean(axis=0)) ** 2) > _STILL * np.sum(exact**2):
            return True
    return False
