"""What two networks can be compared by: common outputs, of samples for which these are finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fskd_onnx.compare_results import OutputAgreement
from fskd_onnx.errors import ModelError
from fskd_onnx.linalg.output_scales import Scales, Weights, weights_of
from fskd_onnx.reporting.agreement import (
    agreement,
    finite_rows,
    flat,
    sample_errors,
)
from fskd_onnx.reporting.output_agreement import compare_output, mean_cosine
from fskd_onnx.results import Agreement
from fskd_onnx.runtime.forward import ForwardResult, Outputs, common_outputs
from fskd_onnx.runtime.output_parts import OutputParts


@dataclass(frozen=True)
class Comparable:
    """Outputs of teacher and student that are compared.

    Attributes:
        teacher: of the teacher, for the samples that are judged, each (samples, ...).
        student: of the student, in the same order.
        names: of these outputs, in both networks.
        rows: of each of them, how many rows belong to a sample.
        parts: of each of them; None for one of a single part.
        judged: (samples,) whether a sample is judged: its outputs are finite in both networks.
        outputs_left_out: the teacher's name of each other output, and why it is left out.
    """

    teacher: Outputs
    student: Outputs
    names: list[tuple[str, str]]
    rows: list[int]
    parts: list[OutputParts | None]
    judged: NDArray[np.bool_]
    outputs_left_out: tuple[tuple[str, str], ...]

    @cached_property
    def scales(self) -> list[Scales]:
        """What errors of each output are relative to, part by part."""
        numbers = [None if parts is None else parts.numbers for parts in self.parts]
        return [Scales.of(*each) for each in zip(self.teacher, self.rows, numbers, strict=True)]

    @cached_property
    def weights(self) -> Weights:
        """What squared errors count, so that each part counts on its own scale."""
        return weights_of(self.scales, len(self.teacher[0]))

    def agreement(self, outputs: Outputs) -> Agreement:
        """Return how close outputs for the samples that are judged are to the teacher's."""
        names = [name for name, _ in self.names]
        return agreement(self.teacher, outputs, weights=self.weights, names=names)

    def output_errors(self, outputs: Outputs) -> list[tuple[str, float]]:
        """Return the error of each part of each output, for the samples that are judged."""
        return [
            (name, error)
            for scales, teacher, own, names in zip(
                self.scales, self.teacher, outputs, self.part_names, strict=True
            )
            for name, error in zip(names, scales.errors(teacher, own).tolist(), strict=True)
        ]

    def output_agreements(self) -> Iterator[OutputAgreement]:
        """Yield how close each output is; behind one of several parts, how close these are."""
        for at, (name, own_name) in enumerate(self.names):
            scales, both = self.scales[at], (self.teacher[at], self.student[at])
            weights = weights_of([scales], len(both[0]))
            error = float(np.mean(sample_errors([both[0]], [both[1]], weights)))
            yield compare_output(name, own_name, *both, error)
            if self.parts[at] is None:
                continue
            flattened = [flat(x).astype(np.float64) for x in both]
            for part, (of_part, error) in enumerate(
                zip(self.part_names[at], scales.errors(*both).tolist(), strict=True)
            ):
                values = [x[:, scales.numbers == part] for x in flattened]
                yield OutputAgreement(of_part, own_name, error, mean_cosine(*values))

    @property
    def part_names(self) -> list[list[str]]:
        """What to call each part of each output: the output, if it is the only one."""
        return [
            [name] if parts is None else [f"{name}: {part}" for part in parts.names]
            for (name, _), parts in zip(self.names, self.parts, strict=True)
        ]

    def sample_errors(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the relative error of each sample that is judged, (samples,)."""
        return sample_errors(self.teacher, outputs, self.weights)


def comparable(
    results: tuple[ForwardResult, ForwardResult],
    names: Sequence[tuple[str, str]],
    models: tuple[str, str],
    parts: Mapping[str, OutputParts],
    *,
    fitted_later: bool = False,
) -> Comparable:
    """Find what the outputs of two networks can be compared by.

    Args:
        results: of teacher and student, for the same samples.
        names: the names of each output in both.
        models: what to call both in an error.
        parts: of the teacher's outputs that have several, by name.
        fitted_later: whether the student may be finite for no sample, which a fit may mend; then
            the teacher alone decides which samples are judged.

    Raises:
        ModelError: there is no such output, one has other shapes, or is finite for no sample.
    """
    compared, left_out = common_outputs(results, names, models[0])
    of_teacher, of_student = zip(*compared, strict=True)
    teacher = [results[0].values[name] for name in of_teacher]
    student = [results[1].values[name] for name in of_student]
    for one, other, output in zip(teacher, student, of_student, strict=True):
        if one.shape[1:] != other.shape[1:]:
            raise ModelError(
                f"{models[1]}: its output '{output}' has the shape {other.shape[1:]} per sample "
                f"and that of {models[0]} {one.shape[1:]}; give a student of that teacher"
            )
    judged = check_finite(teacher, of_teacher, models[0])
    both = judged & np.logical_and.reduce([finite_rows(values) for values in student])
    if both.any():
        judged = both
    elif not fitted_later:
        check_finite(student, of_student, models[1], judged)
    return Comparable(
        [values[judged] for values in teacher],
        [values[judged] for values in student],
        compared,
        [results[0].axes[name].rows for name in of_teacher],
        [parts.get(name) for name in of_teacher],
        judged,
        left_out,
    )


def check_finite(
    outputs: Outputs, names: Sequence[str], model: str, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return for which samples all outputs of a network are finite, (samples,).

    Args:
        outputs: each (samples, ...).
        names: of the outputs.
        model: what to call the network in an error.
        among: (samples,) which samples count; None: all.

    Raises:
        ModelError: an output, or all of them together, are finite for no sample.
    """
    finite = np.ones(len(outputs[0]), bool) if among is None else among.copy()
    for values, name in zip(outputs, names, strict=True):
        own = finite_rows(values)
        finite &= own
        if not finite.any():
            which = "each that is finite elsewhere" if own.any() else "each"
            raise ModelError(
                f"{model}: its output '{name}' is NaN or infinite for {which} of {len(own)} "
                "samples; look for what overflows in the model, or give other samples"
            )
    return finite
