"""The benchmark of what the host computes runs on its smallest cases."""

from __future__ import annotations

from fskd_onnx.runtime.providers import open_runtime
from tests.benchmarks import host


def test_both_steps_give_a_ratio() -> None:
    runtime = open_runtime(["cpu"])
    assert host.gather_ratio(runtime, (2, 3, 5, 4, 9)) > 0
    assert host.product_ratio(runtime, 4, 10) > 0


def test_threads_beside_another_process_give_a_ratio() -> None:
    assert host.crowded_ratio(8) > 0
    assert host.waiting_ratio(1) > 0
