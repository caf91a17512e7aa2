"""A plan carried out: channels go, then blocks, then kernels become chains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from fskd_onnx.compress_results import Plan
from fskd_onnx.compression.cost_model import fits
from fskd_onnx.matching.pairing import Partner, inner_node_of
from fskd_onnx.passes import DropBlocks, PruneChannels
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.factorizations import FACTORIZATIONS
from fskd_onnx.results import Evidence


def carry_out(plan: Plan, graph: gs.Graph) -> None:
    """Rewrite a teacher's graph to the student of a plan, in place.

    A node whose channels leave no room for its rank stays whole.

    Raises:
        PreconditionError: the plan is not one of this graph.
    """
    PruneChannels(plan.kept).run(graph)
    if plan.dropped:
        DropBlocks(plan.dropped).run(graph)
    for form in Form:
        views = {view.name: view for view in find_linear(graph) if isinstance(view, Linear)}
        ranks = {
            name: rank
            for name, rank in plan.ranks(form).items()
            if name in views and fits(form, LinearShape.of(views[name]), rank)
        }
        if ranks:
            FACTORIZATIONS[form].of(ranks).run(graph)


def pairs_of(plan: Plan, channels: PrunableChannels, student: gs.Graph) -> dict[str, Partner]:
    """Return the partner of each linear node of the student, by its name.

    Args:
        plan: that the student was made by.
        channels: of the network that it was made from.
        student: the student, canonical.
    """
    rows = {
        writer: unit.rows(writer, plan.kept.get(unit.name, range(unit.width)))
        for unit in channels.units
        for writer in unit.writers
    }
    views = [view for view in find_linear(student) if isinstance(view, Linear)]
    readers = {view.input.name: view for view in views}
    found = {}
    for view in views:
        own = channels.linears.get(view.name)
        if own is not None:
            output, kept = own.output.name, rows[view.name]
            found[view.name] = Partner(view.name, output, Evidence.PLAN, 1.0, channels=kept)
            continue
        end = view
        while end.name not in channels.linears:  # the last node of a chain has the teacher's name
            end = readers[end.output.name]
        found[view.name] = Partner(view.name, None, reason=inner_node_of(end.name))
    return found


def pairs_through(
    pairs: Mapping[str, Partner], channels: PrunableChannels, earlier: Mapping[str, Partner]
) -> dict[str, Partner]:
    """Return the partners in a teacher, from those in a student that it has.

    Args:
        pairs: of a student's student, by the names of its nodes.
        channels: of the student.
        earlier: the student's own partners, by the names of its nodes.
    """
    by_output = {linear.output.name: name for name, linear in channels.linears.items()}
    found = {}
    for name, pair in pairs.items():
        partner = pair
        if pair.teacher is not None:
            if by_output[pair.teacher] not in earlier:
                continue  # the fit gave it a bias, and so another name
            partner = earlier[by_output[pair.teacher]]
        rows = None
        if pair.channels is not None and partner.channels is not None:
            rows = tuple(partner.channels[channel] for channel in pair.channels)
        found[name] = replace(partner, student=name, channels=rows)
    return found
