"""How much a network's output feels an error of each linear node.

A node's response y gets one error after another, and the network runs on some samples. A small one,
noise that is a random mixture of the node's own channels, is felt in proportion to it, whichever
nodes are in error, as long as they err independently of each other::

    y' = y + N (y - mean),   N_ij ~ N(0, e / n),   E ||y' - y||^2 = e ||y - mean||^2

What a refit leaves is not like that where it is large: a part of the response is missing, on all
samples alike, and what reads it is misled by all of it together. So the response loses the
directions in which it varies least as well, a part e of its variation, and the error of the output
is taken for::

    error(e)  =  slope e + curvature e^2

Where a layer loses three quarters of its channels the second term is many times the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compression.analysis import MOST_OUTPUTS, NodeMoments
from fskd_onnx.compression.output_errors import Change
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.write_weights import write_weights

# Relative errors of a response: of the noise, and of what the least directions make up, at most.
_SMALL, _LARGE = 0.1, 0.25
# Relative to the largest variance; what is less is no direction at all.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Sensitivity:
    """The relative error of a network's output, by that of a node's response.

    Attributes:
        slope: for small errors.
        curvature: how much more large ones are felt.
    """

    slope: float = 1.0
    curvature: float = 0.0

    def output_error(self, error: float) -> float:
        """Return the error of the output for one of the response."""
        if not error:
            return 0.0  # whatever overflows where there is one
        return self.slope * error + self.curvature * error**2


@dataclass(frozen=True)
class Probes:
    """What the network is changed by to see what it feels of one node.

    Attributes:
        node: name of the node.
        small: noise.
        large: the response without its least directions; None where these are too much of it.
        lost: the part of the response that they are.
    """

    node: str
    small: Change
    large: Change | None
    lost: float

    @property
    def changes(self) -> list[Change]:
        """What to see the errors of the output under."""
        return [self.small] if self.large is None else [self.small, self.large]

    def sensitivity(self, errors: Mapping[Change, float]) -> Sensitivity:
        """Return the sensitivity of the node.

        Args:
            errors: of the output, under each of the changes.
        """
        slope = errors[self.small] / _SMALL
        if self.large is None or not np.isfinite(slope):
            return Sensitivity(slope)
        more = (errors[self.large] - slope * self.lost) / self.lost**2
        return Sensitivity(slope, max(more, 0.0))


def probes(nodes: Iterable[NodeMoments], seed: int) -> list[Probes]:
    """Return what shows the sensitivity of each of some nodes.

    Args:
        nodes: moments of what the nodes give.
        seed: of the noise.
    """

    def of_node(numbered: tuple[int, NodeMoments]) -> Probes:
        number, node = numbered
        without, lost = _without_least_directions(node)
        large = _change(node, without) if lost > 0 else None
        small = _change(node, partial(_with_noise, (seed, number)))
        return Probes(node.linear.name, small, large, lost)

    return list(parallel_map(of_node, list(enumerate(nodes))))


def _change(node: NodeMoments, deviations: Callable[[Array], Array]) -> Change:
    """Return the change that maps the deviations of a response from its mean.

    They are a linear map of the node's patches, so that its weights can hold the change.
    """
    name, mean = node.linear.name, node.mean

    def rewrite(graph: gs.Graph) -> None:
        views = (view for view in find_linear(graph) if isinstance(view, Linear))
        linear = next(view for view in views if view.name == name)
        shift = linear.bias.reshape(mean.shape) - mean
        new = deviations(np.concatenate([linear.matrix, shift[..., np.newaxis]], axis=2))
        write_weights(graph, linear, AffineMap(new[..., :-1], new[..., -1] + mean))

    return Change(name, node.linear.input.name, rewrite)


def _with_noise(seed: tuple[int, int], response: Array) -> Array:
    """Return a response, (groups, n, columns), with noise; of very many channels in parts."""
    random, (groups, n, _) = np.random.default_rng(seed), response.shape
    parts = [np.arange(n)]
    if n > MOST_OUTPUTS:
        parts = np.array_split(random.permutation(n), -(-n // MOST_OUTPUTS))
    noisy = response.copy()
    for part in parts:
        noise = random.standard_normal((groups, len(part), len(part)))
        noise *= np.sqrt(_SMALL / np.maximum((noise**2).sum(axis=1, keepdims=True), 1e-12))
        noisy[:, part] += noise @ response[:, part]
    return noisy


def _without_least_directions(node: NodeMoments) -> tuple[Callable[[Array], Array], float]:
    """Return what leaves the directions of least variation out of a response, and their part of it.

    Where nothing tells these of very many channels, it is the channels that vary least.
    """
    if node.root is not None:
        values, vectors = np.linalg.eigh(node.root.T @ node.root)
        out, lost = _least(values)
        own = out[values[out] > _NOTHING * values[-1]]
        directions = node.root @ vectors[:, own] / np.sqrt(values[own])
        return lambda response: response - directions @ (directions.T @ response), lost
    kept, lost = _largest_directions(node.covariance)
    if len(kept) == node.linear.groups:
        return lambda response: kept @ response, lost
    return lambda response: kept.reshape(len(response), -1, 1) * response, lost


def _largest_directions(covariance: Array) -> tuple[Array, float]:
    """Return what leaves out the directions of least variation, and the part that these are.

    Args:
        covariance: (groups, n, n).

    Returns:
        (groups, n, n) projections, and 0 where a single direction is too much.
    """
    values, vectors = np.linalg.eigh(covariance)
    flat = values.reshape(-1)
    out, lost = _least(flat)
    stays = np.ones(flat.shape)
    stays[out] = 0.0
    kept = vectors * stays.reshape(values.shape)[:, np.newaxis]
    return kept @ vectors.swapaxes(1, 2), lost


def _least(variances: Array) -> tuple[NDArray[np.intp], float]:
    """Return which of some variances are the least that may go, and what part of all they are."""
    flat = np.maximum(variances, 0.0)
    order = np.argsort(flat)
    sums = np.cumsum(flat[order])
    total = float(sums[-1])
    out = order[: int(np.searchsorted(sums, _LARGE * total, side="right"))]
    return out, float(flat[out].sum()) / total if total > 0 and len(out) < len(flat) else 0.0
