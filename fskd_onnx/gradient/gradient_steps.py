"""Gradient steps: all that is trained of a student together, towards the teacher.

The loss is the mean relative error of the network's outputs plus `_BLOCKS` times that of the block
outputs (hints at every block, Romero et al. 2015), of those that are aimed at. Matrices of weights
take steps along their orthogonalized momentum, all else those of Adam (Kingma and Ba 2015). Both
are the same part of the size of each tensor, whatever the scale of a network is; the length rises
over the first steps and falls by a cosine to zero. Networks differ in how long steps may be all the
same: where the first ones lead away from the teacher, all begins anew with steps half as long.
"""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fskd_onnx.gradient.orthogonal_steps import OrthogonalSteps
from fskd_onnx.gradient.targets import Target, TeacherRunner, as_tensor, joined
from fskd_onnx.gradient.torch_graph import TorchGraph
from fskd_onnx.gradient.trainable import TrainableWeights
from fskd_onnx.progress import observer
from fskd_onnx.samples.batches import default_batch_size, plan_batches
from fskd_onnx.samples.fresh import FreshSamples
from fskd_onnx.samples.reader import SampleReader
from fskd_onnx.serialization.interface import InputSpec

logger = logging.getLogger(__name__)

_BLOCKS = 3.0  # weight of the block outputs beside the outputs
# Fewer steps than these do not make up for the noise of long ones, so they are shorter. More get
# as far by shorter ones along orthogonalized momentum, which has noise in all directions.
_LONG = 200
_WARM_UP = 0.05  # of all steps
_OF_MATRICES = 0.5  # length of `_LONG` of their steps, beside that of Adam's
# Steps are too long where the mean loss over the first of them is more than so many times that of
# the student as it was, on the same draws; their length is halved so often at most.
_FIRST, _GROWTH, _HALVINGS = 0.1, 1.1, 4
_BATCH = 32  # samples of a step
_MEASURED = 128  # samples that errors are relative to the variance of
_POINTS = 4  # states that are looked at


@dataclass(frozen=True)
class Point:
    """A state of the student on its way.

    Attributes:
        steps: how many have led there.
        model: the student.
    """

    steps: int
    model: onnx.ModelProto


def looked_at(steps: int) -> list[int]:
    """Return after how many of so many steps the student is looked at."""
    return sorted({math.ceil(steps * part / _POINTS) for part in range(1, _POINTS + 1)})


def lengths(length: float, steps: int) -> tuple[float, float]:
    """Return how long the longest of so many steps is, of matrices and of all else.

    Args:
        length: of `_LONG` steps of all else, as a part of the size of a tensor.
        steps: how many.
    """
    of_others = length * min(1.0, steps / _LONG) ** 0.5
    return _OF_MATRICES * of_others * min(1.0, _LONG / steps) ** 0.5, of_others


