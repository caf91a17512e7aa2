"""Which part of an output a number belongs to, as a run of the network tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.output_parts import output_parts
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

Array = NDArray[Any]


def parts(text: str, x: Array) -> dict[str, tuple[Sequence[str], list[int]]]:
    model, runtime = build(text), open_runtime(("cpu",))
    samples = load_samples({"x": x}, input_specs(model))
    axes = forward(runtime, model, samples, np.arange(len(x)), None, "m", None).axes
    found = output_parts(runtime, model, samples, None, "m", None, axes)
    return {name: (each.names, each.numbers.tolist()) for name, each in found.items()}


def test_only_outputs_of_several_parts_have_some() -> None:
    text = """g (float[N,3] x) => (float[N,5] y, float[N,3] z, float[N,6] w) <float[3,2] a> {
        b = MatMul (x, a)
        z = Sigmoid (x)
        y = Concat <axis = 1> (b, z)
        r = Relu (x)
        w = Concat <axis = 1> (z, r)
    }"""
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    assert parts(text, x) == {
        "y": (("b", "z"), [0, 0, 1, 1, 1]),
        "w": (("z", "r"), [0, 0, 0, 1, 1, 1]),
    }


@pytest.mark.parametrize("batch", ["N", "1", "2"])
def test_samples_may_be_on_another_axis_and_batches_fixed(batch: str) -> None:
    text = f"""g (float[{batch},3] x) => (float[5,{batch}] y) <float[3,2] a> {{
        b = MatMul (x, a)
        s = Sigmoid (x)
        c = Concat <axis = 1> (b, s)
        y = Transpose <perm = [1, 0]> (c)
    }}"""
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    assert parts(text, x) == {"y": (("b", "s"), [0, 0, 1, 1, 1])}
