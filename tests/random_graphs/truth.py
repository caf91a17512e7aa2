"""Holds reported pairs and channels against the truth, and allows for what is interchangeable."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from tests.helpers import Array, run
from tests.random_graphs.case import Case
from tests.random_graphs.names import Scrambled

_AFFINE = ("BatchNormalization", "Mul", "Add", "Sub", "Div", "Identity")


@dataclass(frozen=True)
class Found:
    """What a comparison found.

    Attributes:
        block: the block as the generator calls it.
        wrong_pair: what is wrong with the pair; empty where nothing is.
        wrong_channels: number of channels that are another's.
    """

    block: str
    wrong_pair: str = ""
    wrong_channels: int = 0


@dataclass(frozen=True)
class Truth:
    """The truth about a case."""

    case: Case

    @property
    def findable(self) -> list[str]:
        """Block outputs of the student that have a counterpart."""
        return list(self.case.truth)

    def compare(self, student: str, teacher: str, channels: Sequence[int]) -> Found:
        """Hold one reported pair against the truth.

        Args:
            student: name of the student's block, as reported.
            teacher: name of the teacher's tensor.
            channels: teacher channel of each student channel; empty for unknown.
        """
        blocks = self._blocks(student)
        tensor = self.case.teacher.tensors.get(teacher, "")
        target = owner(self.case.teacher, tensor, self.case.outputs)
        listed = " or ".join(sorted(blocks)) or f"'{student}'"
        if not blocks or not target:
            unknown = f"'{student}'" if not blocks else f"'{teacher}'"
            return Found(listed, f"{unknown} is no block output")
        dropped = [b for b in blocks if self._is_shortcut(b, target)]
        if target not in blocks and dropped and list(channels) in ([], self._kept(dropped[0])):
            return Found(dropped[0])
        if target not in blocks:
            alike = [b for b in blocks if self._interchangeable(b, target, channels)]
            return Found(listed, "" if alike else f"{listed} is paired with {target}")
        kept = self._kept(target)
        if not len(channels):
            return Found(target)
        if len(channels) != len(kept):
            return Found(target, wrong_channels=len(kept))
        apart = [(c, t) for c, t in zip(channels, kept, strict=True) if c != t]
        wrong = sum(not self._equal(target, [c], target, [t]) for c, t in apart)
        return Found(target, wrong_channels=wrong)

    def _kept(self, block: str) -> list[int]:
        truth = self.case.truth
        kept = truth[block] if block in truth else self.case.truth_of_sums[block]
        return list(map(int, kept))

    def _is_shortcut(self, block: str, target: str) -> bool:
        """Whether a tensor is a block's output and what a dropped residual block adds to it.

        With nothing but linear nodes in between, the student's block may stand for either.
        """
        known = {*self.case.truth, *self.case.truth_of_sums}
        if target in known or block not in known:
            return False
        makers = {o: node for node in self.case.teacher.origin.graph.node for o in node.output}
        node = makers.get(target)
        if node is None or node.op_type != "Add":
            return False
        terms = {owner(self.case.teacher, name, self.case.outputs) for name in node.input}
        return block in terms and len(terms) == 2

    def _blocks(self, name: str) -> set[str]:
        """Give the block outputs that a reported name may mean."""
        scrambled = self.case.student
        outputs = set(scrambled.nodes.get(name, ()))
        if name in scrambled.tensors:
            outputs.add(scrambled.tensors[name])
        owners = {owner(scrambled, output, self.case.truth_of_sums) for output in outputs}
        known = {*self.case.truth, *self.case.truth_of_sums}
        linear = {o for o in owners if o in known or o.endswith("/inner")}
        return linear | {self.case.sums[o] for o in owners if o in self.case.sums}

    def _interchangeable(self, block: str, target: str, channels: Sequence[int]) -> bool:
        """Whether another block has the same weights, or the same output, channel by channel."""
        same = self.case.same_weights
        if same.get(target, target) == same.get(block, block):
            return True
        if block not in self.case.truth:
            return False
        kept = self.case.truth[block]
        return len(channels) == len(kept) and self._equal(target, channels, block, kept.tolist())

    def _equal(self, one: str, channels: Sequence[int], other: str, others: Sequence[int]) -> bool:
        a, b = self._values(one, channels), self._values(other, others)
        return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)

    def _values(self, name: str, channels: Sequence[int]) -> Array:
        values = self._activations[name]
        return values.take(channels, axis=self.case.outputs[name])

    @cached_property
    def _activations(self) -> dict[str, Array]:
        """The teacher's block outputs on some samples."""
        model = onnx.ModelProto()
        model.CopyFrom(self.case.teacher.origin)
        there = {value.name for value in model.graph.output}
        for name in self.case.outputs:
            if name not in there:
                model.graph.output.append(onnx.ValueInfoProto(name=name))
        axis = self.case.batch_axis
        size = model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value or 8
        return run(model, self.case.samples(size, seed=2))


def owner(scrambled: Scrambled, name: str, outputs: Collection[str]) -> str:
    """Give the block output that a tensor is a scaled and shifted copy of; "" for none.

    Args:
        scrambled: the model.
        name: the tensor as it was called.
        outputs: block outputs that no single node gives, at least.
    """
    graph = scrambled.origin.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    while name in makers:
        node = makers[name]
        if name in outputs or name.endswith("/inner"):
            return name
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return name.removesuffix("/product")
        inputs = [i for i in node.input if i not in constants]
        if inputs == [f"{name}/product"]:
            return name
        if node.op_type not in _AFFINE or len(inputs) != 1:
            return ""
        name = inputs[0]
    return ""
