"""Decomposed students have the structure of their recipe, and weights of the teacher's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.decompose import (
    OF_POINTWISE,
    RECIPES,
    Branches,
    Decomposition,
    decompose,
    recipes,
    split,
)
from models.networks import (
    DenseLayer,
    InvertedResidual,
    ResNet20,
    densenet22,
    mobilenetv2,
    resnet20,
)


def convolution(outputs: int = 10, inputs: int = 6, stride: int = 2) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


@pytest.mark.parametrize("branches", [False, True])
def test_nine_terms_are_the_convolution(branches: bool) -> None:
    conv, x = convolution(), torch.randn(2, 6, 9, 9)
    scale = torch.linspace(0.5, 2, conv.out_channels, dtype=torch.float64)
    whole = split(conv, Decomposition("decouple", terms=9, branches=branches), scale)
    with torch.no_grad():
        assert torch.allclose(whole(x), conv(x), atol=1e-4)


@pytest.mark.parametrize("form", ["spatial", "channel", "first", "tucker"])
@pytest.mark.parametrize("divisor", [2, 4])
def test_a_divisor_is_of_the_multiply_adds(form: str, divisor: int) -> None:
    conv, side = convolution(40, 30, 1), 12
    parts = split(conv, Decomposition(form, divisor))
    found = sum(m.weight.numel() for m in parts.modules() if isinstance(m, nn.Conv2d))
    assert parts(torch.zeros(1, 30, side, side)).shape == (1, 40, side, side)
    assert 0.85 < found * divisor / conv.weight.numel() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_parts_give_what_the_convolution_gives_in_shape_and_roughly_in_value(name: str) -> None:
    conv = convolution()
    x = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        found, expected = split(conv, RECIPES[name])(x), conv(x)
    assert found.shape == expected.shape
    assert (found - expected).square().mean() < expected.square().mean()


def test_a_student_keeps_what_is_no_dense_kernel_of_several_positions() -> None:
    torch.manual_seed(0)
    teacher = resnet20().eval()
    student = decompose(teacher, "branches2")
    assert isinstance(student, ResNet20)
    assert isinstance(student.stem.conv, nn.Conv2d)
    assert sum(isinstance(module, Branches) for module in student.modules()) == 18
    assert all(not isinstance(module, Branches) for module in teacher.modules())
    assert student(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_normalisation_in_front_of_a_convolution_is_not_folded_in() -> None:
    torch.manual_seed(0)
    teacher = densenet22().eval()
    layer = next(m for m in teacher.modules() if isinstance(m, DenseLayer))
    torch.nn.init.uniform_(layer.bn.weight)
    same = split(layer.conv, RECIPES["spatial4"])
    student = decompose(teacher, "spatial4")
    found = next(m for m in student.modules() if isinstance(m, DenseLayer)).conv
    for one, other in zip(found.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    assert student(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize("name", OF_POINTWISE)
def test_pointwise_convolutions_become_two_where_there_are_no_others(name: str) -> None:
    torch.manual_seed(0)
    teacher = mobilenetv2().eval()
    assert recipes(teacher) == OF_POINTWISE
    student = decompose(teacher, name)
    block = next(m for m in student.modules() if isinstance(m, InvertedResidual))
    parts = [m for m in block.conv1.modules() if isinstance(m, nn.Conv2d)]
    assert [part.kernel_size for part in parts] == [(1, 1), (1, 1)]
    assert block.conv2.groups > 1
    assert student(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
