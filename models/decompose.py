"""Decomposed students: teachers whose convolutions became several, from their weights alone.

Every recipe takes one form of decomposition and leaves a part of each layer's multiply-adds; that
gives the rank. What is factorized is the kernel with the batch normalisation behind it folded in,
as its channels weigh in the network; nothing is retrained. Convolutions of a kernel of one
position, or of a single input channel, and depthwise ones stay. But in MobileNetV2, which has no
others, two pointwise convolutions take the place of one.

=============  =====================================================================================
``spatial``    k x 1, then 1 x k: Jaderberg et al., "Speeding up Convolutional Neural Networks with
               Low Rank Expansions" (2014), scheme 2, by singular values
``channel``    k x k to few channels, then 1 x 1: Denton et al. (2014), Zhang et al. (2016), by
               singular values
``first``      1 x 1 to few channels, then k x k
``tucker``     1 x 1, k x k, 1 x 1: Kim et al., "Compression of Deep Convolutional Neural Networks
               for Fast and Low Power Mobile Applications" (2016), Tucker-2 by singular values
``decouple``   k x k depthwise, then 1 x 1, one or two of them: Guo et al., "Network Decoupling"
               (2018), by singular values of each input channel; two as a chain or as branches
``reverse``    1 x 1, then k x k depthwise
=============  =====================================================================================
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks import DenseLayer, MobileNetV2, Network


@dataclass(frozen=True)
class Decomposition:
    """What a convolution becomes.

    Attributes:
        form: one of those of the module's docstring.
        divisor: of the multiply-adds of each layer; 0 where the form alone decides.
        terms: how many depthwise and pointwise pairs.
        branches: whether these are branches of a sum.
    """

    form: str
    divisor: int = 0
    terms: int = 1
    branches: bool = False


RECIPES = {
    **{
        f"{form}{divisor}": Decomposition(form, divisor)
        for form in ("spatial", "channel", "first", "tucker")
        for divisor in (2, 4)
    },
    "decouple1": Decomposition("decouple"),
    "decouple2": Decomposition("decouple", terms=2),
    "branches2": Decomposition("decouple", terms=2, branches=True),
    "reverse": Decomposition("reverse"),
}
"""The recipes by name."""

OF_POINTWISE = ("channel2", "channel4")
"""Those for networks whose kernels of several positions are all depthwise."""

Chain = list[nn.Conv2d]
"""Convolutions, the first one first."""


class Branches(nn.Module):
    """A sum of layers of one input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Take the layers."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add up what the layers give."""
        out: Tensor = self.layers[0](x)
        for layer in self.layers[1:]:
            out = out + layer(x)
        return out


def recipes(network: Network) -> tuple[str, ...]:
    """Name the recipes for a network."""
    return OF_POINTWISE if isinstance(network, MobileNetV2) else tuple(RECIPES)


def decompose(network: Network, recipe: str) -> Network:
    """Make a student.

    Args:
        network: the teacher in eval mode; it stays as it is.
        recipe: one of `recipes`.

    Returns:
        A network of the same class in eval mode, some of its convolutions being several.
    """
    student = copy.deepcopy(network)
    pointwise = isinstance(network, MobileNetV2)
    for parent in list(student.modules()):
        convs = {
            name: child
            for name, child in parent.named_children()
            if isinstance(child, nn.Conv2d) and _is_wanted(child, pointwise)
        }
        for name, conv in convs.items():
            # The normalisation of a DenseNet is in front of its convolution.
            behind = not isinstance(parent, DenseLayer)
            norm = getattr(parent, name.replace("conv", "bn"), None) if behind else None
            setattr(parent, name, split(conv, RECIPES[recipe], _scale(norm)))
    return student.eval()


def split(conv: nn.Conv2d, recipe: Decomposition, scale: Tensor | None = None) -> nn.Module:
    """Give what a convolution becomes.

    Args:
        conv: dense, k x k, without a bias.
        recipe: how.
        scale: what each output channel is multiplied with behind it; None for nothing.
    """
    kernel = conv.weight.detach().double()
    outputs = kernel.shape[0]
    scale = torch.ones(outputs, dtype=torch.float64) if scale is None else scale
    weigh = torch.where(scale == 0, torch.ones_like(scale), scale).reshape(-1, 1, 1, 1)
    chains = _FORMS[recipe.form](conv, kernel * weigh, recipe)
    for chain in chains:
        chain[-1].weight.data /= weigh.float()
    made = [nn.Sequential(*chain) for chain in chains]
    return made[0] if len(made) == 1 else Branches(made)


def _is_wanted(conv: nn.Conv2d, pointwise: bool) -> bool:
    dense = conv.groups == 1 and conv.in_channels > 1
    return dense and (conv.kernel_size[0] == 1) == pointwise


def _scale(norm: nn.Module | None) -> Tensor | None:
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
        return None
    gain: Tensor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return gain


