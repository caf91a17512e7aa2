"""How long single linear nodes take in the ONNX Runtime of this machine, by their shape.

Nodes of several shapes are put side by side into one model, and the runtime's own profile says how
long each of them took. So neither the call of the runtime counts nor what only a node on its own
needs: the runtime stores the channels of convolutions in blocks, and puts the order of inputs and
outputs right at the ends of a network, not at each node. Where the profile does not hold what a
device does, as on a GPU, each node runs alone, and the time of a run is what counts. The least time
of several runs is taken, since whatever else the machine does only adds to it.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fskd_onnx.compression.linear_case import LinearCase
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors
from fskd_onnx.serialization.temporary import TemporaryFolder

Floats = NDArray[np.float64]

_OPSET, _IR = 17, 8
# Of each model: nodes, and elements of what they read.
_MOST_NODES, _MOST_ELEMENTS = 24, 2**25
_WARM_UP, _RUNS = 2, 15
# Seconds: half of the smallest step of the profile.
_LEAST = 5e-7
# Elements of noise that larger tensors repeat.
_NOISE = 2**14


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

    def by_widths(
        self, case: LinearCase, inputs: Sequence[int], outputs: Sequence[int]
    ) -> Floats | None:
        """Return how long a node takes with any of some numbers of input and output channels.

        Time is taken as a product of what it depends on by the inputs and by the outputs, each
        measured while the other is whole::

            t(i, o) = t(i, O) t(I, o) / t(I, O)

        Both are staircases, since kernels work on blocks of channels. What the limit of time leaves
        out lies on straight lines between what was measured, from 0 on.

        Args:
            case: of the whole node; not a depthwise one, whose inputs are its outputs.
            inputs: numbers of input channels.
            outputs: numbers of output channels.

        Returns:
            Seconds, (inputs, outputs); None where the limit came before the whole node.

        Raises:
            ModelError: ONNX Runtime cannot run one of them.
        """
        (whole,) = self.seconds([case])
        if whole is None:
            return None
        by_inputs = [case.with_widths(inputs=width) for width in inputs]
        by_outputs = [case.with_widths(outputs=width) for width in outputs]
        return np.outer(
            self._line(by_inputs, inputs, {0: 0.0, case.inputs: whole}),
            self._line(by_outputs, outputs, {0: 0.0, case.outputs: whole}) / whole,
        )

    def _line(
        self, cases: Sequence[LinearCase], widths: Sequence[int], known: Mapping[int, float]
    ) -> Floats:
        """Return how long nodes of some widths take, from those that are measured or known."""
        measured = zip(widths, self.seconds(cases), strict=True)
        found = {**known, **{width: one for width, one in measured if one is not None}}
        at = sorted(found)
        return np.interp(widths, at, [found[width] for width in at])

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
    """Return the least seconds of each node of a model, by the profile of the runtime."""
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
    return [max(min(found[name][_WARM_UP:]), _LEAST) for name in names]


def _timed(
    session: onnxruntime.InferenceSession, feeds: dict[str, NDArray[Any]], device: str
) -> float:
    """Return the least seconds of a run whose input and output stay on a device."""
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
    return min(taken[_WARM_UP:])
