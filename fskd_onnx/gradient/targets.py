"""What a student is trained towards: the teacher's outputs, and its block outputs.

The teacher runs in ONNX Runtime, whatever operators it has. Every tensor counts by its squared
error relative to how much the teacher's varies, over some samples as they are::

    error(s, t) = mean (s - t)^2 / mean (t - its mean)^2
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors, run
from fskd_onnx.runtime.tensor_store import download, upload
from fskd_onnx.serialization.interface import InputSpec

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """A tensor of the student and the teacher's that it aims at.

    Attributes:
        student: name of the student's tensor.
        teacher: name of the teacher's.
        channels: those of the teacher's that are aimed at; None for all.
        axis: counts the channels in both; for an output 0, by which the mean is over samples.
        is_output: whether it is an output of the network.
        part: of an output, the numbers of a sample that are meant, its axes flattened; None: all.
        energy: mean square of the teacher's about its mean, see `TeacherRunner.measured`.
    """

    student: str
    teacher: str
    channels: NDArray[np.intp] | None = None
    axis: int = 0
    is_output: bool = False
    part: NDArray[np.intp] | None = None
    energy: float = 1.0

    def of_teacher(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return what is aimed at of the teacher's tensor."""
        if self.part is not None:
            return value.reshape(len(value), -1)[:, self.part]
        return value if self.channels is None else value.take(self.channels, self.axis)

    def error(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the relative error of the student's tensor, given what it aims at."""
        if self.part is not None:
            student = student.reshape(len(student), -1)[:, as_tensor(self.part).to(student.device)]
        return (student - teacher).square().mean() / self.energy


class TeacherRunner:
    """Gives the teacher's tensors for any inputs."""

    def __init__(
        self,
        runtime: Runtime,
        model: onnx.ModelProto,
        name: str,
        inputs: Sequence[InputSpec],
        targets: Sequence[Target],
    ) -> None:
        """Open a session.

        Args:
            runtime: where to run.
            model: the teacher, with the tensors that the targets name.
            name: what to call it.
            inputs: its inputs, in the order of the samples'.
            targets: what is wanted.

        Raises:
            ModelError: ONNX Runtime cannot run it.
        """
        self._name, self._device, self._inputs = name, runtime.device, inputs
        self._wanted = list(dict.fromkeys(target.teacher for target in targets))
        seen = onnx.ModelProto()
        seen.CopyFrom(model)
        outputs = {value.name for value in model.graph.output}
        seen.graph.output.extend(
            onnx.ValueInfoProto(name=tensor) for tensor in self._wanted if tensor not in outputs
        )
        with named_errors(name):
            self._session = runtime.session(seen)

    def run(self, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the tensors of the targets.

        Args:
            samples: per input, stacked along a first axis.
        """
        feeds = joined(self._inputs, samples)
        with named_errors(self._name):
            found = run(self._session, upload(feeds, self._device), self._wanted, self._device)
        return {name: download(value) for name, value in found.items()}

    def measured(
        self, targets: Sequence[Target], batches: Iterable[Mapping[str, NDArray[Any]]]
    ) -> list[Target]:
        """Return the targets with their energies over some samples.

        Those that are not numbers, not finite or do not vary from zero are left out.
        """
        sums: dict[int, _Sums] = {}
        for samples in batches:
            found = self.run(samples)
            for number, target in enumerate(targets):
                value = target.of_teacher(found[target.teacher])
                if np.issubdtype(value.dtype, np.floating):
                    new = _Sums.of(value.astype(np.float64), target)
                    sums[number] = sums[number].plus(new) if number in sums else new
        measured = [replace(targets[at], energy=found.energy) for at, found in sums.items()]
        return [target for target in measured if 0 < target.energy < math.inf]


@dataclass(frozen=True)
class _Sums:
    """Sums over values of a tensor.

    Attributes:
        total: over all that a mean is of.
        count: how many that are.
        square: of the squares of all values.
        size: number of values.
    """

    total: NDArray[np.float64]
    count: int
    square: float
    size: int

    @staticmethod
    def of(value: NDArray[np.float64], target: Target) -> _Sums:
        """Sum one value: over samples for an output, else over all but the channels."""
        own = range(value.ndim)
        over = (0,) if target.is_output else tuple(a for a in own if a != target.axis % value.ndim)
        total = value.sum(axis=over)
        return _Sums(total, value.size // total.size, float(np.sum(value**2)), value.size)

    def plus(self, other: _Sums) -> _Sums:
        """Return the sums over both."""
        return _Sums(
            self.total + other.total,
            self.count + other.count,
            self.square + other.square,
            self.size + other.size,
        )

    @property
    def energy(self) -> float:
        """Mean square about the mean, or about zero where nothing varies."""
        about_mean = self.square - float(np.sum(self.total**2)) / self.count
        return (about_mean if about_mean > _ROUNDING * self.square else self.square) / self.size


def joined(
    inputs: Sequence[InputSpec], samples: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return what a network is fed: samples under the names of its inputs, along their axes."""
    return {
        spec.name: np.ascontiguousarray(spec.joined(array))
        for spec, array in zip(inputs, samples.values(), strict=True)
    }


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor; half precision as single."""
    return torch.tensor(array.astype(np.float32) if array.dtype == np.float16 else array)
