"""How much each channel of a unit is worth, by method, and what the unit's readers make of it.

* ``l1``: the sum of absolute weights of the filters that write it (Li et al., "Pruning Filters for
  Efficient ConvNets", 2017);
* ``slimming``: the absolute scale of the BatchNormalization behind them (Liu et al., "Learning
  Efficient Convolutional Networks through Network Slimming", 2017);
* ``thinet``: how early a greedy choice takes it that reconstructs what the readers give (Luo et
  al., "ThiNet", 2017).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, MethodName
from fskd_onnx.compression.analysis import NodeMoments, Places
from fskd_onnx.compression.width_errors import Reading
from fskd_onnx.fitting.greedy_choice import order_of_choice
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.propagation import is_depthwise
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels

Floats = NDArray[np.float64]


def reader_places(channels: PrunableChannels) -> dict[str, dict[str, Places]]:
    """Return, by reader and unit, which inputs each channel of the unit is."""
    found: dict[str, dict[str, Places]] = {}
    widths = {unit.name: unit.width for unit in channels.units}
    for name, linear in channels.linears.items():
        if is_depthwise(linear):
            continue  # what it makes of a channel is that channel's
        of_unit: defaultdict[str, defaultdict[int, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for place, read in enumerate(channels.inputs(linear)):
            if read is not None:
                of_unit[read[0]][read[1]].append(place)
        for unit, members in of_unit.items():
            lists = [members[member] for member in range(widths[unit])]
            if len(set(map(len, lists))) == 1:
                found.setdefault(name, {})[unit] = np.array(lists, np.intp)
    return found


def unit_readings(
    unit: ChannelUnit,
    channels: PrunableChannels,
    places: Mapping[str, Mapping[str, Places]],
    moments: Mapping[str, NodeMoments] | None,
) -> list[Reading]:
    """Return what each reader makes of the channels of a unit."""
    found = []
    for name in unit.readers:
        at = places.get(name, {}).get(unit.name)
        if at is None:
            continue
        same = np.eye(unit.width)
        fitted, judged = same, same
        if moments is not None:
            if name not in moments or unit.name not in moments[name].channels:
                continue
            seen = _read_together(channels.linears[name], at)
            fitted, judged = (seen * half for half in moments[name].channels[unit.name])
        found.append(Reading(name, _seen(channels.linears[name], at), fitted, judged))
    return found


def channel_scores(
    unit: ChannelUnit,
    channels: PrunableChannels,
    readings: Sequence[Reading],
    scales: Mapping[str, Floats],
    options: CompressOptions,
    with_samples: bool,
) -> dict[str, Floats]:
    """Return how much each channel is worth, by each method that may be used and can tell."""
    found = {}
    writers = [(name, channels.linears[name]) for name in unit.writers]
    if options.allows(MethodName.L1):
        found[MethodName.L1.value] = _per_channel(
            unit,
            {name: np.abs(v.matrix).sum(axis=2).reshape(-1) for name, v in writers},
        )
    normed = {name: scales[v.output.name] for name, v in writers if v.output.name in scales}
    if options.allows(MethodName.SLIMMING) and normed:
        found[MethodName.SLIMMING.value] = _per_channel(unit, normed)
    if options.allows(MethodName.THINET) and with_samples and readings and not unit.reason:
        found[MethodName.THINET.value] = greedy_scores(readings)
    return found


def normalization_scales(model: onnx.ModelProto) -> dict[str, Floats]:
    """Return the scale of each BatchNormalization, by the name of its output."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.output[0]: np.abs(onnx.numpy_helper.to_array(stored[node.input[1]]).astype(np.float64))
        for node in model.graph.node
        if node.op_type == "BatchNormalization" and node.input[1] in stored
    }


def greedy_scores(readings: Sequence[Reading]) -> Floats:
    """Return how early each channel is taken by the greedy choice, (width,), the first most."""
    evidence = [(reading.fitted, reading.weights) for reading in readings]
    width = len(evidence[0][0])
    scores = np.empty(width)
    scores[order_of_choice(evidence, width)] = np.arange(width, 0, -1)
    return scores


def _read_together(linear: Linear, places: Places) -> Array:
    """Return which channels of a unit a group of a reader reads both of, (width, width).

    A refit makes up for a channel by others of its group alone.
    """
    each = linear.shape[2] // math.prod(linear.kernel_shape)
    groups = places // each
    return np.asarray((groups[:, np.newaxis] == groups).any(axis=2))


def _seen(linear: Linear, places: Places) -> Array:
    """Return H = M M' of a reader for the channels of a unit, (width, width)."""
    groups, n, p = linear.shape
    taps = int(np.prod(linear.kernel_shape, dtype=int))
    inputs = p // taps
    weights = np.zeros((groups * n, groups * inputs, taps))
    for group in range(groups):
        rows, columns = (
            slice(group * n, (group + 1) * n),
            slice(group * inputs, (group + 1) * inputs),
        )
        weights[rows, columns] = linear.matrix[group].reshape(n, inputs, taps)
    own = weights[:, places]  # (n, width, repeats, taps)
    flat = own.transpose(1, 0, 2, 3).reshape(len(places), -1)
    return np.asarray(flat @ flat.T)


def _per_channel(unit: ChannelUnit, of_writers: Mapping[str, NDArray[np.floating]]) -> Floats:
    """Add up scores of the channels of writers, (width,)."""
    total = np.zeros(unit.width)
    for name, scores in of_writers.items():
        np.add.at(total, np.array(unit.members[name]), scores)
    return total
