"""What each choice unit of a teacher may become, and the error that is left of it.

Errors are relative errors of the network's output: of those of the nodes that feel a choice, after
their refit, what the output feels. Level 0 of a unit leaves it whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, MethodName
from fskd_onnx.compress_results import UnitKind
from fskd_onnx.compression.factor_ranks import candidate_ranks, chain_costs, step_of
from fskd_onnx.compression.rank_errors import RankErrors
from fskd_onnx.compression.sensitivity import Sensitivity
from fskd_onnx.compression.width_errors import Reading
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank, full_rank, why_not
from fskd_onnx.passes.analysis.linear import Linear

Floats = NDArray[np.float64]

_LEVELS = 12
# A ridge on what is solved for on half of the samples.
_RIDGE = 0.1


@dataclass(frozen=True)
class Level:
    """One way that a unit may be.

    Attributes:
        method: a name of ``MethodName``; "" where it is whole.
        after: as in ``UnitPlan``.
        kept: likewise.
        error: what it adds to the relative error of the network's output.
    """

    method: str
    after: tuple[int, ...]
    kept: tuple[int, ...] | None = None
    error: float = 0.0


@dataclass(frozen=True)
class Candidates:
    """A unit and its levels.

    Attributes:
        kind: of the unit.
        unit: its name.
        levels: the first one leaves it whole.
        reason: why that is the only one; empty where there are others.
    """

    kind: UnitKind
    unit: str
    levels: tuple[Level, ...]
    reason: str = ""


def whole_width(unit: ChannelUnit, reason: str) -> Candidates:
    """Return channels that all stay."""
    return Candidates(UnitKind.WIDTH, unit.name, (Level("", (unit.width,)),), reason)


def whole_node(name: str, reason: str) -> Candidates:
    """Return a node that becomes no chain."""
    return Candidates(UnitKind.FACTORS, name, (Level("", ()),), reason)


def whole_block(name: str, reason: str) -> Candidates:
    """Return a residual block that stays."""
    return Candidates(UnitKind.BLOCK, name, (Level("", (1,)),), reason)


def width_candidates(
    unit: ChannelUnit,
    scores: Mapping[str, Floats],
    readings: Sequence[Reading],
    sensitivity: Mapping[str, Sensitivity],
    options: CompressOptions,
    reason: str = "",
) -> Candidates:
    """Return the widths that a set of coupled channels may have.

    Args:
        unit: the channels.
        scores: by method, (width,) how much each channel is worth.
        readings: what its readers make of it.
        sensitivity: of the readers.
        options: how much may go.
        reason: why it has to stay whole, where that is not the unit's own reason.
    """
    reason = reason or unit.reason
    if not reason and not scores:
        reason = "no method that may be used tells its channels apart"
    if not reason and not readings:
        reason = "nothing is known of what reads its channels"
    if reason:
        return whole_width(unit, reason)
    levels: dict[int, Level] = {}
    felt_by = [(one, sensitivity.get(one.reader, Sensitivity())) for one in readings]
    for method, values in scores.items():
        # What stays of fewer channels stays of more.
        nested = {unit.best(values, width): None for width in _widths(unit, options)}
        nested.pop(tuple(range(unit.width)), None)
        errors = [
            [felt.output_error(error) for error in reading.errors([*nested])]
            for reading, felt in felt_by
        ]
        for kept, error in zip(nested, map(sum, zip(*errors, strict=True)), strict=True):
            best = levels.get(len(kept))
            if best is None or error < best.error:
                levels[len(kept)] = Level(method, (len(kept),), kept, error)
    if not levels:
        reason = "it is too narrow to lose any within the limits"
    found = sorted(levels.values(), key=lambda level: -level.after[0])
    whole = whole_width(unit, reason)
    return dataclasses.replace(whole, levels=(*whole.levels, *found))


def factor_candidates(
    linear: Linear,
    moments: tuple[Array, Array] | None,
    options: CompressOptions,
    reason: str = "",
) -> Candidates:
    """Return the chains that a node may become, with errors relative to what it gives.

    Args:
        linear: the node.
        moments: of its patches, of both halves of the samples; None without samples.
        options: which forms, and how much may go.
        reason: why it has to stay whole, where its shape does not say why.
    """
    reasons = {form: why_not(linear, form) for form in Form if options.allows(form)}
    possible = [form for form, why in reasons.items() if not why]
    levels = [] if reason or not possible else _levels(linear, moments, options, possible)
    why = reason if possible else next(iter(reasons.values()), "")
    whole = whole_node(linear.name, why)
    return dataclasses.replace(whole, levels=(*whole.levels, *levels))


def _levels(
    linear: Linear,
    moments: tuple[Array, Array] | None,
    options: CompressOptions,
    forms: Sequence[Form],
) -> list[Level]:
    """Return the chains of some forms that a node may become; arguments as above."""
    fitted, judged = moments or (np.eye(linear.shape[2]), None)
    ridge = _RIDGE if judged is not None else 0.0
    errors_of = RankErrors(linear, fitted, ridge=ridge, held_out=judged)

    def of_form(form: Form) -> list[Level]:
        ranks = [
            rank
            for rank in candidate_ranks(form, linear, options.round_to)
            if _cost_ratio(form, linear, rank) >= 1 - options.max_ratio
            and (MethodName.AUTO not in options.methods or not _is_slow(form, linear, rank))
        ]
        errors = errors_of.curve(form, ranks)
        return [
            Level(form.value, rank, None, error) for rank, error in zip(ranks, errors, strict=True)
        ]

    return list(itertools.chain.from_iterable(parallel_map(of_form, forms)))


def _is_slow(form: Form, linear: Linear, rank: Rank) -> bool:
    """Whether a chain takes as long as its node, for all the multiply-adds that it saves.

    Depthwise nodes wait for memory, so terms beyond a third of the taps do (measured by
    ``python -m tests.benchmarks.terms``), where other methods take as many multiply-adds off.
    """
    return form == Form.DECOUPLE and 3 * rank[0] > math.prod(linear.kernel_shape)


def full_ranks(linear: Linear, form: Form) -> tuple[int, ...]:
    """Return the rank at which a chain loses nothing of a node."""
    return full_rank(form, LinearShape.of(linear))


def _widths(unit: ChannelUnit, options: CompressOptions) -> list[int]:
    """Return numbers of channels that may stay, the largest first."""
    step = math.lcm(step_of(unit.width, options.round_to), unit.groups)
    least = max(math.ceil((1 - options.max_ratio) * unit.width), 1)
    found = [width for width in range(0, unit.width, step) if width >= least]
    if not found:
        return []
    chosen = np.unique(np.linspace(0, len(found) - 1, _LEVELS).round().astype(int))
    return [found[at] for at in chosen[::-1]]


def _cost_ratio(form: Form, linear: Linear, rank: tuple[int, ...]) -> float:
    """Return what is left of a node's weights."""
    shape = LinearShape.of(linear)
    extents = [1] * len(shape.kernel)
    whole = shape.outputs * shape.inputs * shape.taps
    return chain_costs(form, shape, rank, extents, extents).parameters / whole


def block_candidate(name: str, error: float, reason: str) -> Candidates:
    """Return whether a residual block may go, and what that costs."""
    whole = whole_block(name, reason)
    if reason:
        return whole
    gone = Level(MethodName.DROP_BLOCK, (0,), None, error)
    return dataclasses.replace(whole, levels=(*whole.levels, gone))
