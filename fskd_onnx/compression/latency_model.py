"""Seconds of linear nodes at any levels of choice units, from measured ones.

Measured are a node at some of its widths, while the others are whole (``NodeLatency.by_widths``),
and the chains that it may become, whole. A chain of narrower channels takes as much less as the
node does: by its multiply-adds it would take nothing, where a small node takes what any node takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.compression.cost_model import CostModel, ModelledNode, NodeState
from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.compression.node_latency import NodeLatency
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, links
from fskd_onnx.passes.split_terms import are_faster_apart

_Table = tuple[list[int], list[int], NDArray[np.float64]]
"""Numbers of input channels, of output channels, and seconds at each pair of them."""


class LatencyModel:
    """Seconds of the nodes of a teacher, as a measure of the terms of a ``CostModel``."""

    def __init__(
        self, costs: CostModel, cases: Mapping[str, LinearCase], nodes: NodeLatency
    ) -> None:
        """Measure the nodes as they are.

        Args:
            costs: says what nodes there are, and at which widths they may be.
            cases: the nodes, by name.
            nodes: measures.
        """
        self._costs, self._cases, self._nodes = costs, cases, nodes
        self._widths: dict[str, _Table | None] = {}
        self._chains: dict[tuple[str, Form, tuple[int, ...]], float | None] = {}
        # Together they take a fraction of the time; what matters most comes first.
        largest = sorted(costs.nodes.values(), key=lambda node: -node.cost.cost().macs)
        nodes.seconds(
            [
                case
                for node in largest
                if node.linear.name in cases
                for state in self._whole_states(node)
                for case in chain_cases(cases[node.linear.name], node, state)
            ]
        )

    def __call__(self, node: ModelledNode, state: NodeState | None) -> float:
        """Return the seconds of a node in a state; 0 where none are known of it."""
        if state is None:
            return 0.0
        name = node.linear.name
        if state.form is None:
            return self._of_widths(node, state.inputs, state.outputs)
        whole = NodeState(node.cost.inputs, node.cost.outputs, state.form, state.rank)
        narrowed = self._of_widths(node, state.inputs, state.outputs)
        key = name, state.form, state.rank
        if key not in self._chains:
            case = self._cases.get(name)
            found = None if case is None else self._nodes.seconds(chain_cases(case, node, whole))
            known = [one for one in found or () if one is not None]
            self._chains[key] = sum(known) if found and len(known) == len(found) else None
        seconds = self._chains[key]
        if seconds is None:  # the limit of time came before
            return narrowed
        alone = self._of_widths(node, node.cost.inputs, node.cost.outputs)
        return seconds * narrowed / alone if alone > 0 else seconds

    def _whole_states(self, node: ModelledNode) -> list[NodeState]:
        """Return a node as it is, and all chains that it may become."""
        inputs, outputs = node.cost.inputs, node.cost.outputs
        levels = () if node.factors is None else self._costs.candidates[node.factors].levels[1:]
        chains = [NodeState(inputs, outputs, Form(one.method), one.after) for one in levels]
        return [NodeState(inputs, outputs), *chains]

    def _of_widths(self, node: ModelledNode, inputs: int, outputs: int) -> float:
        name = node.linear.name
        if name not in self._widths:
            self._widths[name] = self._measured(node)
        known = self._widths[name]
        if known is None:
            return 0.0
        reads, writes, seconds = known
        by_outputs = np.array([np.interp(outputs, writes, row) for row in seconds])
        return float(np.interp(inputs, reads, by_outputs))

    def _measured(self, node: ModelledNode) -> _Table | None:
        """Return widths of a node, and seconds at each pair of them."""
        case = self._cases.get(node.linear.name)
        if case is None:
            return None
        writes = [node.cost.outputs] if node.writes is None else sorted(set(node.writes[1]))
        reads = [node.cost.inputs]
        if len(node.reads) == 1:
            (counts,) = node.reads.values()
            reads = [node.fixed + count for count in sorted(set(counts))]
        if case.groups == case.inputs > 1:
            found = self._nodes.seconds([case.with_widths(w, w) for w in writes])
            if any(one is None for one in found):
                return None
            return reads[-1:], writes, np.array([found], float)
        seconds = self._nodes.by_widths(case, reads, writes)
        return None if seconds is None else (reads, writes, seconds)


def chain_cases(case: LinearCase, node: ModelledNode, state: NodeState) -> list[LinearCase]:
    """Return the nodes of a chain in the place of a node.

    Args:
        case: of the node.
        node: the node.
        state: with a form.
    """
    if state.form is None or node.extents is None:
        return [case]
    shape = LinearShape(state.outputs, state.inputs, node.linear.kernel_shape)
    chain = links(state.form, shape, state.rank)
    found = []
    samples = case.others[: len(case.others) - len(shape.kernel)]
    extents = list(case.others[len(samples) :])
    for number, link in enumerate(chain):
        found.append(
            replace(
                case,
                inputs=link.inputs,
                outputs=link.outputs,
                groups=link.groups,
                kernel=link.kernel if case.kernel else (),
                others=(*samples, *extents),
                has_bias=case.has_bias and number == len(chain) - 1,
                attributes=tuple(
                    (name, _along(name, value, link.axes)) for name, value in case.attributes
                ),
            )
        )
        for axis in link.axes:
            extents[axis] = node.extents[1][axis]
    return _terms_apart(*found) if state.form == Form.DECOUPLE else found


def _terms_apart(first: LinearCase, last: LinearCase) -> list[LinearCase]:
    """Return a depthwise node and the 1 x 1 behind it as they are given out (``SplitTerms``)."""
    terms, channels = first.outputs // first.inputs, first.inputs
    if not are_faster_apart(terms, channels, first.kernel, first.dtype):
        return [first, last]
    pair = [replace(first, outputs=channels), replace(last, inputs=channels, has_bias=False)]
    return [*pair * (terms - 1), pair[0], replace(pair[1], has_bias=last.has_bias)]


def _along(name: str, value: object, axes: tuple[int, ...]) -> object:
    """Return an attribute of a node that moves along some axes only."""
    if not isinstance(value, tuple) or name not in ("strides", "dilations", "pads"):
        return value
    rank = len(value) // 2 if name == "pads" else len(value)
    still = 0 if name == "pads" else 1
    return tuple(v if at % rank in axes else still for at, v in enumerate(value))
