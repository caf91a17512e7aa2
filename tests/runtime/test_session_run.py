"""Runs of a session: what is bound where."""

from __future__ import annotations

import pytest

from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.session_run import lies_on_devices
from tests.helpers import build


@pytest.mark.parametrize(
    ("declared", "node", "expected"),
    [
        ("float[N]", "Identity (x)", True),
        ("int64[N]", "Cast <to = 7> (x)", True),
        ("string[N]", "Cast <to = 8> (x)", False),
        ("seq(float[N])", "SequenceConstruct (x)", False),
        ("optional(float[N])", "Optional (x)", False),
    ],
)
def test_devices_hold_numbers(declared: str, node: str, expected: bool) -> None:
    model = build(f"g (float[N] x) => ({declared} y) {{ y = {node} }}", opset=15)
    (output,) = open_runtime(["cpu"]).session(model).get_outputs()
    assert lies_on_devices(output.type) is expected
