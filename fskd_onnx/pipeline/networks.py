"""The two networks of a call, as they came and as the passes read them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError, ModelError
from fskd_onnx.matching.block_extents import find_decomposed
from fskd_onnx.matching.branches import chains_in_sums, sums_to_merge
from fskd_onnx.matching.joined_layers import rewrites_of_teacher
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes import AffineMap, Canonicalize, ComposeChains, MergeBranches, export
from fskd_onnx.passes.analysis.factored_blocks import FactoredBlock, read_block
from fskd_onnx.passes.analysis.finite_parameters import find_not_finite
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.branch_sums import find_sums
from fskd_onnx.passes.inline_branches import Inlined, restore_branches
from fskd_onnx.passes.merge_branches import give_back
from fskd_onnx.results import BlockPair, Evidence, Matching
from fskd_onnx.serialization.interface import (
    InputSpec,
    input_specs,
    output_names,
)
from fskd_onnx.serialization.model_files import (
    ModelSource,
    count_parameters,
    errors_of,
    load_model,
    source_name,
)
from fskd_onnx.serialization.node_check import check_linear_nodes
from fskd_onnx.serialization.paired_interfaces import pair_interfaces

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
        uncomposed: the canonical form before blocks of several nodes became one each; None where
            there is no such block.
        summed: branches of a sum that went away with that, and what each was merged into.
        factors: nodes of a chain that went away with that, and the node at its end.
        inlined: Ifs of which the canonical form has the body that the samples take.
    """

    name: str
    model: onnx.ModelProto
    canonical: onnx.ModelProto
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    uncomposed: onnx.ModelProto | None = None
    summed: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, str] = field(default_factory=dict)
    inlined: tuple[Inlined, ...] = ()
    _given: onnx.ModelProto | None = None

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
                    "infinite values, or such beyond single precision; repair it, or export the "
                    "network again"
                )
            canonical = _canonical(name, model)
        inputs, outputs = tuple(input_specs(model)), tuple(output_names(model))
        return LoadedModel(name, model, canonical, inputs, outputs)

    def with_branches(self, model: onnx.ModelProto, inlined: Sequence[Inlined]) -> LoadedModel:
        """Return the model with bodies in the place of some Ifs in its canonical form.

        Args:
            model: the model with these bodies.
            inlined: what they stand for.
        """
        borders = {name for each in inlined for name in each.borders}
        with errors_of(self.name):
            canonical = _canonical(self.name, model, borders)
        return LoadedModel(
            self.name,
            self.model,
            canonical,
            self.inputs,
            self.outputs,
            inlined=tuple(inlined),
            _given=model,
        )

    @property
    def given(self) -> onnx.ModelProto:
        """The model as it came, but for bodies in the place of Ifs."""
        return self.model if self._given is None else self._given

    def graph(self) -> gs.Graph:
        """Return a fresh graph of the canonical form, to read or to rewrite.

        Its inputs and outputs are in the order of the teacher's; `export` keeps the file's order.
        """
        return self.graph_of(self.canonical)

    def graph_of(self, form: onnx.ModelProto) -> gs.Graph:
        """Return a graph of another form of the model, as `graph` does."""
        graph = gs.import_onnx(form)
        inputs = {tensor.name: tensor for tensor in graph.inputs}
        outputs = {tensor.name: tensor for tensor in graph.outputs}
        graph.name = self.name
        graph.inputs = [inputs[spec.name] for spec in self.inputs]
        graph.outputs = [outputs[name] for name in self.outputs]
        return graph

    def with_merged(self, sums: Collection[str]) -> LoadedModel:
        """Return the model with some sums of branches merged in its canonical form.

        Branches that are chains are composed for that.
        """
        graph = self.graph()
        chains = chains_in_sums(graph)
        ComposeChains(chains).run(graph)
        found = [branches for branches in find_sums(graph) if branches.name in sums]
        if not found:
            return self
        ends = {linear.name for branches in found for linear in branches.linears}
        composed = self.with_composed([chain for chain in chains if chain[-1] in ends])
        summed = {
            linear.name: branches.largest.name
            for branches in found
            for linear in branches.linears
            if linear.node is not branches.largest.node
        }
        merged = MergeBranches(sums)(composed._named().canonical).model
        before = self.canonical if self.uncomposed is None else self.uncomposed
        return replace(composed, canonical=merged, uncomposed=before, summed=summed)

    def with_composed(self, chains: Collection[tuple[str, ...]]) -> LoadedModel:
        """Return the model with some chains of linear nodes as one node each."""
        if not chains:
            return self
        composed = ComposeChains(chains)(self._named().canonical).model
        before = self.canonical if self.uncomposed is None else self.uncomposed
        factors = {name: chain[-1] for chain in chains for name in chain[:-1]}
        return replace(
            self, canonical=composed, uncomposed=before, factors={**self.factors, **factors}
        )

    def _named(self) -> LoadedModel:
        """Return the model with names of linear nodes that stay theirs, whoever else goes away.

        Names of other nodes, which they may get in the way of, count for nothing.
        """
        graph = gs.import_onnx(self.canonical)
        names = {id(view.node): view.name for view in find_linear(graph)}
        for node in graph.nodes:
            node.name = names.get(id(node), "")
        return replace(self, canonical=export(graph, like=self.canonical))

    def factored_blocks(self) -> dict[str, FactoredBlock]:
        """Return the structure of each block that is one node of several, by the node's name."""
        if self.uncomposed is None:
            return {}
        linears = _linears(gs.import_onnx(self.uncomposed))
        own = {linear.output.name: linear.input.name for linear in linears}
        found = {}
        for view in _linears(self.graph()):
            if own.get(view.output.name) != view.input.name:
                block = read_block(linears, view.input.name, view.output.name)
                if block is not None and any(len(chain) > 1 for chain in block.chains):
                    found[view.name] = block
        return found

    def export(
        self, fitted: gs.Graph, factors: Mapping[str, AffineMap] | None = None
    ) -> onnx.ModelProto:
        """Return the model with the weights of a graph of its canonical form.

        Args:
            fitted: the graph.
            factors: new weights of nodes of blocks that are one node of it, by the node's name.
        """
        if self.uncomposed is None:
            return restore_branches(export(fitted, like=self.canonical), self.inlined)
        graph = gs.import_onnx(self.uncomposed)
        give_back(graph, self.graph(), fitted, factors or {})
        return restore_branches(export(graph, like=self.uncomposed), self.inlined)

    @property
    def parts(self) -> Mapping[str, str]:
        """Return the nodes that went into another, and which one that is."""
        return {**self.summed, **self.factors}

    def tell_of_parts(self, matching: Matching) -> Matching:
        """Return a matching with a line for each node that went into another."""
        op = {pair.student: pair.op for pair in matching.pairs}
        summed = "it is summed with '{}', which is fitted for both"
        factor = "it is a factor of the block that ends at '{}'"
        parts = [(name, into, summed) for name, into in self.summed.items()]
        parts += [(name, into, factor) for name, into in self.factors.items()]
        lines = [
            BlockPair(
                name,
                op[self.summed.get(into, into)],
                None,
                None,
                None,
                Evidence.NONE,
                0.0,
                text.format(into),
            )
            for name, into, text in parts
        ]
        return replace(matching, pairs=(*matching.pairs, *lines))


