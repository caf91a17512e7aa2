"""The weights and biases of a model that gradient steps may change, as parameters and back.

Parameters have the order of storage. All uses of a block have one weight and one bias between them,
each its own, whatever else reads the constants that they come from. A node that has a place for a
bias and none yet gets one, but for factors of a block, whose last node has it. What is stored in
half precision is trained in single precision, and cast once when it goes back.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from fskd_onnx.fitting.adapters import is_sparse
from fskd_onnx.gradient.torch_graph import Slot
from fskd_onnx.passes import AffineMap, ReplaceWeights, export
from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.shared_weights import find_uses


@dataclass(frozen=True)
class Trainable:
    """A tensor that is trained.

    Attributes:
        values: where it starts.
        slots: the inputs of nodes that it stands for.
        scale: size of its typical value, which a step is a part of.
        mask: where it may change; None: everywhere.
    """

    values: Tensor
    slots: tuple[Slot, ...]
    scale: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class _Block:
    """One block: all uses of the same weights, and the numbers of its tensors."""

    uses: tuple[Linear, ...]
    weight: int
    bias: int | None


class TrainableWeights:
    """The weights of some linear nodes of a model.

    Attributes:
        tensors: what is trained.
    """

    def __init__(
        self, model: onnx.ModelProto, names: Collection[str], factors: Collection[str] = ()
    ) -> None:
        """Find the weights.

        Args:
            model: canonical.
            names: of the nodes that may change.
            factors: of these, the nodes that get no bias where they have none.
        """
        self._model, self._factors = model, factors
        self.tensors: list[Trainable] = []
        self._blocks: list[_Block] = []
        views = [v for v in find_linear(gs.import_onnx(model)) if isinstance(v, Linear)]
        for name, uses in find_uses(views).items():
            if uses[0].name == name and all(use.name in names for use in uses):
                self._add(uses)

    def _add(self, uses: tuple[Linear, ...]) -> None:
        """Add the weight of a block and its bias."""
        linear = uses[0]
        kind = torch.float64 if linear.dtype == np.float64 else torch.float32
        stored = torch.tensor(constants.read(linear.weight)).to(kind)
        size = float(stored.square().mean().sqrt())
        weight, bias = len(self.tensors), None
        if not size:  # a kernel of zeros has no scale to step by
            return
        mask = stored != 0 if is_sparse(linear.native) else None
        slots = tuple(Slot(use.node.outputs[0].name, 1) for use in uses)
        self.tensors.append(Trainable(stored, slots, size, mask))
        places = [use.bias_slot for use in uses]
        without = linear.bias_constant is None and linear.name in self._factors
        if None not in places and not without and self._factor(linear):
            bias = len(self.tensors)
            shift = torch.tensor(linear.bias / self._factor(linear)).to(kind)
            old = linear.bias_constant
            if old is not None and old.shape:  # an Add may owe the rank of its output to it
                shift = shift.reshape(*[1] * (len(old.shape) - 1), -1)
            slots = tuple(Slot(place[0].outputs[0].name, place[1]) for place in places if place)
            typical = size * float(np.sqrt(linear.shape[2]))
            self.tensors.append(Trainable(shift, slots, typical))
        self._blocks.append(_Block(uses, weight, bias))

    @staticmethod
    def _factor(linear: Linear) -> float:
        """Return what a node multiplies its bias with."""
        return float(linear.node.attrs.get(linear.operator.bias_factor, 1.0))

    def model(self, values: Sequence[Tensor]) -> onnx.ModelProto | None:
        """Return the model with other values in the place of `tensors`.

        Returns:
            The model; None where a value is not finite in the type that it is stored in.
        """
        arrays = [value.detach().cpu().double().numpy() for value in values]
        weights: dict[str, AffineMap] = {}
        for block in self._blocks:
            linear = block.uses[0]
            operator = linear.operator
            factor = float(linear.node.attrs.get(operator.weight_factor, 1.0))
            matrix = factor * operator.matrix(linear.node, arrays[block.weight])
            shift = linear.bias
            if block.bias is not None:
                shift = self._factor(linear) * arrays[block.bias].reshape(-1)
            kind = constants.element_type(linear.weight)
            if not (constants.fits(matrix, kind) and constants.fits(shift, kind)):
                return None
            fused = AffineMap(matrix, shift.reshape(matrix.shape[:2]))
            weights |= {use.name: fused for use in block.uses}
        graph = gs.import_onnx(self._model)
        ReplaceWeights(weights).run(graph)
        return export(graph, like=self._model)
