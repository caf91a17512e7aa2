"""A convolution in torch, its chain of `models/decompose.py`, and the same convolution in ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from fskd_onnx.passes import Pass
from models.decompose import Decomposition, split
from tests.helpers import Array, build, run

OUTPUTS, INPUTS, SIZE = 12, 8, 9


def reference(form: str, divisor: int, stride: int, terms: int = 1) -> tuple[nn.Conv2d, nn.Module]:
    torch.manual_seed(0)
    conv = nn.Conv2d(INPUTS, OUTPUTS, 3, stride, 1, bias=False)
    return conv, split(conv, Decomposition(form, divisor, terms))


def convolutions(chain: nn.Module) -> list[nn.Conv2d]:
    return [module for module in chain.modules() if isinstance(module, nn.Conv2d)]


def in_onnx(conv: nn.Conv2d) -> onnx.ModelProto:
    shape, stride = ",".join(map(str, conv.weight.shape)), conv.stride[0]
    return build(
        f"g (float[N,{INPUTS},{SIZE},{SIZE}] x) => (float[N,{OUTPUTS},A,B] z) <float[{shape}] w> "
        f"{{ [n] z = Conv <pads = [1,1,1,1], strides = [{stride},{stride}]> (x, w) }}",
        {"w": conv.weight.detach().numpy()},
    )


def assert_gives(factorize: Pass, conv: nn.Conv2d, chain: nn.Module) -> None:
    """Compare what a pass makes of a convolution with its chain in torch."""
    x: Array = np.random.default_rng(1).standard_normal((2, INPUTS, SIZE, SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = chain(torch.from_numpy(x)).numpy()
    found = run(factorize(in_onnx(conv)).model, {"x": x})["z"]
    assert found == pytest.approx(expected, abs=1e-5 * float(np.abs(expected).max()))
