"""Models are timed next to each other; how long they take is measured, never asserted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fskd_onnx.compression.costs import run_shapes
from fskd_onnx.errors import ModelError
from fskd_onnx.runtime import latency
from fskd_onnx.runtime.latency import compare_latency, random_feeds
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build
from tests.networks import NETWORKS

RUNTIME = open_runtime(["cpu"])


@pytest.mark.parametrize("name", ["chain", "two inputs, two outputs", "fixed batch"])
def test_models_are_compared_with_the_first(name: str) -> None:
    teacher, student = NETWORKS[name].teacher(), NETWORKS[name].student()
    specs = input_specs(teacher)
    feeds = random_feeds(specs, run_shapes(specs)[0], seed=0)
    found = compare_latency({"teacher": teacher, "student": student}, [feeds] * 2, RUNTIME, limit=0)
    assert found.ratios[0] == 1
    assert len(found.ratios) == len(found.seconds) == 2
    assert all(np.isfinite(found.ratios))
    assert min(*found.seconds, *found.ratios) > 0


def test_each_turn_is_compared_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # the machine gets slower from turn to turn, and the second model takes twice as long
    asked: list[Any] = []

    def seconds(session: Any, *_: object) -> float:
        asked.append(session)
        return ((len(asked) - 1) // 2 + 1) * (1.0 if session is asked[0] else 2.0)

    monkeypatch.setattr(latency, "_seconds", seconds)
    teacher = NETWORKS["chain"].teacher()
    specs = input_specs(teacher)
    feeds = random_feeds(specs, run_shapes(specs)[0], seed=0)
    found = compare_latency({"one": teacher, "other": teacher}, [feeds] * 2, RUNTIME, limit=0)
    assert found.ratios == pytest.approx((1, 2))
    assert found.quartiles[1] == pytest.approx((2, 2))
    assert found.turns == 5
    first, second = asked[:2]
    turns = [asked[at : at + 2] for at in range(2, len(asked), 2)]
    assert turns[:2] == [[first, second], [second, first]]


def test_what_cannot_run_is_named() -> None:
    model = build("g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    feeds = {"x": np.zeros((1, 4), np.float32)}
    with pytest.raises(ModelError, match=r"student\.onnx: ONNX Runtime cannot run it"):
        compare_latency({"student.onnx": model}, [feeds], RUNTIME)


def test_inputs_that_are_no_floats_are_zero() -> None:
    model = build("g (float[N,3] x, int64[N,2] ids) => (float[N,3] y) { y = Relu (x) }")
    specs = input_specs(model)
    feeds = random_feeds(specs, run_shapes(specs)[0], seed=0)
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].any()
    assert feeds["ids"].dtype == np.int64
    assert not feeds["ids"].any()
