"""Where a block's error is seen: at its output, behind the Add of a shortcut, behind a clipping.

::

    block ──▶ output ──▶ Add ──▶ total ──▶ Relu ──▶
                          ▲
    shortcut ─────────────┘
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes.analysis.linear import Linear

F = TypeVar("F", bound=np.floating)


@dataclass(frozen=True)
class Epilogue:
    """What is behind a block's output, as far as it is the only thing that reads it.

    Attributes:
        shortcut: the tensor that is added to the output, if one is.
        total: the sum; None where nothing is added.
        low: lower bound of the clipping activation behind it, -inf where there is none.
        high: upper bound, inf where there is none.
    """

    shortcut: str | None = None
    total: str | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether an activation hides part of the output."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def clip(self, values: NDArray[F]) -> NDArray[F]:
        """Return what the activation makes of some values."""
        clipped: NDArray[F] = np.clip(values, *self._bounds(values))
        return clipped

    def forgive(self, prediction: NDArray[F], target: NDArray[F]) -> NDArray[F]:
        """Return targets that ask for nothing beyond a bound where the teacher lies beyond it.

        See ``fskd_onnx.fitting.block_data.BlockData.relu_aware_moments``.
        """
        low, high = self._bounds(target)
        if low is not None:
            target = np.where(target <= low, np.minimum(prediction, low), target)
        if high is not None:
            target = np.where(target >= high, np.maximum(prediction, high), target)
        return target

    def _bounds(self, values: NDArray[F]) -> tuple[F | None, F | None]:
        """Return the bounds in the type of some values; None where there is none."""
        low, high = (
            values.dtype.type(bound) if math.isfinite(bound) else None
            for bound in (self.low, self.high)
        )
        return low, high

    def without_sum(self) -> Epilogue:
        """Return the readout at the block's own output; what follows the sum is out of sight."""
        return NO_EPILOGUE if self.total is not None else self


NO_EPILOGUE = Epilogue()
"""The error is seen at the block output."""


def find_epilogue(graph: gs.Graph, linear: Linear) -> Epilogue:
    """Look behind a block's output."""
    output = linear.output
    shortcut = total = None
    add = _only_reader(graph, output)
    if add is not None and add.op in ("Add", "Sum") and len(add.inputs) == 2:
        other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
        if not isinstance(other, gs.Constant) and other is not output:
            output = add.outputs[0]
            shortcut, total = other.name, output.name
    low, high = _bounds(_only_reader(graph, output))
    return Epilogue(shortcut, total, low, high)


def _only_reader(graph: gs.Graph, tensor: gs.Tensor) -> gs.Node | None:
    if len(tensor.outputs) != 1 or any(output is tensor for output in graph.outputs):
        return None
    return tensor.outputs[0]


def _bounds(node: gs.Node | None) -> tuple[float, float]:
    if node is not None and node.op == "Relu":
        return 0.0, math.inf
    if node is not None and node.op == "Clip":
        # The bounds were attributes before opset 11, and are inputs since.
        low, high = node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)
        given = [None if t.is_empty() else t for t in node.inputs[1:]]
        if all(t is None or isinstance(t, gs.Constant) for t in given):
            values = [None if t is None else float(np.asarray(t.values).item()) for t in given]
            low, high = (
                old if new is None else new
                for old, new in zip((low, high), [*values, None, None], strict=False)
            )
            return float(low), float(high)
    return -math.inf, math.inf
