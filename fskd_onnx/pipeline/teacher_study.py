"""Everything that a compression knows of a teacher: its units, their levels, and what they cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.compress_options import CostName
from fskd_onnx.compress_results import Plan, UnitKind, UnitPlan
from fskd_onnx.compression.candidates import Candidates, Level, full_ranks
from fskd_onnx.compression.choice import choose
from fskd_onnx.compression.cost_model import (
    CostModel,
    Measure,
    NodeState,
    fitted_parameters,
    multiply_adds,
    parameters,
)
from fskd_onnx.compression.costs import NetworkCosts, NodeCost
from fskd_onnx.compression.plan_limits import PlanLimits, UnitLimits
from fskd_onnx.errors import ModelError, TargetError
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, full_rank, why_not
from fskd_onnx.passes.analysis.linear import find_linear
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.refusals import Refusal, is_of_quantized
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.printable import shortened

# What rounding may take off a budget, relative to it.
_ROUNDING = 1e-12


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
        is_fitted: whether its students are fitted.
    """

    model: LoadedModel
    channels: PrunableChannels
    blocks: tuple[ResidualBlock, ...]
    shapes: Mapping[str, tuple[int, ...]]
    count: int
    costs: NetworkCosts
    candidates: tuple[Candidates, ...]
    scores: Mapping[str, Mapping[str, NDArray[np.float64]]]
    is_fitted: bool

    @cached_property
    def cost_model(self) -> CostModel:
        """The cost at any levels."""
        graph = self.model.graph()
        args = self.shapes, self.channels, self.blocks, self.candidates
        return CostModel(graph, self.costs, *args)

    def choose(self, what: CostName, part: float, measure: Measure | None = None) -> Plan:
        """Return the plan of least error that leaves a part of a cost.

        Args:
            what: the cost.
            part: how much of it may be left.
            measure: of the cost, where that is time: seconds of each node.

        Raises:
            ModelError: there is nothing to take a part of.
            TargetError: no plan leaves so little.
        """
        model, total = self.cost_model, self.costs.total
        counted = parameters if what == CostName.PARAMS else multiply_adds
        if measure is None:
            with_biases = what == CostName.PARAMS and self.is_fitted
            measure = fitted_parameters if with_biases else counted
        in_nodes = self._of_all_nodes(measure)
        if what == CostName.LATENCY:
            # The other nodes are thought to take as much less.
            whole, elsewhere = in_nodes, 0.0
            budget = part * whole
        else:
            whole = float(total.parameters if what == CostName.PARAMS else total.macs)
            elsewhere = whole - self._of_all_nodes(counted)
            # Costs are whole numbers; rounding of the budget must not take one off.
            budget = float(math.floor(part * whole * (1 + _ROUNDING)))
        if not whole:
            raise ModelError(f"{self.model.name}: {self._why_nothing(what)}")
        terms = model.terms(measure)
        changing = math.fsum(term.cost((0,) * len(term.units)) for term in terms)
        fixed = elsewhere + in_nodes - changing
        errors = [[level.error for level in unit.levels] for unit in self.candidates]
        choice = choose(errors, terms, budget - fixed)
        plan = self.plan(choice.levels)
        if choice.cost > budget - fixed:
            most = max(0.0, 1 - (choice.cost + fixed) / whole)
            raise TargetError(
                f"{self.model.name}: at most {most:.0%} of {what} can go within the limits"
                f"{self._why_no_more(what)}",
                plan,
            )
        return plan

    def _why_no_more(self, what: CostName) -> str:
        """Say what to do for a smaller student, and where nothing at all can go why that is."""
        remedy = "ask for less, allow more methods, or raise --max-ratio"
        if any(len(unit.levels) > 1 for unit in self.candidates):
            unknown = self.costs.why_incomplete if what != CostName.PARAMS else ""
            return f" ({unknown}); {remedy}" if unknown else f"; {remedy}"
        views = find_linear(self.model.graph())
        refused = [(view.name, view.reason) for view in views if isinstance(view, Refusal)]
        quantized = [(name, reason) for name, reason in refused if is_of_quantized(reason)]
        if quantized:
            remedy = "compress it before it is quantized"
        whole = [(unit.unit, unit.reason) for unit in self.candidates]
        if not (causes := [*quantized, *whole, *refused]):
            return f"; {remedy}"
        name, reason = causes[0]
        return f" ('{shortened(name)}': {reason}); {remedy}"

    def _why_nothing(self, what: CostName) -> str:
        """Say why there is nothing of a cost that a part could be taken off."""
        if what == CostName.PARAMS or not self.costs.not_counted:
            return f"it has no nodes with {what} that could be taken off"
        return (
            f"{self.costs.why_incomplete}, so no part of the {what} can be taken off; "
            "simplify it for inputs of one shape first"
        )

    def _of_all_nodes(self, measure: Measure) -> float:
        """Return the cost of the linear nodes as they are in the teacher."""
        return math.fsum(
            measure(node, NodeState(node.cost.inputs, node.cost.outputs))
            for node in self.cost_model.nodes.values()
        )

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
        nodes = self._nodes(unit)
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
