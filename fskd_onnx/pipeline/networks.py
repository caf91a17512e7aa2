"""The two networks of a call, as they came and as the passes read them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.errors import ModelError
from fskd_onnx.matching.branches import sums_to_merge
from fskd_onnx.passes import Canonicalize, MergeBranches, export
from fskd_onnx.passes.analysis.finite_parameters import find_not_finite
from fskd_onnx.passes.branch_sums import find_sums
from fskd_onnx.passes.merge_branches import give_back
from fskd_onnx.results import BlockPair, Evidence, Matching
from fskd_onnx.serialization.interface import (
    InputSpec,
    input_specs,
    output_names,
    pair_interfaces,
)
from fskd_onnx.serialization.model_files import ModelSource, errors_of, load_model, source_name
from fskd_onnx.serialization.node_check import check_linear_nodes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model as it came and as the passes read it.

    Attributes:
        name: what to call it.
        model: as it came.
        canonical: as the passes read it.
        inputs: its inputs, in the order of the teacher's.
        outputs: names of its outputs, in the order of the teacher's.
        with_branches: the canonical form before sums of branches were merged; None where none was.
        summed: the nodes that went away with that, and what each was merged into.
    """

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    with_branches: onnx.ModelProto | None = None
    summed: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def load(source: ModelSource) -> LoadedModel:
        """Read, check and canonicalize a model.

        Raises:
            ModelError: it cannot be read, or a parameter is not finite.
        """
        name, model = source_name(source), load_model(source)
        with errors_of(name):
            for parameter, node in find_not_finite(gs.import_onnx(model)):
                raise ModelError(
                    f"{name}: the parameter '{parameter}' of its node '{node}' holds NaN or "
                    "infinite values; repair it, or export the network again"
                )
            result = Canonicalize()(model)
            check_linear_nodes(result.model)  # weights that were computed are there now
        for note in result.notes:
            logger.debug("%s: %s", name, note)
        inputs, outputs = tuple(input_specs(model)), tuple(output_names(model))
        return LoadedModel(name, model, result.model, inputs, outputs)

    def graph(self) -> gs.Graph:
        """Return a fresh graph of the canonical form, to read or to rewrite.

        Its inputs and outputs are in the order of the teacher's; `export` keeps the file's order.
        """
        graph = gs.import_onnx(self.canonical)
        inputs = {tensor.name: tensor for tensor in graph.inputs}
        outputs = {tensor.name: tensor for tensor in graph.outputs}
        graph.name = self.name
        graph.inputs = [inputs[spec.name] for spec in self.inputs]
        graph.outputs = [outputs[name] for name in self.outputs]
        return graph

    def with_merged(self, sums: Collection[str]) -> LoadedModel:
        """Return the model with some sums of branches merged in its canonical form."""
        found = [branches for branches in find_sums(self.graph()) if branches.name in sums]
        summed = {
            linear.name: branches.largest.name
            for branches in found
            for linear in branches.linears
            if linear.node is not branches.largest.node
        }
        if not found:
            return self
        merged = MergeBranches(sums)(self.canonical).model
        return replace(self, canonical=merged, with_branches=self.canonical, summed=summed)

    def export(self, fitted: gs.Graph) -> onnx.ModelProto:
        """Return the model with the weights of a graph of its canonical form."""
        if self.with_branches is None:
            return export(fitted, like=self.canonical)
        graph = gs.import_onnx(self.with_branches)
        give_back(graph, self.graph(), fitted)
        return export(graph, like=self.with_branches)

    def tell_of_branches(self, matching: Matching) -> Matching:
        """Return a matching with a line for each node that was merged into another."""
        op = {pair.student: pair.op for pair in matching.pairs}
        reason = "it is summed with '{}', which is fitted for both"
        lines = [
            BlockPair(name, op[into], None, None, None, Evidence.NONE, 0.0, reason.format(into))
            for name, into in self.summed.items()
        ]
        return replace(matching, pairs=(*matching.pairs, *lines))


Networks = tuple[LoadedModel, LoadedModel]


def load_networks(teacher: ModelSource, student: ModelSource) -> Networks:
    """Load teacher and student, which take the same inputs and give the same outputs.

    Sums of branches that only one of them has are merged.

    Raises:
        ModelError: a file cannot be used, or the models do not fit each other.
    """
    one, other = LoadedModel.load(teacher), LoadedModel.load(student)
    paired = pair_interfaces(one.model, other.model, one.name, other.name)
    other = replace(other, inputs=paired.inputs, outputs=paired.outputs)
    graphs = one.graph(), other.graph()
    if not any(find_sums(graph) for graph in graphs):
        return one, other
    theirs, mine = sums_to_merge(*graphs)
    merged = MergeBranches(theirs)(one.canonical)
    # What stands behind a sum folds into it as well: the teacher is never written.
    one = replace(one, canonical=Canonicalize()(merged.model).model)
    return one, other.with_merged(mine)
