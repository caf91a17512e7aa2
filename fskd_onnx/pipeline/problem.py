"""Everything that a fit starts from, and how far a student is from its teacher there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.matching.channels import Channels, match_channels
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.options import RunOptions
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.splits import Splits
from fskd_onnx.reporting.agreement import sample_errors, worst_samples
from fskd_onnx.reporting.comparable import Comparable, check_finite, comparable
from fskd_onnx.results import Agreement, Matching, OutputErrors, SampleError
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.forward import ForwardResult, Outputs, forward
from fskd_onnx.runtime.output_parts import output_parts
from fskd_onnx.runtime.providers import Runtime


@dataclass(frozen=True)
class FitProblem:
    """Everything that a fit starts from.

    Attributes:
        teacher: the original network.
        student: the compressed network.
        partners: of the student's blocks among the teacher's.
        matching: the same with their channels.
        runtime: where to run.
        samples: the samples, and moved copies of them behind, each read once.
        count: how many there are, without copies.
        groups: samples of each independent group; identical ones are there once.
        splits: which of them are fitted on, and which give the verdict.
        options: how to read and run.
    """

    teacher: LoadedModel
    student: LoadedModel
    partners: tuple[Partner, ...]
    matching: Matching
    runtime: Runtime
    samples: DecodedSamples
    count: int
    groups: list[NDArray[np.intp]]
    splits: Splits
    options: RunOptions

    @property
    def held_out(self) -> NDArray[np.intp]:
        """Samples of the verdict, trial after trial."""
        return np.concatenate([trial.held_out for trial in self.splits.trials])

    def match_again(self, settled: Mapping[str, tuple[Channels, float]]) -> Matching:
        """Match channels anew, from those that activations have decided."""
        graphs = self.teacher.graph(), self.student.graph()
        return self.student.tell_of_parts(match_channels(*graphs, self.partners, settled))

    def outputs(self, model: onnx.ModelProto, name: str, samples: NDArray[np.intp]) -> Outputs:
        """Run a student on some samples; return the outputs that the verdict compares."""
        _, student = self._untouched
        names = [name for _, name in self._compared.names]
        axes = {name: student.axes[name] for name in names}
        inputs, size = self.student.inputs, self.options.batch_size
        result = forward(self.runtime, model, self.samples, samples, size, name, inputs, axes)
        return [result.values[name] for name in names]

    def teacher_outputs(self, samples: NDArray[np.intp]) -> Outputs:
        """Run the teacher on some samples; return the outputs that the verdict compares."""
        teacher, _ = self._untouched
        names = [name for name, _ in self._compared.names]
        axes = {name: teacher.axes[name] for name in names}
        model, name, inputs = self.teacher.model, self.teacher.name, self.teacher.inputs
        size = self.options.batch_size
        result = forward(self.runtime, model, self.samples, samples, size, name, inputs, axes)
        return [result.values[name] for name in names]

    @property
    def target(self) -> Outputs:
        """The teacher's outputs for the samples of the verdict."""
        return self._compared.teacher

    @cached_property
    def before(self) -> Agreement:
        """How close the untouched student is on these samples."""
        return self._compared.agreement(self._compared.student)

    def agreement(self, outputs: Outputs) -> Agreement:
        """Return how close outputs for the samples of the verdict are to the teacher's."""
        return self._compared.agreement(outputs)

    def output_errors(self, outputs: Outputs) -> tuple[OutputErrors, ...]:
        """Return the error of each part of each output before and after; none of a single one."""
        before, after = map(self._compared.output_errors, (self._compared.student, outputs))
        found = [
            OutputErrors(name, old, new)
            for (name, old), (_, new) in zip(before, after, strict=True)
        ]
        return tuple(found) if len(found) > 1 else ()

    def worst_samples(self, outputs: Outputs) -> tuple[SampleError, ...]:
        """Return the samples of the verdict on which such outputs err most, the worst first."""
        errors, before = map(self._compared.sample_errors, (outputs, self._compared.student))
        judged = self.held_out[self.judged].tolist()
        return worst_samples(errors, lambda at: self.samples.describe(judged[at]), before)

    @cached_property
    def errors_before(self) -> NDArray[np.float64]:
        """Relative error of the untouched student on each independent one of these samples."""
        return self.by_group(self.sample_errors(self._compared.student))

    @cached_property
    def output_size(self) -> float:
        """Mean square of the teacher's outputs over the samples of the verdict, as errors count."""
        nothing = [np.zeros_like(output) for output in self.target]
        return float(np.mean(self.sample_errors(nothing)))

    def sample_errors(self, outputs: Outputs) -> NDArray[np.float64]:
        """Return the relative error of outputs on each sample of the verdict."""
        return self._compared.sample_errors(outputs)

    def errors_to(self, target: Outputs, outputs: Outputs) -> NDArray[np.float64]:
        """Return the same of other samples, whose target is given."""
        return sample_errors(target, outputs, self._compared.weights)

    @property
    def compared_outputs(self) -> list[tuple[str, str]]:
        """Names of the outputs that the verdict compares, in both networks."""
        return self._compared.names

    @property
    def parts_by_sample(self) -> list[list[NDArray[np.intp] | None]]:
        """Of each of these outputs, the numbers of a sample that each part has; None for all.

        An output whose samples are not rows along its first axis is given as one part.
        """
        axes = self._untouched[0].axes
        found: list[list[NDArray[np.intp] | None]] = []
        for (name, _), parts in zip(self._compared.names, self._compared.parts, strict=True):
            by_sample = axes[name].is_first and axes[name].rows == 1
            if parts is None or not by_sample:
                found.append([None])
            else:
                found.append(
                    [np.flatnonzero(parts.numbers == at) for at in range(len(parts.names))]
                )
        return found

    @property
    def group_numbers(self) -> NDArray[np.intp]:
        """For each sample of the verdict the number of its mean among those of `by_group`."""
        group_of = {s: at for at, group in enumerate(self.groups) for s in group.tolist()}
        found = [group_of[sample] for sample in self.held_out[self.judged].tolist()]
        order = {group: at for at, group in enumerate(dict.fromkeys(found))}
        return np.array([order[group] for group in found], np.intp)

    def by_group(self, errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return means over the samples of the verdict that belong together.

        Args:
            errors: of each sample of the verdict.

        Returns:
            One mean per group, in the order in which groups come up.
        """
        members: dict[int, list[float]] = {}
        for group, error in zip(self.group_numbers.tolist(), errors.tolist(), strict=True):
            members.setdefault(group, []).append(error)
        return np.array([np.mean(part) for part in members.values()])

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which held-out samples give the verdict: those with finite outputs of both networks."""
        return self._compared.judged

    @property
    def samples_left_out(self) -> tuple[str, ...]:
        """Names of the held-out samples that do not."""
        return tuple(map(self.samples.describe, self.held_out[~self.judged].tolist()))

    @property
    def outputs_left_out(self) -> tuple[tuple[str, str], ...]:
        """Outputs that the verdict does not compare, each with the reason."""
        return self._compared.outputs_left_out

    def check_student(self) -> None:
        """Check that some outputs of the untouched student are finite.

        Raises:
            ModelError: they are not.
        """
        names = [name for _, name in self._compared.names]
        check_finite(self._compared.student, names, self.student.name)

    @cached_property
    def _compared(self) -> Comparable:
        names = list(zip(self.teacher.outputs, self.student.outputs, strict=True))
        models = self.teacher.name, self.student.name
        teacher = self.teacher
        parts = output_parts(
            self.runtime,
            teacher.model,
            self.samples,
            self.options.batch_size,
            teacher.name,
            teacher.inputs,
            self._untouched[0].axes,
        )
        return comparable(self._untouched, names, models, parts, fitted_later=True)

    @cached_property
    def _untouched(self) -> tuple[ForwardResult, ForwardResult]:
        """All outputs of the teacher and of the untouched student for the held-out samples."""
        teacher, student = (
            forward(
                self.runtime,
                network.model,
                self.samples,
                self.held_out,
                self.options.batch_size,
                network.name,
                network.inputs,
            )
            for network in (self.teacher, self.student)
        )
        return teacher, student
