"""How much a network's output feels an error of each linear node.

A node's response y gets noise that is a random mixture of its own channels, of a relative error e,
and the network runs on some samples; the relative error of its outputs over e is the node's
sensitivity. For small errors the error of the output is that of the node times this, whichever
nodes are in error, as long as they err independently of each other::

    y' = y + N (y - mean),   N_ij ~ N(0, e / n),   E ||y' - y||^2 = e ||y - mean||^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from fskd_onnx.compression.analysis import NodeMoments
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes import AffineMap, InsertAdapter

Run = Callable[[gs.Graph], Sequence[Array]]
"""Runs a network on some samples; gives its outputs, sample by sample."""

SAMPLES = 64
"""On so many samples."""

_ERROR = 0.1


def sensitivities(
    graph: Callable[[], gs.Graph], nodes: Iterable[NodeMoments], run: Run, seed: int
) -> dict[str, float]:
    """Return the sensitivity of each node, by its name.

    Args:
        graph: gives a fresh graph of the network.
        nodes: moments of what the nodes give.
        run: runs the network.
        seed: of the noise.

    Returns:
        Numbers of 0 and more; infinite where the output overflows.
    """
    target = [np.asarray(output, np.float64) for output in run(graph())]
    energy = sum(float(np.sum((output - output.mean(axis=0)) ** 2)) for output in target)
    found = {}
    for number, node in enumerate(nodes):
        noisy = graph()
        InsertAdapter({node.linear.name: _noise(node, (seed, number))}).run(noisy)
        outputs = zip(run(noisy), target, strict=True)
        error = sum(float(np.sum((output - right) ** 2)) for output, right in outputs)
        found[node.linear.name] = error / energy / _ERROR if energy > 0 else 0.0
    return found


def _noise(node: NodeMoments, seed: tuple[int, int]) -> AffineMap:
    """Return a map that adds noise to what a node gives."""
    mean, _ = node.response
    groups, n = mean.shape
    noise = np.random.default_rng(seed).standard_normal((groups, n, n))
    noise *= np.sqrt(_ERROR / np.maximum((noise**2).sum(axis=1, keepdims=True), 1e-12))
    shift = -np.einsum("gij,gj->gi", noise, mean)
    return AffineMap(np.eye(n) + noise, shift)
