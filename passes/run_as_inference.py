"""Every Dropout runs as it does in inference, whatever mode its model states.

A model that was exported in training mode keeps its Dropouts there (input ``training_mode`` since
opset 12), and drops other values in each run. Without that input ONNX defines a Dropout as the
identity, its mask as all true::

    Dropout (x, ratio, training_mode)  ──▶  Dropout (x, ratio)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from fskd_onnx.passes.analysis.random_nodes import bodies_of, is_dropout_with_mode


def run_as_inference(model: onnx.ModelProto) -> None:
    """Take all Dropouts out of training mode, in place, those in bodies and functions included.

    Args:
        model: what a session is made of; a model to be written keeps its nodes as they are.
    """
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _take_out(nodes)


def _take_out(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        if is_dropout_with_mode(node):
            del node.input[2:]
        for body in bodies_of(node):
            _take_out(body.node)
