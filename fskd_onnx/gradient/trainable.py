"""What gradient steps may change in a model, as parameters and back.

Either the weights and biases themselves (``TrainableWeights``), or 1x1 adapters behind blocks, as
of the paper (``TrainableAdapters``; Li et al. 2020, equation 4, with a shift)::

    W' = Q W    b' = Q b + c        Q: (groups, n, n), c: (groups, n), from the identity

All uses of a block have one weight and one bias between them, each its own, whatever else reads the
constants that they come from. A node that has a place for a bias and none yet gets one, but for
factors of a block, whose last node has it. What is stored in half precision is trained in single
precision, and cast once when it goes back.
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
from fskd_onnx.gradient.orthogonal_steps import Shape, as_matrices
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
        scale: size of its typical value, which a step is a part of.
        mask: where it may change; None: everywhere.
        matrices: shape as which its steps are orthogonalized; None: they are not.
    """

    values: Tensor
    scale: float
    mask: Tensor | None = None
    matrices: Shape | None = None


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
        slots: the inputs of nodes that each value stands in for, see ``TorchGraph``.
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
        self.slots: list[tuple[Slot, ...]] = []
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
        self.slots.append(tuple(Slot(use.node.outputs[0].name, 1) for use in uses))
        matrices = as_matrices(stored, linear.shape[0]) if mask is None else None
        self.tensors.append(Trainable(stored, size, mask, matrices))
        places = [use.bias_slot for use in uses]
        without = linear.bias_constant is None and linear.name in self._factors
        if None not in places and not without and self._factor(linear):
            bias = len(self.tensors)
            shift = torch.tensor(linear.bias / self._factor(linear)).to(kind)
            old = linear.bias_constant
            if old is not None and old.shape:  # an Add may owe the rank of its output to it
                shift = shift.reshape(*[1] * (len(old.shape) - 1), -1)
            read = tuple(Slot(place[0].outputs[0].name, place[1]) for place in places if place)
            self.slots.append(read)
            self.tensors.append(Trainable(shift, size * float(np.sqrt(linear.shape[2]))))
        self._blocks.append(_Block(uses, weight, bias))

    @staticmethod
    def _factor(linear: Linear) -> float:
        """Return what a node multiplies its bias with."""
        return float(linear.node.attrs.get(linear.operator.bias_factor, 1.0))

    def values(self, trained: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what stands in for weights and biases, in the order of ``slots``.

        Args:
            trained: in the place of ``tensors``.
        """
        return trained

    def model(self, trained: Sequence[Tensor]) -> onnx.ModelProto | None:
        """Return the model with what has been trained in it.

        Args:
            trained: in the place of ``tensors``.

        Returns:
            The model; None where a value is not finite in the type that it is stored in.
        """
        arrays = [value.detach().cpu().double().numpy() for value in self.values(trained)]
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


class TrainableAdapters(TrainableWeights):
    """1x1 adapters behind some linear nodes of a model, see the module's docstring."""

    def __init__(self, model: onnx.ModelProto, names: Collection[str]) -> None:
        """Start from the identity behind each block.

        Args:
            model: canonical.
            names: of the nodes that may change.
        """
        super().__init__(model, names)
        self._weights, self.tensors = self.tensors, []
        self._orders: list[Tensor] = []
        for block in self._blocks:
            linear = block.uses[0]
            groups, n, _ = linear.shape
            stored = self._weights[block.weight].values
            numbers = np.arange(stored.numel()).reshape(tuple(stored.shape))
            self._orders.append(torch.tensor(linear.operator.matrix(linear.node, numbers)))
            identity = torch.eye(n, dtype=stored.dtype).expand(groups, n, n)
            self.tensors.append(Trainable(identity.clone(), n**-0.5))
            if block.bias is not None:
                bias = self._weights[block.bias]
                self.tensors.append(Trainable(torch.zeros_like(bias.values), bias.scale))

    def values(self, trained: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the weights and biases of the blocks with their adapters."""
        remaining, found = iter(trained), []
        for block, order in zip(self._blocks, self._orders, strict=True):
            adapter = next(remaining)
            stored = self._weights[block.weight].values.to(adapter.device)
            mapped = adapter @ stored.reshape(-1)[order]
            weight = torch.empty_like(stored).reshape(-1)
            found.append(weight.index_put((order.reshape(-1),), mapped.reshape(-1)))
            found[-1] = found[-1].reshape(stored.shape)
            if block.bias is not None:
                bias = self._weights[block.bias].values.to(adapter.device)
                columns = bias.reshape(len(adapter), -1, 1)
                found.append((adapter @ columns).reshape(bias.shape) + next(remaining))
        return found
