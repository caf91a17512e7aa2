"""Cut a graph at given tensors, so that its nodes run once each, segment by segment.

Stop j is a set of tensors that have to exist at stage j (a block's output, or its input). Segment j
holds the nodes that stop j depends on and that no earlier segment has run::

    inputs ──▶ segment 0 ──▶ cut 0 ──▶ segment 1 ──▶ cut 1 ──▶ ... ──▶ outputs
                              │                       │
                           stop 0                  stop 1

The cut after a segment is what later segments still read: one tensor in a plain chain, several
where residual or dense connections cross it. A tensor leaves the cut after its last reader. Where
no stop is needed in between, ``join`` makes one segment of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis.nodes import bodies
from fskd_onnx.passes.errors import PreconditionError


@dataclass(frozen=True)
class Segment:
    """One stretch of a graph, named by the tensors at its borders.

    Attributes:
        inputs: tensors that it reads from the cut before it.
        outputs: tensors that it adds to the cut.
        expired: tensors of the cut that no later segment reads.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    expired: tuple[str, ...]


def plan_segments(graph: gs.Graph, stops: Sequence[Sequence[str]]) -> list[Segment]:
    """Divide the nodes of a graph among stages.

    Args:
        graph: the graph, its nodes in topological order.
        stops: for each stage, the tensors that must be in the cut when its segment has run.

    Returns:
        One segment per stop. The first reads the graph's inputs.

    Raises:
        PreconditionError: a stop names a tensor that the graph does not compute.
    """
    tensors = {t.name: t for node in graph.nodes for t in node.outputs if not t.is_empty()}
    tensors |= {t.name: t for t in graph.inputs}
    for name in (name for stop in stops for name in stop):
        if name not in tensors:
            msg = f"the graph '{graph.name}' computes no tensor '{name}' to stop at"
            raise PreconditionError(msg)

    stage_of: dict[int, int] = {}  # node -> the stage that runs it
    made_at = dict.fromkeys((t.name for t in graph.inputs), -1)  # tensor -> the stage that makes it
    last_read_at = dict.fromkeys(made_at, 0)  # an input without readers goes with the first stage
    for stage, stop in enumerate(stops):
        for node in ancestors([tensors[name] for name in stop], done=stage_of):
            stage_of[id(node)] = stage
            made_at |= {t.name: stage for t in node.outputs if not t.is_empty()}
            last_read_at |= {t.name: stage for t in reads(node)}
        last_read_at |= dict.fromkeys(stop, stage)

    segments = []
    cut = [t.name for t in graph.inputs]
    for stage, stop in enumerate(stops):
        nodes = [node for node in graph.nodes if stage_of.get(id(node)) == stage]
        read = dict.fromkeys(t.name for node in nodes for t in reads(node))
        made = dict.fromkeys(t.name for node in nodes for t in node.outputs)
        outputs = [name for name in made if last_read_at.get(name, -1) > stage or name in stop]
        cut += outputs
        segments.append(
            Segment(
                inputs=tuple(name for name in read if made_at.get(name, stage) < stage),
                outputs=tuple(outputs),
                expired=tuple(name for name in cut if last_read_at[name] == stage),
            )
        )
    return segments


def join(segments: Sequence[Segment]) -> Segment:
    """Put consecutive segments together: one stretch, from the first cut to the last."""
    made = dict.fromkeys(name for segment in segments for name in segment.outputs)
    read = dict.fromkeys(name for segment in segments for name in segment.inputs)
    return Segment(
        inputs=tuple(name for name in read if name not in made),
        outputs=tuple(made),
        expired=tuple(name for segment in segments for name in segment.expired),
    )


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield the computed tensors that a node reads, those inside its bodies (If, Loop) included."""
    for tensor in node.inputs:
        if not isinstance(tensor, gs.Constant) and not tensor.is_empty():
            yield tensor
    for body in bodies(node):
        inside = {id(t) for inner in body.nodes for t in inner.outputs}
        inside |= {id(t) for t in body.inputs}
        yield from (t for inner in body.nodes for t in reads(inner) if id(t) not in inside)


def ancestors(
    tensors: Sequence[gs.Tensor],
    done: Mapping[int, int] | None = None,
    border: set[str] | None = None,
) -> list[gs.Node]:
    """Return the nodes that tensors depend on, up to nodes that are done or tensors of a border."""
    found: dict[int, gs.Node] = {}
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        if border and tensor.name in border:
            continue
        for node in tensor.inputs:
            if id(node) not in found and not (done and id(node) in done):
                found[id(node)] = node
                pending.extend(reads(node))
    return list(found.values())
