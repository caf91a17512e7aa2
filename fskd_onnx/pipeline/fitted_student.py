"""A student that a fit has made, and which of its bytes are those of the student that was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.passes.restore_parameters import restore_parameters
from fskd_onnx.pipeline.starts import Start
from fskd_onnx.pipeline.weight_growth import stored_tensors
from fskd_onnx.results import BlockReport, BlockStatus


@dataclass(frozen=True)
class FittedStudent:
    """A student fitted to the samples of one split.

    Attributes:
        start: how it was fitted.
        model: the fused student.
        blocks: what became of each.
        parameters: names of the constants that each of these nodes reads, by its name.
        without: what makes the same student fitted without each fold; empty where that was not
            asked for.
    """

    start: Start
    model: onnx.ModelProto
    blocks: tuple[BlockReport, ...]
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: tuple[Callable[[], FittedStudent], ...] = ()

    def with_model(self, model: onnx.ModelProto, given: onnx.ModelProto) -> FittedStudent:
        """Return the student with other weights, and blocks that say which bytes stayed.

        Args:
            model: with the other weights.
            given: the student as it came.
        """
        return replace(self, model=model, blocks=_with_true_status(self, model, given))

    def of_trial(self, trial: int) -> FittedStudent:
        """Return the student that has not seen what a trial holds out."""
        return self.without[trial]() if self.without else self


def _with_true_status(
    fitted: FittedStudent, model: onnx.ModelProto, student: onnx.ModelProto
) -> tuple[BlockReport, ...]:
    """Say of blocks that are not fitted whether their bytes are those of the student's file."""
    new, old = stored_tensors(restore_parameters(model, student)), stored_tensors(student)

    def same(name: str) -> bool:
        one, other = new.get(name), old.get(name)
        if one is None or other is None or one == other:
            return one is other or one == other
        if uses_external_data(one) or uses_external_data(other) or one.data_type != other.data_type:
            return False
        arrays = numpy_helper.to_array(one), numpy_helper.to_array(other)
        return arrays[0].tobytes() == arrays[1].tobytes()

    return tuple(
        replace(block, status=BlockStatus.REPLACED)
        if block.status == BlockStatus.KEPT
        and not all(map(same, fitted.parameters.get(block.student, ())))
        else block
        for block in fitted.blocks
    )
