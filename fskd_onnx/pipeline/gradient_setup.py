"""What gradient steps need of a fit: checks before any work, targets, and the steps themselves.

PyTorch is an extra, so that what uses it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from fskd_onnx.errors import ModelError
from fskd_onnx.linalg.pytorch import load_torch
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.samples.fresh import FreshSamples
from fskd_onnx.serialization.interface import fixed_batch_size

if TYPE_CHECKING:
    from fskd_onnx.gradient.gradient_steps import GradientSteps
    from fskd_onnx.gradient.targets import Target
    from fskd_onnx.gradient.trainable import TrainableWeights

_REMEDY = "leave --refine or --optimizer sgd out"


def check_torch() -> None:
    """Check that PyTorch is there.

    Raises:
        FskdError: it is not.
    """
    load_torch("gradient steps need", _REMEDY)


def check_trainable(teacher: LoadedModel, student: LoadedModel) -> None:
    """Check that gradient steps can be made from a student, before anything runs.

    Raises:
        ModelError: PyTorch does not run one of its nodes, none of its outputs is of floats, or it
            runs on another number of samples than its teacher.
    """
    from fskd_onnx.gradient.torch_graph import check_runs

    check_runs(student.canonical, student.name, student.outputs)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    if not any(value.type.tensor_type.elem_type in floats for value in student.model.graph.output):
        raise ModelError(
            f"{student.name}: no output is of floats, so gradient steps have nothing to follow; "
            f"{_REMEDY}, or cut the network in front of what makes whole numbers"
        )
    sizes = {fixed_batch_size(network.inputs) for network in (teacher, student)} - {None}
    if len(sizes) > 1:
        raise ModelError(
            f"{student.name}: it runs on {fixed_batch_size(student.inputs)} samples at once and "
            f"its teacher on {fixed_batch_size(teacher.inputs)}, which gradient steps cannot "
            f"follow; export one of them again, or {_REMEDY}"
        )


def output_targets(problem: FitProblem) -> list[Target]:
    """Return what outputs are trained towards, each part of them on its own scale."""
    from fskd_onnx.gradient.targets import Target

    return [
        Target(other, one, is_output=True, part=part)
        for (one, other), parts in zip(
            problem.compared_outputs, problem.parts_by_sample, strict=True
        )
        for part in parts
    ]


def block_targets(
    problem: FitProblem, aims: Mapping[str, tuple[str | None, Sequence[int]]]
) -> list[Target]:
    """Return what block outputs are trained towards.

    Args:
        problem: has the blocks.
        aims: by the name of the student's block, the teacher's block output and its channels; no
            channels where it is not aimed at.
    """
    from fskd_onnx.gradient.targets import Target

    mine = {v.name: v for v in find_linear(problem.student.graph()) if isinstance(v, Linear)}
    graph = problem.teacher.graph()
    theirs = {v.output.name: v for v in find_linear(graph) if isinstance(v, Linear)}
    targets = []
    for name, (teacher, channels) in aims.items():
        partner = theirs.get(teacher or "")
        if partner is not None and channels:
            output, axis = mine[name].output.name, partner.channel_axis
            targets.append(Target(output, partner.output.name, np.array(channels), axis))
    return targets


def steps_towards(
    problem: FitProblem,
    split: SampleSplit,
    model: onnx.ModelProto,
    trained: TrainableWeights,
    targets: Sequence[Target],
    length: float,
    *,
    as_they_are: bool = False,
) -> GradientSteps:
    """Return the steps that train a student on the samples of a split.

    Args:
        problem: what is fitted.
        split: which samples.
        model: the student.
        trained: what is trained of it.
        targets: what it is trained towards.
        length: of a step, as a part of the size of a tensor.
        as_they_are: whether samples are neither moved nor mixed.
    """
    from fskd_onnx.gradient.gradient_steps import GradientSteps
    from fskd_onnx.gradient.targets import TeacherRunner

    teacher, samples = problem.teacher, problem.samples
    specs = [
        [
            replace(spec, axis=given.axis)
            for spec, given in zip(n.inputs, samples.inputs, strict=True)
        ]
        for n in (teacher, problem.student)
    ]
    size = fixed_batch_size([*specs[0], *specs[1]]) or problem.options.batch_size
    indices = np.concatenate([batch.samples[: batch.count] for batch in split.batches])
    seed = problem.options.seed
    return GradientSteps(
        model=model,
        name=problem.student.name,
        inputs=specs[1],
        trained=trained,
        targets=targets,
        teacher=TeacherRunner(problem.runtime, teacher.canonical, teacher.name, specs[0], targets),
        samples=samples,
        draws=FreshSamples(samples, indices, seed, as_they_are=as_they_are),
        indices=indices,
        fixed_size=size,
        length=length,
    )
