"""One run of a session, tensors staying on their device."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.errors import FskdError, ModelError, OutOfMemoryError
from fskd_onnx.runtime.out_of_memory import is_out_of_memory
from fskd_onnx.runtime.tensor_store import is_plain

# The number and name of an error of ONNX Runtime, and where in its source it was raised.
_POSITION = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : |^Error in execution: |Non-zero status code returned "
    r"while running |(Status Message: )?\S+\.(cc|h):\d+ .*?\) (?=\S)"
)
_TENSOR_OF_NUMBERS = re.compile(r"tensor\((?!string).*\)")
# Some list all types that there are.
_LONGEST = 400
_NODE = re.compile(
    r"(?:Exception during initialization: )?(\w+) node\. Name:'(.*?)' (?:Status Message: )?"
    r"(?:\S+ [=!<>]=? \S+ was false\. )?"
)


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
    types = {output.name: output.type for output in session.get_outputs()}
    for name in outputs:
        binding.bind_output(name, device if lies_on_devices(types[name]) else "cpu")
    session.run_with_iobinding(binding)
    return dict(zip(outputs, map(_detached, binding.get_outputs()), strict=True))


def lies_on_devices(kind: str) -> bool:
    """Whether a device can hold a value of a type, as the runtime calls it: strings it cannot."""
    return _TENSOR_OF_NUMBERS.fullmatch(kind) is not None


def _detached(value: OrtValue) -> OrtValue:
    """Return a tensor without its binding, which would keep all others of the run in memory.

    Also those that it was fed, and the bindings that they come from: one tensor of the last segment
    would hold on to every activation before it.
    """
    return OrtValue.from_dlpack(value) if is_plain(value) else value


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Say in one line, with the name of a network, what ONNX Runtime cannot run.

    Raises:
        OutOfMemoryError: there is not enough memory.
        ModelError: it cannot for any other reason.
    """
    try:
        yield
    except FskdError:  # of the samples, or of where they are kept
        raise
    except Exception as error:
        if is_out_of_memory(error):  # no fault of the network
            raise OutOfMemoryError(f"{name}: a run does not fit into memory", name) from error
        # ONNX Runtime raises a dozen unrelated types; which one says nothing to a user.
        raise ModelError(
            f"{name}: ONNX Runtime cannot run it: {first_line(error)}; where the network states "
            "how many samples run at once, give that by --batch-size"
        ) from error


def first_line(error: Exception) -> str:
    """Return what ONNX Runtime says of an error, without where in its source that is."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = _POSITION.sub("", lines[0])
    text = _NODE.sub(r"node '\2' (\1): ", text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
