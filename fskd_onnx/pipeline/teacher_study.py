"""Everything that a compression knows of a teacher: its units, their levels, and what they cost."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, CostName, MethodName
from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.analysis import NodeMoments, Places, analyse
from fskd_onnx.compression.candidates import (
    Candidates,
    Level,
    block_candidate,
    factor_candidates,
    full_ranks,
    greedy_scores,
    width_candidates,
)
from fskd_onnx.compression.choice import choose
from fskd_onnx.compression.cost_model import CostModel
from fskd_onnx.compression.costs import NetworkCosts, NodeCost, count_costs, run_shapes
from fskd_onnx.compression.plan_limits import PlanLimits, UnitLimits
from fskd_onnx.compression.sensitivity import SAMPLES, Run, sensitivities
from fskd_onnx.compression.width_errors import Reading
from fskd_onnx.errors import ModelError, TargetError
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes import DropBlocks, FoldExtents
from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, full_rank, why_not
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.propagation import is_depthwise
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock, find_residual_blocks
from fskd_onnx.passes.base import export
from fskd_onnx.pipeline.divided_samples import DividedSamples
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.samples.batches import first_batches

_SKIPPED = "it is to be left whole (--skip)"
# An error that is not finite is one to stay away from.
_HOPELESS = 1e9


@dataclass(frozen=True)
class TeacherStudy:
    """What is known of a teacher before anything is chosen.

    Attributes:
        model: the teacher.
        channels: its units of width.
        blocks: its residual blocks.
        shapes: of its inputs in a run.
        count: how many samples such a run has.
        costs: of its nodes.
        candidates: its units: widths, then factors, then blocks.
        scores: of the channels of each unit of width, by method, by the unit's name.
    """

    model: LoadedModel
    channels: PrunableChannels
    blocks: tuple[ResidualBlock, ...]
    shapes: Mapping[str, tuple[int, ...]]
    count: int
    costs: NetworkCosts
    candidates: tuple[Candidates, ...]
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]

    @cached_property
    def cost_model(self) -> CostModel:
        """The cost at any levels."""
        graph = self.model.graph()
        args = self.shapes, self.channels, self.blocks, self.candidates
        return CostModel(graph, self.costs, *args)

    def choose(self, what: CostName, part: float) -> Plan:
        """Return the plan of least error that leaves a part of a cost.

        Raises:
            TargetError: no plan leaves so little.
        """
        terms, fixed = self.cost_model.terms(what)
        total = self.costs.total
        whole = total.parameters if what == CostName.PARAMS else total.macs
        errors = [[level.error for level in unit.levels] for unit in self.candidates]
        choice = choose(errors, terms, part * whole - fixed)
        plan = self.plan(choice.levels)
        if choice.cost > part * whole - fixed:
            left = (choice.cost + fixed) / whole
            raise TargetError(
                f"{self.model.name}: at most {1 - left:.0%} of {what} can go within the limits; "
                "ask for less, allow more methods, or raise --max-ratio",
                plan,
            )
        return plan

    def plan(self, levels: Sequence[int]) -> Plan:
        """Return what becomes of each unit at some levels."""
        pairs = zip(self.candidates, levels, strict=True)
        units = [self._record(unit, unit.levels[at], levels) for unit, at in pairs]
        return Plan(self.model.name, tuple(units))

    def completed(self, plan: Plan) -> Plan:
        """Return a plan from a file with the channels that it leaves open, and its costs."""
        units = []
        for unit in plan.units:
            if unit.kind == UnitKind.WIDTH and unit.is_reduced and unit.kept is None:
                own = next(u for u in self.channels.units if u.name == unit.unit)
                scores = self.scores.get(unit.unit, {}).get(unit.method, np.zeros(own.width))
                kept = own.best(scores, unit.after[0])
                unit = dataclasses.replace(unit, kept=kept, after=(len(kept),))
            units.append(unit)
        chosen = {(unit.kind, unit.unit): unit for unit in units}
        candidates = tuple(
            dataclasses.replace(
                one,
                levels=(
                    one.levels[0],
                    Level(
                        chosen[one.kind, one.unit].method,
                        chosen[one.kind, one.unit].after,
                        chosen[one.kind, one.unit].kept,
                    ),
                ),
            )
            if chosen[one.kind, one.unit].is_reduced
            else one
            for one in self.candidates
        )
        study = dataclasses.replace(self, candidates=candidates)
        levels = [int(chosen[one.kind, one.unit].is_reduced) for one in candidates]
        with_costs = study.plan(levels).units
        return Plan(
            plan.teacher,
            tuple(
                dataclasses.replace(unit, error=None, reason=chosen[unit.kind, unit.unit].reason)
                for unit in with_costs
            ),
        )

    def limits(self) -> PlanLimits:
        """Return what a plan from a file may say."""
        widths = {
            unit.name: UnitLimits((unit.width,), unit.groups, unit.reason, unit.parts)
            for unit in self.channels.units
        }
        factors = {
            name: {
                form.value: UnitLimits(
                    full_rank(form, LinearShape.of(linear)) if not reason else (), reason=reason
                )
                for form in Form
                for reason in [why_not(linear, form)]
            }
            for name, linear in self.channels.linears.items()
        }
        blocks = {block.name: UnitLimits((1,), reason=block.reason) for block in self.blocks}
        return PlanLimits(widths, factors, blocks)

    def _record(self, unit: Candidates, level: Level, levels: Sequence[int]) -> UnitPlan:
        whole = [0] * len(levels)
        nodes = [name for name in self._nodes(unit) if name in self.costs.by_width]
        zero = NodeCost(0, 0)
        before = sum((self.cost_model.node(name, whole) for name in nodes), zero)
        after = sum((self.cost_model.node(name, levels) for name in nodes), zero)
        first = unit.levels[0].after
        if unit.kind == UnitKind.FACTORS and level.method:
            first = full_ranks(self.channels.linears[unit.unit], Form(level.method))
        return UnitPlan(
            unit=unit.unit,
            kind=unit.kind,
            method=level.method,
            before=first,
            after=level.after if level.method else first,
            kept=level.kept,
            macs_before=before.macs,
            macs_after=after.macs,
            parameters_before=before.parameters,
            parameters_after=after.parameters,
            error=level.error if level.method else None,
            reason=unit.reason,
        )

    def _nodes(self, unit: Candidates) -> Sequence[str]:
        """Return the linear nodes of a unit."""
        if unit.kind == UnitKind.FACTORS:
            return [unit.unit]
        if unit.kind == UnitKind.BLOCK:
            return next(block.linears for block in self.blocks if block.name == unit.unit)
        return next(own.writers for own in self.channels.units if own.name == unit.unit)


def study_teacher(
    model: LoadedModel,
    options: CompressOptions,
    samples: DividedSamples | None,
    runtime: Runtime,
) -> TeacherStudy:
    """Analyse a teacher.

    Args:
        model: the teacher, see `prepared`.
        options: which methods, and how much may go.
        samples: None leaves errors to the weights alone.
        runtime: where to run.
    """
    graph = model.graph()
    channels, blocks = PrunableChannels(graph), find_residual_blocks(graph)
    of_samples = None if samples is None else samples.decoded.shapes
    shapes, count = run_shapes(model.inputs, of_samples)
    costs = count_costs(graph, shapes, count)
    places = _places(channels)
    moments: dict[str, NodeMoments] = {}
    weights: dict[str, float] = {}
    lost: dict[str, float] = {}
    factors: dict[str, Candidates] = {}
    linears = list(channels.linears.values())
    skipped = {name: _SKIPPED for name in channels.linears if options.skips(name)}

    def candidates_of(linear: Linear, patches: tuple[Array, Array] | None) -> Candidates:
        reason = skipped.get(linear.name, "")
        if not reason and samples is not None and patches is None:
            reason = "the moments of what it reads are not known"
        return factor_candidates(linear, patches, 1.0, options, reason)

    if samples is not None:
        found = analyse(
            runtime, graph, linears, places, samples.decoded, samples.splits.final.batches
        )
        for node in found:
            # Moments of patches are large, and the errors that they tell are not.
            factors[node.linear.name] = candidates_of(node.linear, node.patches)
            moments[node.linear.name] = dataclasses.replace(node, patches=None)
        run = _runner(model, samples, runtime)
        weights = sensitivities(model.graph, moments.values(), run, options.run.seed)
        if options.allows(MethodName.DROP_BLOCK):
            lost = _errors_without(model, blocks, run)
    for linear in linears:
        if linear.name not in factors:
            factors[linear.name] = candidates_of(linear, None)
    scores: dict[str, dict[str, NDArray[np.float64]]] = {}
    scales = _scales(model.model)
    widths = []
    for unit in channels.units:
        readings = _readings(unit, channels, places, moments if samples is not None else None)
        scores[unit.name] = _scores(unit, channels, readings, scales, options, samples is not None)
        reason = next((skipped[name] for name in unit.writers if name in skipped), "")
        widths.append(width_candidates(unit, scores[unit.name], readings, weights, options, reason))
    dropped = [_block(block, lost, skipped, options) for block in blocks]
    found_factors = [
        _weighed(factors[linear.name], weights.get(linear.name, 1.0)) for linear in linears
    ]
    everything = (*widths, *found_factors, *dropped)
    return TeacherStudy(
        model=model,
        channels=channels,
        blocks=tuple(blocks),
        shapes=shapes,
        count=count,
        costs=costs,
        candidates=tuple(_weighed(unit, 1.0) for unit in everything),
        scores=scores,
    )


def prepared(model: LoadedModel) -> LoadedModel:
    """Return a teacher whose canonical form has constants for all extents that are known."""
    return dataclasses.replace(model, canonical=FoldExtents()(model.canonical).model)


def _places(channels: PrunableChannels) -> dict[str, dict[str, Places]]:
    """Return, by reader and unit, which inputs each channel of the unit is."""
    found: dict[str, dict[str, Places]] = {}
    widths = {unit.name: unit.width for unit in channels.units}
    for name, linear in channels.linears.items():
        if is_depthwise(linear):
            continue  # what it makes of a channel is that channel's
        of_unit: defaultdict[str, defaultdict[int, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for place, read in enumerate(channels.inputs(linear)):
            if read is not None:
                of_unit[read[0]][read[1]].append(place)
        for unit, members in of_unit.items():
            lists = [members[member] for member in range(widths[unit])]
            if len(set(map(len, lists))) == 1:
                found.setdefault(name, {})[unit] = np.array(lists, np.intp)
    return found


def _readings(
    unit: ChannelUnit,
    channels: PrunableChannels,
    places: Mapping[str, Mapping[str, Places]],
    moments: Mapping[str, NodeMoments] | None,
) -> list[Reading]:
    """Return what each reader makes of the channels of a unit."""
    found = []
    for name in unit.readers:
        at = places.get(name, {}).get(unit.name)
        if at is None:
            continue
        same = np.eye(unit.width)
        fitted, judged = same, same
        if moments is not None:
            if name not in moments or unit.name not in moments[name].channels:
                continue
            fitted, judged = moments[name].channels[unit.name]
        found.append(Reading(name, _seen(channels.linears[name], at), fitted, judged))
    return found


def _seen(linear: Linear, places: Places) -> Array:
    """Return H = M M' of a reader for the channels of a unit, (width, width)."""
    groups, n, p = linear.shape
    taps = int(np.prod(linear.kernel_shape, dtype=int))
    inputs = p // taps
    weights = np.zeros((groups * n, groups * inputs, taps))
    for group in range(groups):
        rows, columns = (
            slice(group * n, (group + 1) * n),
            slice(group * inputs, (group + 1) * inputs),
        )
        weights[rows, columns] = linear.matrix[group].reshape(n, inputs, taps)
    own = weights[:, places]  # (n, width, repeats, taps)
    flat = own.transpose(1, 0, 2, 3).reshape(len(places), -1)
    return np.asarray(flat @ flat.T)


