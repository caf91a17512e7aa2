"""What is gathered for a block, and where: each of its uses, beside the teacher's columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.block_plan import BlockPlan, BlockUse
from fskd_onnx.fitting.teacher_pass import TargetColumns, TeacherPass
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.factorization import Factorization
from fskd_onnx.passes.analysis.geometry import Geometry
from fskd_onnx.passes.analysis.linear import Linear


@dataclass(frozen=True)
class BlockRequest:
    """What is gathered for a block.

    Attributes:
        plan: the block.
        linear: the student's block, as it is now; of several uses the first one.
        channels: teacher channel of each target, divided evenly among the groups.
        residual: whether the error is seen behind the sum that the plan names.
        needs_patches: whether the regressors are patches; else they are coordinates of the outputs.
        keep_zeros: whether zeros of the kernel have to stay.
        across_groups: whether the outputs of all groups are the regressors of all targets, as they
            are while channels are not known.
        others: its other uses, in the order of the plan.
        factors: of a decomposed block.
        prior: (1, n, p) what new factors are pulled to; None: to the block as it is.
    """

    plan: BlockPlan
    linear: Linear
    channels: NDArray[np.intp]
    residual: bool = False
    needs_patches: bool = True
    keep_zeros: bool = False
    across_groups: bool = False
    others: tuple[Linear, ...] = ()
    factors: Factorization | None = None
    prior: Array | None = None


@dataclass(frozen=True)
class Source:
    """Where the columns of one use of a block come from.

    Attributes:
        plan: the use.
        linear: the student's node.
        geometry: its positions.
        columns: the teacher's, by batch.
    """

    plan: BlockUse
    linear: Linear
    geometry: Geometry
    columns: Mapping[int, TargetColumns]


def find_sources(
    teacher: TeacherPass, request: BlockRequest, tensors: Mapping[str, OrtValue]
) -> list[Source]:
    """Return where the columns of each use come from.

    Args:
        teacher: gives the columns of the teacher's blocks.
        request: the block.
        tensors: the student's, in the first batch.

    Raises:
        MatchError: student and teacher differ in their positions, or the teacher has none.
    """
    sources = []
    for number, linear in enumerate((request.linear, *request.others)):
        plan, rows = request.plan.uses[number], tensors[linear.input.name].shape()[0]
        geometry = Geometry.of(linear, tensors[linear.input.name].shape())
        columns = teacher.columns(request.plan.index, number)
        if not columns:  # batches of this split are as large as other axes
            raise MatchError("the samples in its partner's output cannot be told from other rows")
        spatial = plan.partner.spatial_shape(columns[0].shape)
        if math.prod(spatial) != geometry.positions or rows != columns[0].shape[0]:
            output = f"the output of '{linear.name}'" if request.others else "its output"
            raise MatchError(
                f"{output} has {geometry.output_shape or 1} positions, "
                f"the teacher's has {spatial or 1}"
            )
        sources.append(Source(plan, linear, geometry, columns))
    return sources
