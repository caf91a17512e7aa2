"""Blocks whose tensors hold no samples are left alone: a table, a mean over a batch."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.sample_axis import Failing
from fskd_onnx.runtime.tensor_axes import find_axes
from fskd_onnx.samples.batches import Batch


def leave_without_samples(
    partners: Sequence[Partner],
    graphs: tuple[gs.Graph, gs.Graph],
    runtime: Runtime,
    samples: DecodedSamples,
    batches: Sequence[Batch],
) -> tuple[Partner, ...]:
    """Leave blocks alone that do not read and give samples, or on an axis that is not theirs.

    Args:
        partners: of the student's blocks.
        graphs: teacher and student, canonical.
        runtime: where to run, if that is needed.
        samples: inputs of both networks.
        batches: which samples run together.

    Returns:
        The same partners; a block that is left alone has none, and the reason.
    """
    views = [[v for v in find_linear(graph) if isinstance(v, Linear)] for graph in graphs]
    paired = {p.student: str(p.teacher) for p in partners if not p.reason}
    blocks = (
        {view.output.name: view for view in views[0] if view.output.name in paired.values()},
        {view.name: view for view in views[1] if view.name in paired},
    )
    axes = [
        find_axes(runtime, graph, samples, batches, [t.name for v in of.values() for t in _ends(v)])
        for graph, of in zip(graphs, blocks, strict=True)
    ]

    def reason(partner: Partner) -> str:
        pair = blocks[0].get(str(partner.teacher)), blocks[1].get(partner.student)
        for block, found, whose in zip(pair, axes, ("the teacher's", "its"), strict=True):
            for tensor in _ends(block) if block is not None else ():
                axis = found[tensor.name]
                if isinstance(axis, Failing):
                    return f"{whose} tensor '{tensor.name}' holds no samples: {axis.value}"
                if axis.axis and block is not None and block.is_convolution:
                    return f"{whose} tensor '{tensor.name}' has its samples on axis {axis.axis}"
        return ""

    whys = {partner.student: partner.reason or reason(partner) for partner in partners}
    return tuple(
        Partner(partner.student, None, reason=whys[partner.student])
        if whys[partner.student] != partner.reason
        else partner
        for partner in partners
    )


def _ends(block: Linear) -> tuple[gs.Tensor, gs.Tensor]:
    return block.input, block.output