def _spatial(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    stride, pad = conv.stride[0], _padding(conv)[0]
    # The first runs at every column of the input, the second at those of the output.
    rank = _rank(n * c * k * k, recipe, k * (c * stride + n))
    u, s, v = torch.linalg.svd(
        kernel.permute(1, 2, 0, 3).reshape(c * k, n * k), full_matrices=False
    )
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    first = (u[:, :rank] * root).T.reshape(rank, c, k, 1)
    second = (root[:, None] * v[:rank]).reshape(rank, n, 1, k).transpose(0, 1)
    return [
        [
            _conv(first, (stride, 1), (pad, 0)),
            _conv(second, (1, stride), (0, pad)),
        ]
    ]


def _channel(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    rank = _rank(n * c * k * k, recipe, c * k * k + n)
    u, s, v = torch.linalg.svd(kernel.reshape(n, -1), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    first = (root[:, None] * v[:rank]).reshape(rank, c, k, k)
    return [
        [
            _conv(first, conv.stride, _padding(conv)),
            _conv((u[:, :rank] * root).reshape(n, rank, 1, 1)),
        ]
    ]


def _first(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    area = conv.stride[0] * conv.stride[1]
    rank = _rank(n * c * k * k, recipe, c * area + n * k * k)
    u, s, v = torch.linalg.svd(kernel.transpose(0, 1).reshape(c, -1), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    second = (root[:, None] * v[:rank]).reshape(rank, n, k, k).transpose(0, 1)
    return [
        [
            _conv((u[:, :rank] * root).T.reshape(rank, c, 1, 1)),
            _conv(second, conv.stride, _padding(conv)),
        ]
    ]


def _tucker(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    area = conv.stride[0] * conv.stride[1]
    budget = n * c * k * k / recipe.divisor
    # Of a part a of both widths: a^2 n c k^2 + a (c^2 area + n^2) is what it costs.
    square, linear = n * c * k * k, c * c * area + n * n
    part = (-linear + (linear * linear + 4 * square * budget) ** 0.5) / (2 * square)
    inner, outer = max(1, int(part * c)), max(1, int(part * n))
    out = torch.linalg.svd(kernel.reshape(n, -1), full_matrices=False)[0][:, :outer]
    into = torch.linalg.svd(kernel.transpose(0, 1).reshape(c, -1), full_matrices=False)[0]
    into = into[:, :inner]
    core = torch.einsum("ncyx,no,ci->oiyx", kernel, out, into)
    return [
        [
            _conv(into.T.reshape(*into.T.shape, 1, 1)),
            _conv(core, conv.stride, _padding(conv)),
            _conv(out.reshape(*out.shape, 1, 1)),
        ]
    ]


def _decouple(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    u, s, v = torch.linalg.svd(kernel.transpose(0, 1).reshape(c, n, -1), full_matrices=False)
    terms = recipe.terms
    root = s[:, :terms].sqrt()
    depth = root[..., None] * v[:, :terms]  # inputs x terms x taps
    point = (u[..., :terms] * root[:, None]).permute(1, 0, 2)  # outputs x inputs x terms
    if not recipe.branches:
        first = depth.reshape(c * terms, 1, k, k)
        return [
            [
                _conv(first, conv.stride, _padding(conv), groups=c),
                _conv(point.reshape(n, c * terms, 1, 1)),
            ]
        ]
    firsts = [depth[:, t].reshape(c, 1, k, k) for t in range(terms)]
    seconds = [point[..., t].reshape(n, c, 1, 1) for t in range(terms)]
    return [
        [_conv(one, conv.stride, _padding(conv), groups=c), _conv(other)]
        for one, other in zip(firsts, seconds, strict=True)
    ]


def _reverse(conv: nn.Conv2d, kernel: Tensor, recipe: Decomposition) -> list[Chain]:
    n, c, k, _ = kernel.shape
    u, s, v = torch.linalg.svd(kernel.reshape(n, c, -1), full_matrices=False)
    root = s[:, :1].sqrt()
    return [
        [
            _conv((u[..., 0] * root).reshape(n, c, 1, 1)),
            _conv((v[:, 0] * root).reshape(n, 1, k, k), conv.stride, _padding(conv), groups=n),
        ]
    ]


_FORMS: dict[str, Callable[[nn.Conv2d, Tensor, Decomposition], list[Chain]]] = {
    "spatial": _spatial,
    "channel": _channel,
    "first": _first,
    "tucker": _tucker,
    "decouple": _decouple,
    "reverse": _reverse,
}


def _rank(products: int, recipe: Decomposition, each: int) -> int:
    """Give the rank at which a layer keeps its part of the multiply-adds.

    Args:
        products: multiply-adds of the layer, per position of its output.
        recipe: what to divide them by.
        each: what a rank of one costs.
    """
    return max(1, products // (recipe.divisor * each))


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    assert not isinstance(conv.padding, str)  # none of the reference networks has it by name
    return conv.padding


def _conv(
    weight: Tensor,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    groups: int = 1,
) -> nn.Conv2d:
    n, inputs, height, width = weight.shape
    conv = nn.Conv2d(
        inputs * groups,
        n,
        (height, width),
        stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        groups=groups,
        bias=False,
    )
    conv.weight.data = weight.float().contiguous()
    return conv
