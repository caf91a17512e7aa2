"""How long single linear nodes take in the ONNX Runtime of this machine, by their shape.

Nodes of several shapes are put side by side into one model, and the runtime's own profile says how
long each of them took. So neither the call of the runtime counts nor what only a node on its own
needs: the runtime stores the channels of convolutions in blocks, and puts the order of inputs and
outputs right at the ends of a network, not at each node. Where the profile does not hold what a
device does, as on a GPU, each node runs alone, and the time of a run is what counts.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors
from fskd_onnx.serialization.temporary import TemporaryFolder

_OPSET, _IR = 17, 8
# Of each model: nodes, and elements of what they read.
_MOST_NODES, _MOST_ELEMENTS = 24, 2**25
_WARM_UP, _RUNS = 2, 9
# Elements of noise that larger tensors repeat.
_NOISE = 2**14
_RESERVED = ("group", "kernel_shape")


@dataclass(frozen=True)
class LinearCase:
    """All of a linear node and its input that its time depends on.

    Attributes:
        op: its operator.
        inputs: number of input channels.
        outputs: number of output channels.
        groups: number of groups.
        kernel: spatial extents of the kernel; () for none.
        others: extents of the input but for its channels, the samples first.
        dtype: name of the element type.
        has_bias: whether it has a bias of its own.
        attributes: what else the node states, by name.
    """

    op: str
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, ...]
    others: tuple[int, ...]
    dtype: str
    has_bias: bool
    attributes: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(view: Linear, shape: Sequence[int]) -> LinearCase:
        """Return the case of a node.

        Args:
            view: the node.
            shape: of its input in a run.
        """
        groups, n, p = view.shape
        axis = view.channel_axis % len(shape)
        stated = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in view.node.attrs.items()
            if name not in _RESERVED
        }
        return LinearCase(
            view.op,
            groups * p // math.prod(view.kernel_shape),
            groups * n,
            groups,
            view.kernel_shape,
            (*shape[:axis], *shape[axis + 1 :]),
            view.dtype.name,
            has_bias=view.bias_constant is not None and view.bias_node is None,
            attributes=tuple(sorted(stated.items())),
        )

    def with_widths(self, inputs: int | None = None, outputs: int | None = None) -> LinearCase:
        """Return the case of the node with other numbers of channels.

        A depthwise node keeps one channel in each group.
        """
        read, made = inputs or self.inputs, outputs or self.outputs
        groups = read if self.groups == self.inputs > 1 else self.groups
        return replace(self, inputs=read, outputs=made, groups=groups)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        axis = len(self.others) if self.op == "MatMul" else 1
        return (*self.others[:axis], self.inputs, *self.others[axis:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as the operator stores it."""
        if self.op == "Conv":
            return (self.outputs, self.inputs // self.groups, *self.kernel)
        if self.op == "ConvTranspose":
            return (self.inputs, self.outputs // self.groups, *self.kernel)
        outputs_first = self.op == "Gemm" and dict(self.attributes).get("transB", 0)
        sizes = (self.outputs, self.inputs) if outputs_first else (self.inputs, self.outputs)
        return sizes

    @property
    def elements(self) -> int:
        """Number of elements that the node reads."""
        return math.prod(self.input_shape) + math.prod(self.weight_shape)


class NodeLatency:
    """Measures linear nodes, each case once, until a limit of time.

    Attributes:
        spent: seconds that measuring has taken.
    """

    def __init__(self, runtime: Runtime, limit: float = 60.0) -> None:
        """Measure nothing yet.

        Args:
            runtime: whose providers run the nodes.
            limit: seconds after which no further case is measured.
        """
        self._runtime = replace(runtime, as_users_run=True)
        self._limit = limit
        self._known: dict[LinearCase, float] = {}
        self.spent = 0.0

    def seconds(self, cases: Sequence[LinearCase]) -> list[float | None]:
        """Return how long a run of each node takes; None where the limit came before.

        Args:
            cases: those that matter most first.

        Raises:
            ModelError: ONNX Runtime cannot run one of them.
        """
        new = [case for case in dict.fromkeys(cases) if case not in self._known]
        for together in _side_by_side(new, 1 if self._runtime.device != "cpu" else _MOST_NODES):
            if self.spent >= self._limit:
                break
            start = time.perf_counter()
            with named_errors(f"a {together[0].op} of shape {list(together[0].weight_shape)}"):
                self._measure(together)
            self.spent += time.perf_counter() - start
        return [self._known.get(case) for case in cases]

    def _measure(self, cases: Sequence[LinearCase]) -> None:
        model = _model(cases)
        names = [_name(number) for number in range(len(cases))]
        feeds = {
            f"{name}x": _noise(case.input_shape, case.dtype)
            for name, case in zip(names, cases, strict=True)
        }
        if self._runtime.device != "cpu":
            found = [_timed(self._runtime.session(model), feeds, self._runtime.device)]
        else:
            found = _profiled(self._runtime, model, feeds, names)
        self._known.update(zip(cases, found, strict=True))


def _side_by_side(cases: Sequence[LinearCase], most: int) -> Iterator[list[LinearCase]]:
    """Yield cases that go into one model, in order."""
    together: list[LinearCase] = []
    for case in cases:
        elements = sum(other.elements for other in together) + case.elements
        if together and (len(together) == most or elements > _MOST_ELEMENTS):
            yield together
            together = []
        together.append(case)
    if together:
        yield together


def _name(number: int) -> str:
    return f"case{number}."


def _model(cases: Sequence[LinearCase]) -> onnx.ModelProto:
    """Return a model of nodes that stand side by side."""
    nodes, inputs, outputs, weights = [], [], [], []
    for number, case in enumerate(cases):
        name = _name(number)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
        values = {"w": _noise(case.weight_shape, case.dtype)}
        if case.has_bias:
            values["b"] = _noise((case.outputs,), case.dtype)
        weights += [numpy_helper.from_array(value, name + part) for part, value in values.items()]
        inputs.append(helper.make_tensor_value_info(f"{name}x", kind, case.input_shape))
        outputs.append(helper.make_tensor_value_info(f"{name}y", kind, None))
        attributes = dict(case.attributes)
        if case.kernel:
            attributes |= {"group": case.groups, "kernel_shape": case.kernel}
        read = [f"{name}x", *(name + part for part in values)]
        nodes.append(helper.make_node(case.op, read, [f"{name}y"], f"{name}y", **attributes))
    graph = helper.make_graph(nodes, "nodes", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _noise(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    """Return noise of a shape; the same each time."""
    some = np.random.default_rng(0).standard_normal(_NOISE).astype(dtype)
    return np.resize(some, shape)


def _profiled(
    runtime: Runtime, model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], names: Sequence[str]
) -> list[float]:
    """Return the median seconds of each node of a model, by the profile of the runtime."""
    folder = TemporaryFolder()
    try:
        session = runtime.session(model, folder.path / "profile")
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    finally:
        folder.remove()
    found: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        # Nodes that the runtime puts in the place of another are named after its output.
        owner = next((name for name in names if event["name"].startswith(name)), None)
        if owner is not None:
            found[owner].append(event["dur"] / 1e6)
    return [median(found[name][_WARM_UP:]) for name in names]


def _timed(
    session: onnxruntime.InferenceSession, feeds: dict[str, NDArray[Any]], device: str
) -> float:
    """Return the median seconds of a run whose input and output stay on a device."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(
            name, onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0)
        )
    binding.bind_output(session.get_outputs()[0].name, device)
    taken = []
    for _ in range(_WARM_UP + _RUNS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        taken.append(time.perf_counter() - start)
    return median(taken[_WARM_UP:])
