"""What tests of pruned networks share: channels that nothing reads, and choices of channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from fskd_onnx.passes import PruneChannels, export
from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.prunable_channels import (
    ChannelUnit,
    PrunableChannels,
    find_channel_units,
)
from tests.helpers import Array, assert_close, check, random_feeds, run


def units_of(model: onnx.ModelProto) -> dict[str, ChannelUnit]:
    return {unit.name: unit for unit in find_channel_units(gs.import_onnx(model))}


def draw_kept(
    model: onnx.ModelProto, rng: np.random.Generator, share: float = 0.5
) -> dict[str, tuple[int, ...]]:
    """Draw channels that stay, of every unit that can be pruned."""
    kept = {}
    for unit in units_of(model).values():
        if not unit.reason:
            kept[unit.name] = unit.best(rng.random(unit.width), int(unit.width * share))
            assert unit.why_not(kept[unit.name]) == ""
    return kept


def unread(model: onnx.ModelProto, kept: Mapping[str, Collection[int]]) -> onnx.ModelProto:
    """Set the weights to zero by which linear nodes read channels that do not stay."""
    graph = gs.import_onnx(model)
    channels = PrunableChannels(graph)
    for linear in channels.linears.values():
        read = [e is None or e[1] in kept.get(e[0], [e[1]]) for e in channels.inputs(linear)]
        groups, n, p = linear.shape
        matrix = linear.matrix.reshape(groups, n, len(read) // groups, -1)
        matrix = matrix * np.reshape(read, (groups, 1, -1, 1))
        kind = constants.element_type(linear.weight)
        stored = linear.stored(matrix.reshape(groups, n, p))
        linear.weight.values = constants.make("", stored, kind)._values
        linear.node.attrs.update(dict.fromkeys({"alpha"} & linear.node.attrs.keys(), 1.0))
    return export(graph, like=model)


def assert_prunes_what_is_not_read(
    model: onnx.ModelProto,
    kept: Mapping[str, Sequence[int]],
    feeds: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """Check that channels go without a trace if no linear node reads them; return what is left."""
    whole = unread(model, kept)
    before = whole.SerializeToString()
    result = PruneChannels(kept)(whole)
    assert whole.SerializeToString() == before
    assert result.changed
    check(result.model)
    assert [*result.model.graph.output] == [*model.graph.output]
    assert result.model.opset_import == model.opset_import
    assert [n.name for n in result.model.graph.node] == [n.name for n in model.graph.node]
    feeds = feeds or random_feeds(whole)
    assert_close(run(result.model, feeds), run(whole, feeds))
    return result.model
