"""One pass of the teacher over samples: moments of what its linear nodes read and give.

Samples are in two halves, by their fold: what is solved for on one is judged on the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compression.chain_moments import cholesky
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.moments import GramMoments, finite_columns
from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.runtime.column_sampling import RandomSampling, batch_offsets
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner, Stage
from fskd_onnx.samples.batches import Batch, first_batches

SAMPLES = 256
"""The most samples that an analysis looks at: moments are well known from fewer."""

MOST_REGRESSORS = 4608
"""Values of a patch up to which its moments are kept: 512 channels of 3 x 3 taps."""

MOST_OUTPUTS = 1024
"""Outputs of a group up to which their covariance is kept."""

_LEAST_COLUMNS = 4096
_COLUMNS_PER_UNKNOWN = 4

Places = NDArray[np.intp]
"""(width, repeats) which inputs of a node the channels of a unit are."""


@dataclass(frozen=True)
class NodeMoments:
    """Centred second moments of what a linear node reads and gives, each of both halves.

    Attributes:
        linear: the node.
        patches: (p, p); None where the patch is too large, or the node has groups.
        channels: (width, width) of the channels of each unit that it reads, by the unit's name.
        mean: (groups, n) of what it gives, over both.
        covariance: (groups, n, n) of that; of very many channels the variance of each,
            (groups * n, 1, 1).
        root: (n, p) of very many channels of a node whose patches' moments are kept: the centred
            second moments of what it gives are the root times its transpose. None else.
    """

    linear: Linear
    patches: tuple[Array, Array] | None
    channels: Mapping[str, tuple[Array, Array]]
    mean: Array
    covariance: Array
    root: Array | None = None


def analyse(
    runtime: Runtime,
    graph: gs.Graph,
    linears: Sequence[Linear],
    units: Mapping[str, Mapping[str, Places]],
    samples: DecodedSamples,
    batches: Sequence[Batch],
) -> Iterator[NodeMoments]:
    """Run a network once, and yield moments of its linear nodes in their order.

    A node of which no column is finite, or whose sums overflow, is left out.

    Args:
        runtime: where to run.
        graph: the network.
        linears: its linear nodes, in a topological order.
        units: by reader, the inputs that the channels of each unit are.
        samples: inputs of the network.
        batches: which samples run together; folds with even and odd numbers are the halves.
    """
    used = first_batches(batches, SAMPLES)
    if len({batch.fold % 2 for batch in used}) < 2:
        used = list(batches)
    gather = Gatherer(runtime)
    runner = SegmentRunner(runtime, graph, [[view.input.name] for view in linears], used, samples)
    for number, linear in enumerate(linears):
        with runner.next_stage(f"analysis, node {number + 1} of {len(linears)}") as stage:
            if not stage.has_samples(linear.input.name):
                continue
            sums = _Sums(linear, units.get(linear.name, {}))
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is seen in the sums
                _add_batches(sums, stage, used, gather, number)
                found = sums.moments()
        if found is not None:
            yield found


class _Sums:
    """The sums of a node's columns, of both halves."""

    def __init__(self, linear: Linear, units: Mapping[str, Places]) -> None:
        self.linear = linear
        self._units = units
        self._taps = math.prod(linear.kernel_shape)
        p = linear.shape[2]
        self.has_patches = linear.groups == 1 and p <= MOST_REGRESSORS
        self.columns = max(_COLUMNS_PER_UNKNOWN * (p if self.has_patches else 0), _LEAST_COLUMNS)
        self._patches: list[GramMoments | None] = [None, None]
        self._channels: dict[str, list[GramMoments | None]] = {u: [None, None] for u in units}
        self._response: GramMoments | None = None

    def add(self, half: int, patches: NDArray[np.floating]) -> None:
        """Add columns, (groups, p, columns)."""
        if self.has_patches:
            self._patches[half] = _sum(self._patches[half], GramMoments.of(patches))
        else:
            inputs = patches.reshape(-1, self._taps, patches.shape[2])
            for unit, places in self._units.items():
                # Flattened channels are several inputs, and taps see other positions: each a part.
                parts = inputs[places].transpose(1, 2, 0, 3)
                part = GramMoments.of(parts.reshape(-1, len(places), inputs.shape[2]))
                self._channels[unit][half] = _sum(self._channels[unit][half], part)
        response = self.linear.matrix @ patches
        if response.shape[1] > MOST_OUTPUTS:
            response = response.reshape(-1, 1, response.shape[2])
        self._response = _sum(self._response, GramMoments.of(response))

    def moments(self) -> NodeMoments | None:
        """Return what the sums come to; None where a half has no columns, or a sum overflows."""
        response, linear = self._response, self.linear
        patches = _halves(self._patches)
        if patches is not None:
            channels = {u: self._of_channels(patches, at) for u, at in self._units.items()}
        else:
            found = {u: _halves(parts) for u, parts in self._channels.items()}
            channels = {u: halves for u, halves in found.items() if halves is not None}
            if self.has_patches or len(channels) < len(found):
                return None
        if response is None:
            return None
        mean = (response.mean_x.reshape(-1) + linear.bias).reshape(linear.shape[:2])
        covariance = response.centered_gram / response.count
        # Those of a network in double precision may. What is on a diagonal is the largest.
        grams = (*(patches or ()), *itertools.chain.from_iterable(channels.values()), *covariance)
        if not all(np.isfinite(gram.diagonal()).all() for gram in grams):
            return None
        root = None
        if patches is not None and linear.width > MOST_OUTPUTS:
            root = linear.matrix[0] @ cholesky(np.add(*patches))
        return NodeMoments(linear, patches, channels, mean, covariance, root)

    def _of_channels(self, patches: tuple[Array, Array], places: Places) -> tuple[Array, Array]:
        """Return the moments of a unit's channels, from those of the patches."""

        def of_half(gram: Array) -> Array:
            inputs = len(gram) // self._taps
            by_input = np.einsum("itjt->ij", gram.reshape(inputs, self._taps, inputs, self._taps))
            return sum((by_input[np.ix_(at, at)] for at in places.T), np.zeros(()))

        return of_half(patches[0]), of_half(patches[1])


def _sum(one: GramMoments | None, other: GramMoments) -> GramMoments:
    return other if one is None else one + other


def _halves(parts: Sequence[GramMoments | None]) -> tuple[Array, Array] | None:
    """Return the Gram matrices of both halves, summed over parts; None where one has none."""
    one, other = parts
    if one is None or other is None:
        return None
    return one.centered_gram.sum(axis=0), other.centered_gram.sum(axis=0)


def _add_batches(
    sums: _Sums, stage: Stage, batches: Sequence[Batch], gather: Gatherer, number: int
) -> None:
    linear, sampling = sums.linear, RandomSampling(sums.columns, (0, number))
    for offset in batch_offsets(batches):
        tensor = stage.tensors(offset.index)[linear.input.name]
        geometry = Geometry.of(linear, tensor.shape())
        count, chosen = sampling.choose(offset, tensor.shape()[0], geometry.positions)
        if not count:
            continue
        at, inside = geometry.patches(chosen)
        mask = None if inside.all() else inside
        columns = gather(tensor, linear.columns_last, count, at, mask)
        patches = columns.reshape(linear.groups, -1, columns.shape[-1]).astype(np.float64)
        finite = finite_columns(patches)
        if finite is not None:
            patches = patches[..., finite]
        if patches.shape[2]:
            sums.add(offset.batch.fold % 2, patches)
