"""How much a network's output feels an error of each linear node.

A node's response y gets noise that is a random mixture of its own channels, of a relative error e,
and the network runs on some samples; the relative error of its outputs over e is the node's
sensitivity. For small errors the error of the output is that of the node times this, whichever
nodes are in error, as long as they err independently of each other::

    y' = y + N (y - mean),   N_ij ~ N(0, e / n),   E ||y' - y||^2 = e ||y - mean||^2
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fskd_onnx.compression.analysis import NodeMoments
from fskd_onnx.compression.output_errors import Change
from fskd_onnx.passes import AffineMap, InsertAdapter

_ERROR = 0.1


def noises(nodes: Iterable[NodeMoments], seed: int) -> list[Change]:
    """Return the changes of a network that its sensitivities show in, by the names of its nodes.

    Args:
        nodes: moments of what the nodes give.
        seed: of the noise.
    """
    return [
        Change(
            node.linear.name,
            node.linear.input.name,
            InsertAdapter({node.linear.name: _noise(node, (seed, number))}).run,
        )
        for number, node in enumerate(nodes)
    ]


def sensitivity(output_error: float) -> float:
    """Return what a node's sensitivity is, from the error of the outputs under its noise."""
    return output_error / _ERROR


def _noise(node: NodeMoments, seed: tuple[int, int]) -> AffineMap:
    """Return a map that adds noise to what a node gives."""
    mean, _ = node.response
    groups, n = mean.shape
    noise = np.random.default_rng(seed).standard_normal((groups, n, n))
    noise *= np.sqrt(_ERROR / np.maximum((noise**2).sum(axis=1, keepdims=True), 1e-12))
    shift = -np.einsum("gij,gj->gi", noise, mean)
    return AffineMap(np.eye(n) + noise, shift)