def _canonical(name: str, model: onnx.ModelProto, borders: Collection[str] = ()) -> onnx.ModelProto:
    """Return a model as the passes read it; some tensors stay as they are, as outputs do."""
    written = {output for node in model.graph.node for output in node.output}
    kept = written.intersection(borders) - set(output_names(model))
    whole = model
    if kept:
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        whole.graph.output.extend(onnx.ValueInfoProto(name=each) for each in sorted(kept))
    result = Canonicalize()(whole)
    for note in result.notes:
        logger.debug("%s: %s", name, note)
    canonical = result.model
    if kept:
        del canonical.graph.output[-len(kept) :]
    check_linear_nodes(canonical)  # weights that were computed are there now
    return canonical


def _linears(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


Networks = tuple[LoadedModel, LoadedModel]


def load_networks(teacher: ModelSource, student: ModelSource) -> Networks:
    """Load teacher and student, which take the same inputs and give the same outputs.

    Raises:
        ModelError: a file cannot be used, or the models do not fit each other.
    """
    one, other = LoadedModel.load(teacher), LoadedModel.load(student)
    paired = pair_interfaces(one.model, other.model, one.name, other.name)
    return arranged((one, replace(other, inputs=paired.inputs, outputs=paired.outputs)))


def arranged(networks: Networks) -> Networks:
    """Return networks whose forms have the same sums and joined matrices.

    Sums of branches that only one of them has are merged. Matrices of the teacher that are applied
    to one tensor are joined into one node, or apart, as the student's are.
    """
    one, other = networks
    for rewrite in rewrites_of_teacher(one.graph(), other.graph()):
        one = replace(one, canonical=rewrite(one.canonical).model)
    graphs = one.graph(), other.graph()
    theirs, mine = sums_to_merge(*graphs)
    if not (theirs or mine):
        return one, other
    merged = MergeBranches(theirs)(one.canonical)
    # What stands behind a sum folds into it as well: the teacher is never written.
    one = replace(one, canonical=Canonicalize()(merged.model).model)
    return one, other.with_merged(mine)


def check_order(networks: Networks, partners: Sequence[Partner]) -> None:
    """Check that the student is not the original network and the teacher the compressed one.

    A fit of a network to its own pruned form succeeds, and gives a large network that is no better
    than the small one.

    Args:
        networks: teacher and student.
        partners: of the student's linear nodes.

    Raises:
        MatchError: the student has more parameters, and blocks that are wider than the teacher's
            and none that is narrower.
    """
    teacher, student = networks
    counts = count_parameters(teacher.model), count_parameters(student.model)
    if counts[1] <= counts[0]:
        return
    widths = {view.output.name: view.width for view in _linears(teacher.graph())}
    own = {view.name: view.width for view in _linears(student.graph())}
    paired = {p.student: (own[p.student], widths[p.teacher]) for p in partners if p.teacher}
    wider = [name for name, (width, other) in paired.items() if width > other]
    if wider and not any(width < other for width, other in paired.values()):
        width, other = paired[wider[0]]
        raise MatchError(
            f"{student.name}: is larger than its teacher {teacher.name} ({counts[1]:,} and "
            f"{counts[0]:,} parameters; '{wider[0]}' has {width} channels and {other} there); give "
            "the original network as TEACHER, first, and the compressed one as STUDENT"
        )


def compose_decomposed(networks: Networks, partners: Sequence[Partner]) -> Networks:
    """Let each block of the student that is a chain of nodes be one node, to be fitted as a whole.

    Args:
        networks: teacher and student.
        partners: of the student's linear nodes.
    """
    teacher, student = networks
    return teacher, student.with_composed(find_decomposed(student.graph(), partners))
