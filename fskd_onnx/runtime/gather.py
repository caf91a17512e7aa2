"""Gathers columns of a tensor where the tensor is, so that only they come to the host.

On the host NumPy gathers, several times faster than the runtime (``tests/benchmarks/host.py``); on
a device, sessions that serve all tensors of a rank and an element type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnxruntime import InferenceSession, OrtValue

from fskd_onnx.passes.gather_columns import COLUMNS, GatherColumns, gather_feeds
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import download, upload

_OPSET, _IR = 17, 8


class Gatherer:
    """Gathers columns of tensors on the host or on a device; keeps the sessions for a device."""

    def __init__(self, runtime: Runtime) -> None:
        """Start without any session.

        Args:
            runtime: where the tensors are.
        """
        self._runtime = runtime
        self._sessions: dict[tuple[int, int, bool, bool], InferenceSession] = {}

    def __call__(
        self,
        tensor: OrtValue,
        channels_last: bool,
        count: int,
        index: NDArray[np.intp],
        inside: NDArray[np.bool_] | None = None,
        out: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Gather columns to the host, (channels * taps, count * k).

        Args:
            tensor: (N, channels, ...), or (N, ..., channels).
            channels_last: which of the two.
            count: how many of the N.
            index: (taps, k) flat positions.
            inside: (taps, k) whether there is such a position; ``None``: all of them.
            out: where to put them, cast to its type; ``None``: a new array of ``column_type``.
        """
        if tensor.device_name() == "cpu":
            if out is None:
                taps, k = index.shape
                channels = tensor.shape()[-1 if channels_last else 1]
                out = np.empty((channels * taps, count * k), column_type(tensor.element_type()))
            _take(tensor.numpy(), channels_last, count, index, inside, out)
            return out
        return self.on_device(tensor, channels_last, count, index, inside, out)

    def on_device(
        self,
        tensor: OrtValue,
        channels_last: bool,
        count: int,
        index: NDArray[np.intp],
        inside: NDArray[np.bool_] | None = None,
        out: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Gather columns by a session; arguments and result as those of a call."""
        shape = tensor.shape()
        key = (len(shape), int(tensor.element_type()), channels_last, inside is not None)
        if key not in self._sessions:
            self._sessions[key] = self._session(*key)
        chosen = gather_feeds(shape, channels_last, count, index, inside)
        feeds = {"tensor": tensor} | upload(chosen, self._runtime.device)
        found = run(self._sessions[key], feeds, [COLUMNS], "cpu")[COLUMNS]
        if out is None:
            # A copy: columns are kept for long, and would leave holes in the runtime's arena.
            return download(found)
        out[...] = found.numpy()
        return out

    def _session(
        self, rank: int, element_type: int, channels_last: bool, masked: bool
    ) -> InferenceSession:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
        tensor = gs.Variable("tensor", dtype, [None] * rank)
        graph = gs.Graph(inputs=[tensor], opset=_OPSET, name="columns")
        GatherColumns("tensor", channels_last, masked, column_type(element_type)).run(graph)
        return self._runtime.session(gs.export_onnx(graph, ir_version=_IR))


def column_type(element_type: int) -> np.dtype[Any]:
    """Return the type of columns: that of their tensor, and float32 below that."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _take(
    tensor: NDArray[Any],
    channels_last: bool,
    count: int,
    index: NDArray[np.intp],
    inside: NDArray[np.bool_] | None,
    out: NDArray[np.floating],
) -> None:
    """Gather on the host; arguments as those of a call of ``Gatherer``."""
    taps, k = index.shape
    tensor = tensor[:count]
    if channels_last:
        flat = tensor.reshape(count, -1, tensor.shape[-1])
        columns = np.take(flat, index.reshape(-1), axis=1).swapaxes(1, 2)
    else:
        columns = tensor.reshape(*tensor.shape[:2], -1)
        if taps > 1 or inside is not None or k < columns.shape[2]:  # else it is all positions
            columns = np.take(columns, index.reshape(-1), axis=2)
    if inside is not None:
        columns *= inside.reshape(-1)
    placed = columns.reshape(count, -1, taps, k).transpose(1, 2, 0, 3)
    out.reshape(placed.shape)[...] = placed
