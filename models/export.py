"""PyTorch to ONNX, with batch normalisation kept as nodes of its own.

The files are what a user of PyTorch would export, except that

* the exporter's graph optimiser, which folds batch normalisation into the convolutions, is off;
* the zero bias that the unoptimised exporter computes for a convolution without one is taken out;
* nodes and values carry the path of their module (``stages.0.1.conv1``), not a running number, and
  the exporter's notes, which quote source files and their paths, are removed.

So the same network gives the same bytes, and a teacher and its pruned student the same names.
"""

from __future__ import annotations

import ast
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import optimizer

from models.data import SIDE
from models.networks import Network

INPUT = "image"
"""Name of the input: normalised images, float32, N x 1 x 28 x 28."""

OUTPUT = "logits"
"""Name of the output: logits, float32, N x 10."""

TOLERANCE = 1e-4
"""Largest difference allowed between a logit of ONNX Runtime and of PyTorch, absolute."""

_SCOPES = "pkg.torch.onnx.name_scopes"


def export(network: Network, path: Path) -> Path:
    """Write a network as ONNX and check the file against the network.

    Args:
        network: the network in eval mode; on the CPU, float32.
        path: the file to write.

    Returns:
        ``path``.

    Raises:
        RuntimeError: the file does not compute what the network computes, or lacks a batch
            normalisation of the network.
    """
    model = _convert(network)
    _drop_zero_biases(model.graph)
    # With the biases gone, all that is left to fold are the axes of the mean.
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    _rename(model.graph, set(network.state_dict()))
    _strip_notes(model)
    onnx.checker.check_model(model, full_check=True)
    _check(network, model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _convert(network: Network) -> onnx.ModelProto:
    example = torch.zeros(2, 1, SIDE, SIDE)
    # The exporter warns of torchvision operators, which these networks have none of, and of its own
    # use of deprecated functions.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None  # None only without the dynamo exporter
    model: onnx.ModelProto = program.model_proto
    return model


def _drop_zero_biases(graph: onnx.GraphProto) -> None:
    """Detach the biases that are computed, not stored: the exporter makes them of zeros."""
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] not in stored:
            del node.input[2]


def _rename(graph: onnx.GraphProto, parameters: set[str]) -> None:
    """Name every node, value and constant by the module that it comes from.

    Args:
        graph: the graph, changed in place.
        parameters: the initializers that keep their names.
    """
    names = {name: name for name in parameters}
    names.update((value.name, value.name) for value in (*graph.input, *graph.output))
    for node in graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        # Such as ['', 'stages.0', 'stages.0.1', 'stages.0.1.conv1', 'conv2d_3']: the modules from
        # the outermost to the innermost, then the call.
        module = ast.literal_eval(notes[_SCOPES])[-2]
        # These are called by a module that holds others and need a name of their own.
        own = node.op_type in ("Add", "Concat", "ReduceMean")
        node.name = ".".join(filter(None, (module, node.op_type.lower() if own else "")))
        for position, name in enumerate(node.input):
            names.setdefault(name, f"{node.name}.input{position}")
        names.setdefault(node.output[0], node.name)
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    if len({node.name for node in graph.node}) != len(graph.node):
        raise RuntimeError("Two nodes of the export come from the same module.")
    # The shapes of intermediate values are under their old names; inference gives them again.
    del graph.value_info[:]


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove stack traces, source paths and other notes of the exporter."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


def _check(network: Network, model: onnx.ModelProto) -> None:
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    nodes = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    if nodes != norms:
        raise RuntimeError(f"The export has {nodes} batch normalisations; the network has {norms}.")
    image = np.random.default_rng(0).standard_normal((5, 1, SIDE, SIDE)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run([OUTPUT], {INPUT: image})
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    difference = float(np.abs(np.asarray(found) - expected).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"A logit of the export differs by {difference:.1e} from PyTorch's.")