@dataclass(frozen=True)
class GradientSteps:
    """All that steps are made from.

    Attributes:
        model: the student.
        name: what to call it.
        inputs: its inputs, in the order of the samples'.
        trained: what is trained of it.
        targets: what it is trained towards.
        teacher: gives these.
        samples: where samples come from.
        draws: gives those of each step.
        indices: the samples that draws are from.
        fixed_size: how many samples have to run at once; None: any number.
        length: of a step, as a part of the size of a tensor.
    """

    model: onnx.ModelProto
    name: str
    inputs: Sequence[InputSpec]
    trained: TrainableWeights
    targets: Sequence[Target]
    teacher: TeacherRunner
    samples: SampleReader
    draws: FreshSamples
    indices: NDArray[np.intp]
    fixed_size: int | None
    length: float

    def points(self, steps: int, last: int | None = None) -> Iterator[Point]:
        """Yield states of the student, see `looked_at`; none behind one that is not finite.

        There is none either where no weight of the student changes a tensor that is aimed at.

        Args:
            steps: how many the schedule has.
            last: how many of them to make; None for all.

        Raises:
            ModelError: a network cannot be run.
            OutOfMemoryError: the machine has not enough memory.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        start = [one.values.to(device, copy=True).requires_grad_() for one in self.trained.tensors]
        wanted = [target.student for target in self.targets]
        graph = TorchGraph(self.model, self.name, wanted, self.trained.slots, device)
        measured = self.teacher.measured(self.targets, self._as_they_are())
        targets = self._usable(graph, start, measured)
        if not targets:
            return
        first = math.ceil(_FIRST * steps)  # no later than the first state that is looked at
        with torch.no_grad():
            losses = [self._loss(graph, start, targets, step) for step in range(1, first + 1)]
        most = _GROWTH * statistics.fmean(losses)
        if not math.isfinite(most):
            return
        for halvings in range(_HALVINGS + 1):
            observer().start("gradient steps", (last or steps) * _BATCH)
            parameters = [values.detach().clone().requires_grad_() for values in start]
            moves = self._moves(graph, parameters, targets, self.length / 2**halvings, steps)
            losses = list(itertools.islice(moves, first))
            mean = statistics.fmean(losses)
            logger.info("gradient steps, 1/%d as long: %.4g of %.4g", 2**halvings, mean, most)
            if mean <= most:
                break
        made = range(1, (last or steps) + 1)
        for step, loss in zip(made, itertools.chain(losses, moves), strict=False):
            if not math.isfinite(loss):
                return
            if step in looked_at(steps):
                model = self.trained.model(parameters)
                if model is None:
                    return
                yield Point(step, model)

    def _moves(
        self,
        graph: TorchGraph,
        parameters: Sequence[Tensor],
        targets: Sequence[Target],
        length: float,
        steps: int,
    ) -> Iterator[float]:
        """Make one step after another; yield the loss that each was made from."""
        tensors = self.trained.tensors
        masks = [None if one.mask is None else one.mask.to(graph.device) for one in tensors]
        schedules = self._schedules(parameters, length, steps)
        for step in range(1, steps + 1):
            for schedule in schedules:
                schedule.optimizer.zero_grad()
            loss = self._loss(graph, parameters, targets, step)
            for values, mask in zip(parameters, masks, strict=True):
                if mask is not None and values.grad is not None:
                    values.grad *= mask
            for schedule in schedules:
                schedule.optimizer.step()
                schedule.step()
            observer().advance(_BATCH)
            yield loss

    def _schedules(self, parameters: Sequence[Tensor], length: float, steps: int) -> list[LambdaLR]:
        """Return what makes so many steps of all parameters, each kind with its optimizer."""
        of_matrices, of_others = lengths(length, steps)
        alone: list[dict[str, Any]] = []
        matrices: list[dict[str, Any]] = []
        for values, one in zip(parameters, self.trained.tensors, strict=True):
            if one.matrices is None:
                alone.append({"params": [values], "lr": of_others * one.scale})
            else:
                size = of_matrices * one.scale
                matrices.append({"params": [values], "lr": size, "shape": one.matrices})
        warm = max(1, round(_WARM_UP * steps))

        def part(step: int) -> float:
            return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2

        kinds = (torch.optim.Adam, alone), (OrthogonalSteps, matrices)
        return [LambdaLR(kind(groups), part) for kind, groups in kinds if groups]

    def _usable(
        self, graph: TorchGraph, parameters: Sequence[Tensor], targets: Sequence[Target]
    ) -> list[Target]:
        """Return the targets of the student's shapes that what is trained has to do with."""
        samples = next(self._as_they_are())
        theirs, found = self.teacher.run(samples), self._student(graph, parameters, samples)
        return [
            target
            for target in targets
            if found[target.student].requires_grad
            and found[target.student].shape == target.of_teacher(theirs[target.teacher]).shape
        ]

    def _student(
        self, graph: TorchGraph, parameters: Sequence[Tensor], samples: Mapping[str, NDArray[Any]]
    ) -> dict[str, Tensor]:
        """Run the student on samples that are stacked along a first axis."""
        feeds = joined(self.inputs, samples)
        tensors = {name: as_tensor(value) for name, value in feeds.items()}
        return graph.run(tensors, self.trained.values(parameters))

    def _as_they_are(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        """Yield batches of samples that errors are measured by."""
        first = self.indices[:: max(1, len(self.indices) // _MEASURED)][:_MEASURED]
        size = default_batch_size(self.samples.shapes)
        for batch in plan_batches([first], size, self.fixed_size):
            yield self.samples.take(batch.samples)

    def _loss(
        self,
        graph: TorchGraph,
        parameters: Sequence[Tensor],
        targets: Sequence[Target],
        step: int,
    ) -> float:
        """Return the loss over the draw of a step, in as many runs as that takes.

        Its gradients are added to those of the parameters, where gradients are enabled.
        """
        drawn = self.draws.draw(step, _BATCH)
        size = default_batch_size(self.samples.shapes)
        batches = plan_batches([np.arange(_BATCH)], size, self.fixed_size)
        outputs = sum(target.is_output for target in targets)
        total = 0.0
        for batch in batches:
            arrays = {name: array[batch.samples] for name, array in drawn.items()}
            theirs = self.teacher.run(arrays)
            found = self._student(graph, parameters, arrays)
            loss = torch.zeros((), device=graph.device)
            for target in targets:
                wanted = as_tensor(target.of_teacher(theirs[target.teacher])).to(graph.device)
                error = target.error(found[target.student], wanted)
                share = 1 / outputs if target.is_output else _BLOCKS / (len(targets) - outputs)
                loss = loss + share * error
            loss = loss * (batch.count / _BATCH)
            if torch.is_grad_enabled():
                with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
                    loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total
