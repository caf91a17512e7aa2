"""What tests of operators share: a node in PyTorch gives what it gives in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch

from fskd_onnx.gradient.torch_graph import TorchGraph
from tests.helpers import Array, build, run


class Case(NamedTuple):
    """A small graph.

    Attributes:
        text: from its inputs to the body, as ``(float[2,3] x) => (float[n,c] y) { ... }``.
        opset: version of the operators.
        values: of its initializers.
    """

    text: str
    opset: int = 17
    values: Mapping[str, Any] = {}

    @property
    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        return build(f"case {self.text}", self.values, opset=self.opset)


def in_torch(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model in PyTorch."""
    graph = TorchGraph(model, "model", [output.name for output in model.graph.output])
    with torch.no_grad():
        found = graph.run({name: torch.tensor(value) for name, value in feeds.items()})
    return {name: value.numpy() for name, value in found.items()}


def assert_agrees(case: Case) -> None:
    """Compare the outputs of a case to single precision."""
    model, rng = case.model, np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 3, shape)
        feeds[value.name] = drawn.astype(dtype)
    found = in_torch(model, feeds)
    for name, expected in run(model, feeds).items():
        assert found[name].shape == expected.shape
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-6)
