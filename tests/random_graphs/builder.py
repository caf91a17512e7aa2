"""Writes a network node by node: the teacher whole, or a student with what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.helpers import Array
from tests.random_graphs.channels import Channels, Ints, Layout, Tensor


@dataclass(frozen=True)
class Recipe:
    """What makes the student.

    Attributes:
        prune: whether channels go.
        permute: whether those that stay come in another order.
        noise: on weights, relative to their standard deviation.
        zeros: share of the smallest weights that become zero.
        low_rank: whether matrices lose half of their rank.
        decompose: share of the linear nodes that become chains.
        drop: share of the residual branches that go.
    """

    prune: bool = False
    permute: bool = False
    noise: float = 0.0
    zeros: float = 0.0
    low_rank: bool = False
    decompose: float = 0.0
    drop: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether all weights are slices of the teacher's."""
        return not (self.noise or self.zeros or self.low_rank or self.decompose)


@dataclass
class Builder:
    """A graph that grows. Layers draw from ``rng`` the same for the teacher and its student.

    Attributes:
        seed: of the program.
        dtype: of activations and weights.
        opset: version of the operators.
        recipe: of the student.
        keep: ids of the channels that a student keeps; None writes the teacher.
        channels: all ids.
        spaces: sets of ids that were drawn together.
        truth: teacher's position of each channel, by block output.
        truth_of_sums: the same of sums of linear branches.
        axes: axis of the channels, by block output.
        sums: the sum that a linear branch is a part of, by block output.
        same_weights: another block output of the same weights, by block output.
        linear_count: how many linear nodes there are in the teacher.
        decay: by which power of e the singular values of weights decay, as they do in trained ones.
        batch: size of the batch that the network insists on; 0 for none.
    """

    seed: int
    dtype: np.dtype[Any]
    opset: int
    recipe: Recipe
    keep: set[int] | None = None
    permutable: frozenset[int] = frozenset()
    batch: int = 0
    channels: Channels = field(default_factory=Channels)
    spaces: list[Ints] = field(default_factory=list)
    truth: dict[str, Ints] = field(default_factory=dict)
    truth_of_sums: dict[str, Ints] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    same_weights: dict[str, str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    linear_count: int = 0
    decay: float = 0.0
    _numbers: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 1])
        self.change = np.random.default_rng([self.seed, 2])
        self.decay = 6.0 if self.chance(0.4) else 0.0

    @property
    def is_student(self) -> bool:
        """Whether it writes the student."""
        return self.keep is not None

    def chance(self, share: float) -> bool:
        """Draw yes or no."""
        return bool(self.rng.random() < share)

    def pick(self, *choices: Any) -> Any:
        """Draw one of some choices."""
        return choices[self.rng.integers(len(choices))]

    def whole(self, low: int, high: int) -> int:
        """Draw a number of low..high."""
        return int(self.rng.integers(low, high + 1))

    # Channels.

    def fresh(self, width: int) -> tuple[Ints, Ints]:
        """Give new channels: ids, and the positions that are kept."""
        ids = self.channels.fresh(width)
        self.spaces.append(ids)
        if self.keep is None:
            return ids, np.arange(width)
        kept = np.array([i for i, channel in enumerate(ids) if channel in self.keep], np.intp)
        if self.recipe.permute and self.permutable.issuperset(ids.tolist()):
            kept = self.change.permutation(kept)
        return ids, kept

    def equal(self, groups: Sequence[Ints]) -> None:
        """Demand that a student keeps as many channels of each group, in their order."""
        self.channels.equal.append(list(groups))

    def fix(self, ids: Ints) -> None:
        """Demand that a student keeps channels."""
        self.channels.fixed.update(ids.tolist())

    # Nodes.

    def state(self) -> tuple[int, int, set[str]]:
        """Give how far the graph has come."""
        return len(self.nodes), len(self.initializers), set(self.truth)

    def forget(self, state: tuple[int, int, set[str]]) -> None:
        """Take back all that was appended since."""
        del self.nodes[state[0] :], self.initializers[state[1] :]
        self.truth = {name: kept for name, kept in self.truth.items() if name in state[2]}
        made = {node.output[0] for node in self.nodes}
        self.truth_of_sums = {n: kept for n, kept in self.truth_of_sums.items() if n in made}

    def split(self, source: str, counts: str, outputs: list[str], axis: int) -> None:
        """Append a Split into parts of some sizes."""
        node = helper.make_node("Split", [source, counts], outputs, outputs[0] + ".node", axis=axis)
        self.nodes.append(node)

    def flatten(self, source: str) -> str:
        """Append what leaves axis 0 and one other."""
        if self.chance(0.5):
            return self.node("Flatten", [source])
        return self.node("Reshape", [source, self.indices(0, -1)])

    def mean(self, source: str, axes: tuple[int, ...]) -> str:
        """Append a mean over axes, which go."""
        if self.opset < 18:
            return self.node("ReduceMean", [source], axes=list(axes), keepdims=0)
        return self.node("ReduceMean", [source, self.indices(*axes)], keepdims=0)

    def name(self, what: str) -> str:
        """Give a name that no other tensor has, the same in teacher and student."""
        self._numbers += 1
        return f"{what.lower()}_{self._numbers}"

    def node(self, op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        output = output or self.name(op)
        self.nodes.append(helper.make_node(op, inputs, [output], f"{output}.node", **attributes))
        return output

    def constant(self, values: Any, name: str = "", dtype: Any = None) -> str:
        """Append an initializer, of the network's type where nothing is said."""
        name = name or self.name("constant")
        array = np.ascontiguousarray(np.asarray(values), dtype or self.dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def indices(self, *values: int) -> str:
        """Append an initializer of int64."""
        return self.constant(np.array(values, np.int64), dtype=np.int64)

    def vector(self, values: Array, kept: Ints, shape: tuple[int, ...] = (-1,)) -> str:
        """Append one value per channel, of those that are kept."""
        return self.constant(values[kept].reshape(shape))

    def input(self, layout: Layout, width: int, extents: tuple[int, ...]) -> Tensor:
        """Append an input."""
        ids, kept = self.fresh(width)
        self.fix(ids)
        tensor = Tensor(f"input_{len(self.inputs)}", layout, ids, kept, extents)
        self.inputs.append(tensor)
        return tensor

    def output(self, tensor: Tensor) -> None:
        """Make a tensor an output."""
        self.fix(tensor.ids)
        self.outputs.append(tensor)

    def spread(self, tensor: Tensor) -> tuple[int, ...]:
        """Give the shape with which one value per channel is broadcast."""
        return (-1, *(1 for _ in tensor.extents)) if tensor.layout is Layout.SPATIAL else (-1,)

    def model(self) -> onnx.ModelProto:
        """Give the whole model."""
        inputs, outputs = map(self._info, self.inputs), map(self._info, self.outputs)
        graph = helper.make_graph(self.nodes, "g", list(inputs), list(outputs), self.initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def _info(self, tensor: Tensor) -> onnx.ValueInfoProto:
        batch: int | str = self.batch or "N"
        shapes: dict[Layout, list[int | str]] = {
            Layout.VECTOR: [batch, tensor.width],
            Layout.SPATIAL: [batch, tensor.width, *tensor.extents],
            Layout.TOKENS: [batch, *tensor.extents, tensor.width],
            Layout.TIME_FIRST: [*tensor.extents, batch, tensor.width],
            Layout.CONSTANT: [1, tensor.width],
        }
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        return helper.make_tensor_value_info(tensor.name, kind, shapes[tensor.layout])
