"""One analysis of a teacher: the levels of its units, and the error that each leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.compress_options import CompressOptions, MethodName
from fskd_onnx.compression.analysis import NodeMoments, analyse
from fskd_onnx.compression.candidates import (
    Candidates,
    Level,
    block_candidate,
    factor_candidates,
    width_candidates,
)
from fskd_onnx.compression.channel_scores import (
    channel_scores,
    normalization_scales,
    reader_places,
    unit_readings,
)
from fskd_onnx.compression.costs import count_costs, run_shapes
from fskd_onnx.compression.sensitivity import SAMPLES, Run, sensitivities
from fskd_onnx.errors import ModelError, OptionError
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes import DropBlocks, FoldExtents
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.passes.analysis.residual_blocks import ResidualBlock, find_residual_blocks
from fskd_onnx.passes.base import export
from fskd_onnx.pipeline.divided_samples import DividedSamples
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.teacher_study import TeacherStudy
from fskd_onnx.printable import shortened
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.samples.batches import first_batches

_SKIPPED = "it is to be left whole (--skip)"
# An error that is not finite is one to stay away from.
_HOPELESS = 1e9
# Names that a message lists.
_NAMED = 5


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
    graph = model.graph()
    channels, blocks = PrunableChannels(graph), find_residual_blocks(graph)
    _check_skips(options, model.name, [*channels.linears, *(block.name for block in blocks)])
    of_samples = None if samples is None else samples.decoded.shapes
    shapes, count = run_shapes(model.inputs, of_samples)
    costs = count_costs(graph, shapes, count)
    places = reader_places(channels)
    moments: dict[str, NodeMoments] = {}
    weights: dict[str, float] = {}
    lost: dict[str, float] = {}
    factors: dict[str, Candidates] = {}
    linears = list(channels.linears.values())
    skipped = {name: _SKIPPED for name in channels.linears if options.skips(name)}

    def candidates_of(linear: Linear, patches: tuple[Array, Array] | None) -> Candidates:
        reason = skipped.get(linear.name, "")
        if not reason and samples is not None and patches is None:
            reason = "the moments of what it reads are not known"
        return factor_candidates(linear, patches, 1.0, options, reason)

    if samples is not None:
        found = analyse(
            runtime, graph, linears, places, samples.decoded, samples.splits.final.batches
        )
        for node in found:
            # Moments of patches are large, and the errors that they tell are not.
            factors[node.linear.name] = candidates_of(node.linear, node.patches)
            moments[node.linear.name] = dataclasses.replace(node, patches=None)
        run = _runner(model, samples, runtime, options.run.batch_size)
        weights = sensitivities(model.graph, moments.values(), run, options.run.seed)
        if options.allows(MethodName.DROP_BLOCK):
            lost = _errors_without(model, blocks, run)
    for linear in linears:
        if linear.name not in factors:
            factors[linear.name] = candidates_of(linear, None)
    scores: dict[str, dict[str, NDArray[np.float64]]] = {}
    scales = normalization_scales(model.model)
    known = None if samples is None else moments
    widths = []
    for unit in channels.units:
        readings = unit_readings(unit, channels, places, known)
        scores[unit.name] = channel_scores(
            unit, channels, readings, scales, options, known is not None
        )
        reason = next((skipped[name] for name in unit.writers if name in skipped), "")
        widths.append(width_candidates(unit, scores[unit.name], readings, weights, options, reason))
    dropped = [_block(block, lost, skipped, options) for block in blocks]
    found_factors = [
        _weighed(factors[linear.name], weights.get(linear.name, 1.0)) for linear in linears
    ]
    everything = (*widths, *found_factors, *dropped)
    return TeacherStudy(
        model=model,
        channels=channels,
        blocks=tuple(blocks),
        shapes=shapes,
        count=count,
        costs=costs,
        candidates=tuple(_weighed(unit, 1.0) for unit in everything),
        scores=scores,
    )


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


def _runner(
    model: LoadedModel, samples: DividedSamples, runtime: Runtime, batch_size: int | None
) -> Run:
    """Return what runs a rewritten teacher on some samples."""
    batches = first_batches(samples.splits.final.batches, SAMPLES)
    indices = np.concatenate([batch.samples[: batch.count] for batch in batches])[:SAMPLES]

    def run(graph: gs.Graph) -> list[Array]:
        rewritten = export(graph, like=model.canonical)
        found = forward(
            runtime, rewritten, samples.decoded, indices, batch_size, model.name, model.inputs
        )
        finite = [np.nan_to_num(values.astype(np.float64)) for values in found.values.values()]
        if not finite:
            raise ModelError(
                f"{model.name}: no output holds samples, so nothing tells what matters to it"
            )
        return finite

    return run


def _errors_without(
    model: LoadedModel, blocks: Sequence[ResidualBlock], run: Run
) -> dict[str, float]:
    """Return the relative error of the output without each residual block, by its name."""
    target = run(model.graph())
    energy = sum(float(np.sum((values - values.mean(axis=0)) ** 2)) for values in target)
    found = {}
    for block in blocks:
        if not block.reason and energy > 0:
            graph = model.graph()
            DropBlocks([block.name]).run(graph)
            pairs = zip(run(graph), target, strict=True)
            found[block.name] = sum(float(np.sum((a - b) ** 2)) for a, b in pairs) / energy
    return found


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


def _weighed(unit: Candidates, sensitivity: float) -> Candidates:
    """Return a unit with its errors times a sensitivity, and finite."""

    def weighed(level: Level) -> Level:
        error = level.error * sensitivity
        return dataclasses.replace(level, error=error if np.isfinite(error) else _HOPELESS)

    return dataclasses.replace(unit, levels=tuple(map(weighed, unit.levels)))
