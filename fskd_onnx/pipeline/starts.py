"""The fits that options leave open, of which held-out samples choose: from where, and by what."""

from __future__ import annotations

from dataclasses import dataclass

from fskd_onnx.fitting.adapters import Factors, Families, families_of
from fskd_onnx.options import FitOptions, OptimizerName, TargetsName
from fskd_onnx.pipeline.problem import FitProblem


@dataclass(frozen=True)
class Start:
    """One way to fit.

    Attributes:
        targets: the channels that the student was pruned to, or channels chosen anew.
        families: of adapters; each block takes the one that its own held-out columns prefer.
    """

    targets: TargetsName
    families: Families


def starts_of(problem: FitProblem, options: FitOptions) -> list[Start]:
    """Return the fits to try, the likeliest to be the best one last.

    Where few samples are held out in turn, decomposed blocks are fitted with their last nodes alone
    as well: all factors of a block can fit a handful of samples, and the next block then reads what
    is closer to the teacher than it will be of other samples. The folds that a block holds out do
    not tell, for the blocks in front of it have seen them.
    """
    families = families_of(options.adapter)
    if options.optimizer == OptimizerName.SGD:
        return [Start(TargetsName.KEPT, families)]
    last_alone = tuple(family for family in families if family is not Factors)
    few = len(problem.splits.trials) > 1
    both = few and last_alone and problem.student.factored_blocks()
    targets = [TargetsName(options.targets)]
    if options.targets == TargetsName.AUTO:
        able = any(family.can_change_targets for family in families)
        targets = [TargetsName.KEPT, *([TargetsName.SELECT] if able else [])]
    tried = [last_alone, families] if both else [families]
    return [Start(target, some) for target in targets for some in tried]
