"""One analysis of a teacher: the levels of its units, and the error that each leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, MethodName
from fskd_onnx.compression.analysis import NodeMoments, analyse
from fskd_onnx.compression.candidates import (
    Candidates,
    Level,
    block_candidate,
    factor_candidates,
    whole_block,
    whole_node,
    whole_width,
    width_candidates,
)
from fskd_onnx.compression.channel_scores import (
    channel_scores,
    normalization_scales,
    reader_places,
    unit_readings,
)
from fskd_onnx.compression.costs import count_costs, run_shapes
from fskd_onnx.compression.output_errors import Change, output_errors
from fskd_onnx.compression.sensitivity import Sensitivity, probes
from fskd_onnx.errors import OptionError
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.passes import DropBlocks, FoldExtents
from fskd_onnx.passes.analysis.channel_unit import ChannelUnit
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock, find_residual_blocks
from fskd_onnx.passes.analysis.shapes import infer_shapes
from fskd_onnx.pipeline.divided_samples import DividedSamples
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.printable import shortened
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.samples.batches import Batch, first_batches

_SKIPPED = "it is to be left whole (--skip)"
# An error that is not finite is one to stay away from.
_HOPELESS = 1e9
# Multiply-adds of a run that shows errors of outputs, and the fewest and most samples of it. Maps
# tell as much by so many numbers as scores of classes do by the scores of more samples.
_OUTPUT_MACS, _OUTPUT_NUMBERS, _OUTPUT_SAMPLES = 2**35, 2**20, (8, 64)
# Names that a message lists.
_NAMED = 5


def outline_teacher(
    model: LoadedModel, options: CompressOptions, shapes: Mapping[str, tuple[int, ...]] | None
) -> TeacherStudy:
    """Return what the graph of a teacher says, without other levels of its units and scores.

    Args:
        model: the teacher, see `prepared`.
        options: what to leave whole.
        shapes: of one sample's tensors, by input; None without samples.

    Raises:
        OptionError: what is to be left whole is not there.
        ModelError: what the teacher costs cannot be told.
    """
    graph = model.graph()
    channels, blocks = PrunableChannels(graph), find_residual_blocks(graph)
    _check_skips(options, model.name, [*channels.linears, *(block.name for block in blocks)])
    whole, count = run_shapes(model.inputs, shapes)
    return TeacherStudy(
        model=model,
        channels=channels,
        blocks=tuple(blocks),
        shapes=whole,
        count=count,
        costs=count_costs(graph, whole, count),
        candidates=(
            *(whole_width(unit, unit.reason) for unit in channels.units),
            *(whole_node(name, "") for name in channels.linears),
            *(whole_block(block.name, block.reason) for block in blocks),
        ),
        scores={},
        is_fitted=shapes is not None and not options.no_fit,
    )


def study_teacher(
    model: LoadedModel,
    options: CompressOptions,
    samples: DividedSamples | None,
    runtime: Runtime,
) -> TeacherStudy:
    """Analyse a teacher.

    Args:
        model: the teacher, see `prepared`.
        options: which methods, and how much may go.
        samples: None leaves errors to the weights alone.
        runtime: where to run.

    Raises:
        OptionError: what is to be left whole is not there.
        ModelError: what the teacher costs, or what matters to it, cannot be told.
    """
    outline = outline_teacher(model, options, None if samples is None else samples.decoded.shapes)
    channels, blocks = outline.channels, outline.blocks
    places = reader_places(channels)
    moments: dict[str, NodeMoments] = {}
    felt: dict[str, Sensitivity] = {}
    lost: dict[str, float] = {}
    factors: dict[str, Candidates] = {}
    linears = list(channels.linears.values())
    skipped = {name: _SKIPPED for name in channels.linears if options.skips(name)}

    def candidates_of(linear: Linear, patches: tuple[Array, Array] | None) -> Candidates:
        reason = skipped.get(linear.name, "")
        if not reason and samples is not None and patches is None:
            reason = (
                "what it reads is not finite, or so large that the sums of its squares overflow"
            )
        return factor_candidates(linear, patches, options, reason)

    if samples is not None:
        batches = samples.splits.final.batches
        found = analyse(runtime, model.graph(), linears, places, samples.decoded, batches)
        for node in found:
            # Moments of patches are large, and the errors that they tell are not.
            factors[node.linear.name] = candidates_of(node.linear, node.patches)
            moments[node.linear.name] = dataclasses.replace(node, patches=None)
        probed = probes(moments.values(), options.run.seed)
        left_out = []
        if options.allows(MethodName.DROP_BLOCK):
            left_out = [_left_out(block, linears) for block in blocks if not block.reason]
        seen = [change for probe in probed for change in probe.changes]
        changes = _in_order([*seen, *left_out], linears)
        few = _few(batches, outline)
        errors = output_errors(runtime, model.graph, changes, samples.decoded, few)
        felt = {probe.node: probe.sensitivity(errors) for probe in probed}
        lost = {change.name: errors[change] for change in left_out}
    for linear in linears:
        if linear.name not in factors:
            factors[linear.name] = candidates_of(linear, None)
    scales = normalization_scales(model.model)
    known = None if samples is None else moments

    def widths_of(unit: ChannelUnit) -> tuple[dict[str, NDArray[np.float64]], Candidates]:
        readings = unit_readings(unit, channels, places, known)
        scores = channel_scores(unit, channels, readings, scales, options, known is not None)
        reason = next((skipped[name] for name in unit.writers if name in skipped), "")
        return scores, width_candidates(unit, scores, readings, felt, options, reason)

    found_widths = list(parallel_map(widths_of, list(channels.units)))
    scores = {unit.name: own for unit, (own, _) in zip(channels.units, found_widths, strict=True)}
    dropped = [_block(block, lost, skipped, options) for block in blocks]
    found_factors = [
        _felt(factors[linear.name], felt.get(linear.name, Sensitivity())) for linear in linears
    ]
    everything = (*(unit for _, unit in found_widths), *found_factors, *dropped)
    candidates = tuple(_felt(unit, Sensitivity()) for unit in everything)
    return dataclasses.replace(outline, candidates=candidates, scores=scores)


def prepared(model: LoadedModel) -> LoadedModel:
    """Return a teacher whose canonical form has constants for all extents that are known."""
    return dataclasses.replace(model, canonical=FoldExtents()(model.canonical).model)


def _check_skips(options: CompressOptions, teacher: str, names: Sequence[str]) -> None:
    """Refuse to leave whole what is not there."""
    for pattern in options.unused_skips(names):
        few = ", ".join(f"'{name}'" for name in names[:_NAMED]) or "none"
        raise OptionError(
            f"{teacher}: has no linear node or residual block '{shortened(pattern)}' that could be "
            f"left whole (skip); it has {few}{', ...' if len(names) > _NAMED else ''}"
        )


def _few(batches: Sequence[Batch], outline: TeacherStudy) -> list[Batch]:
    """Return the samples to see errors of outputs on: fewer of a large network, or of maps."""
    graph = outline.model.graph()
    shapes = infer_shapes(graph, outline.shapes)
    extents = (shapes.get(output.name, ()) for output in graph.outputs)
    numbers = sum(math.prod(size or 1 for size in shape) for shape in extents) // outline.count
    counts = _OUTPUT_MACS // max(outline.costs.total.macs, 1), _OUTPUT_NUMBERS // max(numbers, 1)
    return first_batches(batches, int(np.clip(min(counts), *_OUTPUT_SAMPLES)))


def _left_out(block: ResidualBlock, linears: Sequence[Linear]) -> Change:
    """Return a network's change when it loses a residual block."""
    # Nothing that is computed in front of the block's first linear node reads the block's sum.
    first = next((one for one in linears if one.name in block.linears), linears[0])
    return Change(block.name, first.input.name, DropBlocks([block.name]).run)


def _in_order(changes: Sequence[Change], linears: Sequence[Linear]) -> list[Change]:
    """Return changes in the order of the linear nodes that they begin at."""
    places = [linear.input.name for linear in linears]
    return sorted(changes, key=lambda change: places.index(change.behind))


def _block(
    block: ResidualBlock,
    lost: Mapping[str, float],
    skipped: Mapping[str, str],
    options: CompressOptions,
) -> Candidates:
    skips = options.skips(block.name) or any(name in skipped for name in block.linears)
    reason = block.reason or (_SKIPPED if skips else "")
    if not reason and not options.allows(MethodName.DROP_BLOCK):
        reason = "no method that may be used leaves blocks out"
    if not reason and block.name not in lost:
        reason = "without samples nothing tells what it is worth"
    return block_candidate(block.name, lost.get(block.name, 0.0), reason)


def _felt(unit: Candidates, sensitivity: Sensitivity) -> Candidates:
    """Return a unit with what the output feels of its errors, and finite."""

    def felt(level: Level) -> Level:
        error = sensitivity.output_error(level.error)
        return dataclasses.replace(level, error=error if np.isfinite(error) else _HOPELESS)

    return dataclasses.replace(unit, levels=tuple(map(felt, unit.levels)))
