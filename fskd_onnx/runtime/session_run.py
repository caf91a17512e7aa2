"""One run of a session, tensors staying on their device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.runtime.tensor_store import is_plain


def run(
    session: onnxruntime.InferenceSession,
    feeds: Mapping[str, OrtValue],
    outputs: Sequence[str],
    device: str,
) -> dict[str, OrtValue]:
    """Run a session without moving tensors off the device."""
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    return dict(zip(outputs, map(_detached, binding.get_outputs()), strict=True))


def _detached(value: OrtValue) -> OrtValue:
    """Return a tensor without its binding, which would keep all others of the run in memory.

    Also those that it was fed, and the bindings that they come from: one tensor of the last segment
    would hold on to every activation before it.
    """
    return OrtValue.from_dlpack(value) if is_plain(value) else value