def _scores(
    unit: ChannelUnit,
    channels: PrunableChannels,
    readings: Sequence[Reading],
    scales: Mapping[str, NDArray[np.float64]],
    options: CompressOptions,
    with_samples: bool,
) -> dict[str, NDArray[np.float64]]:
    """Return how much each channel is worth, by each method that may be used and can tell."""
    found = {}
    writers = [(name, channels.linears[name]) for name in unit.writers]
    if options.allows(MethodName.L1):
        found[MethodName.L1.value] = _per_channel(
            unit,
            {name: np.abs(v.matrix).sum(axis=2).reshape(-1) for name, v in writers},
        )
    normed = {name: scales[v.output.name] for name, v in writers if v.output.name in scales}
    if options.allows(MethodName.SLIMMING) and normed:
        found[MethodName.SLIMMING.value] = _per_channel(unit, normed)
    if options.allows(MethodName.THINET) and with_samples and readings and not unit.reason:
        found[MethodName.THINET.value] = greedy_scores(readings)
    return found


def _per_channel(
    unit: ChannelUnit, of_writers: Mapping[str, NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Add up scores of the channels of writers, (width,)."""
    total = np.zeros(unit.width)
    for name, scores in of_writers.items():
        np.add.at(total, np.array(unit.members[name]), scores)
    return total


def _scales(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
    """Return the scale of each BatchNormalization, by the name of its output."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.output[0]: np.abs(onnx.numpy_helper.to_array(stored[node.input[1]]).astype(np.float64))
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and node.input[1] in stored
    }


def _runner(model: LoadedModel, samples: DividedSamples, runtime: Runtime) -> Run:
    """Return what runs a rewritten teacher on some samples."""
    batches = first_batches(samples.splits.final.batches, SAMPLES)
    indices = np.concatenate([batch.samples[: batch.count] for batch in batches])[:SAMPLES]

    def run(graph: gs.Graph) -> list[Array]:
        rewritten = export(graph, like=model.canonical)
        found = forward(
            runtime, rewritten, samples.decoded, indices, None, model.name, model.inputs
        )
        finite = [np.nan_to_num(values.astype(np.float64)) for values in found.values.values()]
        if not finite:
            raise ModelError(
                f"{model.name}: no output holds samples, so nothing tells what matters to it"
            )
        return finite

    return run


def _errors_without(
    model: LoadedModel, blocks: Sequence[ResidualBlock], run: Run
) -> dict[str, float]:
    """Return the relative error of the output without each residual block, by its name."""
    target = run(model.graph())
    energy = sum(float(np.sum((values - values.mean(axis=0)) ** 2)) for values in target)
    found = {}
    for block in blocks:
        if not block.reason and energy > 0:
            graph = model.graph()
            DropBlocks([block.name]).run(graph)
            pairs = zip(run(graph), target, strict=True)
            found[block.name] = sum(float(np.sum((a - b) ** 2)) for a, b in pairs) / energy
    return found


def _block(
    block: ResidualBlock,
    lost: Mapping[str, float],
    skipped: Mapping[str, str],
    options: CompressOptions,
) -> Candidates:
    reason = block.reason or next((skipped[n] for n in block.linears if n in skipped), "")
    if not reason and not options.allows(MethodName.DROP_BLOCK):
        reason = "no method that may be used leaves blocks out"
    if not reason and block.name not in lost:
        reason = "without samples nothing tells what it is worth"
    return block_candidate(block.name, lost.get(block.name, 0.0), reason)


def _weighed(unit: Candidates, sensitivity: float) -> Candidates:
    """Return a unit with its errors times a sensitivity, and finite."""

    def weighed(level: Level) -> Level:
        error = level.error * sensitivity
        return dataclasses.replace(level, error=error if np.isfinite(error) else _HOPELESS)

    return dataclasses.replace(unit, levels=tuple(map(weighed, unit.levels)))
