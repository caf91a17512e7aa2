"""The table of layers: each takes a tensor and gives the next, for teacher and student alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tests.random_graphs.builder import Builder
from tests.random_graphs.channels import Layout, Tensor
from tests.random_graphs.linear_nodes import (
    Kernel,
    Space,
    Weights,
    conv,
    dense,
    draw_kernel,
    draw_transposed_kernel,
    draw_weights,
)
from tests.random_graphs.plain_layers import (
    activation,
    batch_normalization,
    cut,
    group_normalization,
    instance_normalization,
    joined,
    layer_normalization,
    pad,
    pool,
    resize,
    scale,
    shuffle,
    slice_,
    to_tokens,
    to_vector,
)

Layer = Callable[[Builder, Tensor], Tensor]


def linear(b: Builder, x: Tensor) -> Tensor:
    """New channels, from all or from groups of the old ones; then mostly an activation."""
    y = linear_to(b, x, b.fresh(b.whole(2, 8) * 2))
    return activation(b, y) if b.chance(0.8) else y


def linear_to(b: Builder, x: Tensor, out: Space, keep_extents: bool = False) -> Tensor:
    """A linear node to given channels, mostly in front of a normalisation."""
    if x.layout is not Layout.SPATIAL:
        return dense(b, x, out)
    y = conv(b, x, out, draw_kernel(b, x, keep_extents))
    return batch_normalization(b, y) if b.chance(0.3) else y


def grouped(b: Builder, x: Tensor) -> Tensor:
    """A convolution whose groups keep equally many channels."""
    groups = b.pick(2, 2, 4)
    if not x.can_be_cut(groups):
        return linear(b, x)
    out = b.fresh(groups * b.whole(2, 4))
    return activation(b, conv(b, x, out, draw_kernel(b, x), groups))


def depthwise(b: Builder, x: Tensor) -> Tensor:
    """A kernel per channel: each channel goes on as one or two."""
    if len(x.ids) < 2:
        return linear(b, x)
    times = 2 if b.chance(0.2) and len(x.ids) <= 8 else 1
    kept = (x.kept[:, np.newaxis] * times + np.arange(times)).reshape(-1)
    out = np.repeat(x.ids, times), kept
    return activation(b, conv(b, x, out, draw_kernel(b, x), len(x.ids)))


def transposed(b: Builder, x: Tensor) -> Tensor:
    """A ConvTranspose, dense or grouped."""
    groups = 2 if x.can_be_cut(2) and b.chance(0.3) else 1
    out = b.fresh(2 * b.whole(2, 5))
    return activation(b, conv(b, x, out, draw_transposed_kernel(b, x), groups))


def squeeze_and_excitation(b: Builder, x: Tensor) -> Tensor:
    """A gate per channel, from the mean over positions."""
    mean = replace(x, name=b.node("GlobalAveragePool", [x.name]), extents=(1,) * len(x.extents))
    small = conv(b, mean, b.fresh(b.whole(2, 6)), draw_kernel(b, mean, True))
    small = small.named(b.node("Relu", [small.name]))
    gate = conv(b, small, (x.ids, x.kept), draw_kernel(b, small, True))
    factor = b.node(b.pick("Sigmoid", "HardSigmoid"), [gate.name])
    return x.named(b.node("Mul", [x.name, factor]))


def gate(b: Builder, x: Tensor) -> Tensor:
    """A gate per element, or one for all channels of a position."""
    out = (x.ids, x.kept) if b.chance(0.5) else b.fresh(1)
    y = linear_to(b, x, out, keep_extents=True)
    return x.named(b.node("Mul", [x.name, b.node("Sigmoid", [y.name])]))


def residual(b: Builder, x: Tensor) -> Tensor:
    """One or two linear nodes beside a shortcut, which may be broadcast, or none of it."""
    state, single = b.state(), b.chance(0.4)
    y = x
    if not single:
        y = activation(b, linear_to(b, x, b.fresh(b.whole(2, 6) * 2), keep_extents=True))
    y = linear_to(b, y, (x.ids, x.kept), keep_extents=True)
    last = next(reversed(b.truth))
    if x.layout is Layout.SPATIAL and b.chance(0.2):
        y = replace(y, name=b.node("GlobalAveragePool", [y.name]))
    operands = [x.name, y.name]
    y = x.named(b.node("Add", operands[:: b.pick(1, -1)]))
    if single:  # a linear branch beside the identity: their sum is linear as well
        add_sum(b, [last], y)
    activated = b.chance(0.5)
    if b.is_student and b.change.random() < b.recipe.drop:
        b.forget(state)
        y = x
    return activation(b, y) if activated else y


def add_sum(b: Builder, parts: list[str], total: Tensor) -> None:
    """Note that a sum of linear nodes and of their input may be taken for one linear node."""
    b.sums.update(dict.fromkeys(parts, total.name))
    b.truth_of_sums[total.name] = total.kept
    b.axes[total.name] = 1 if total.layout is Layout.SPATIAL else -1


def concat(b: Builder, x: Tensor) -> Tensor:
    """Channels of two branches, or of one and of its input, behind each other."""
    one = linear_to(b, x, b.fresh(b.whole(2, 4) * 2), keep_extents=True)
    other = x if b.chance(0.4) else linear_to(b, x, b.fresh(2 * b.whole(2, 4)), keep_extents=True)
    y = joined(b, [one, other])
    return activation(b, y) if b.chance(0.6) else y


def split(b: Builder, x: Tensor) -> Tensor:
    """Channels in two parts, one of which goes through a linear node, then together again."""
    if len(x.ids) < 4 or not x.can_be_cut(2):
        return x
    at = b.pick(2, len(x.ids) // 2)
    one, other = cut(b, x, len(x.ids) // 2 if x.pieces else at)
    one = linear_to(b, one, b.fresh(b.whole(2, 4) * 2), keep_extents=True)
    parts = [one, other]
    return activation(b, joined(b, parts[:: b.pick(1, -1)]))


def attention(b: Builder, x: Tensor) -> Tensor:
    """One head: tokens mixed by products of two activations."""
    query = dense(b, x, b.fresh(b.whole(2, 6)))
    key = dense(b, x, (query.ids, query.kept))
    value = dense(b, x, b.fresh(b.whole(2, 6)))
    turned = b.node("Transpose", [key.name], perm=[0, 2, 1])
    scores = b.node("Mul", [b.node("MatMul", [query.name, turned]), b.constant(0.3)])
    mixed = b.node("MatMul", [b.node("Softmax", [scores], axis=-1), value.name])
    return dense(b, value.named(mixed), (x.ids, x.kept))


def shared(b: Builder, x: Tensor) -> Tensor:
    """One weight at two scales, as the heads of a feature pyramid; a student may have two."""
    out, kernel = b.fresh(2 * b.whole(2, 4)), draw_kernel(b, x, keep_extents=True, most=2)
    weights = draw_weights(b, 1, len(out[0]), len(x.ids), kernel.shape)
    small = x.named(b.node("GlobalAveragePool", [x.name]), (1,) * len(x.extents))
    one = conv(b, x, out, kernel, weights=weights)
    if b.is_student and b.change.random() < 0.3:
        weights = Weights(weights.matrix, weights.bias)
    same = replace(kernel, extents=small.extents)
    other = conv(b, small, out, same, weights=weights)
    b.same_weights[other.name] = one.name
    return activation(b, one.named(b.node("Add", [one.name, other.name])))


def branches(b: Builder, x: Tensor) -> Tensor:
    """A sum of linear branches, as RepVGG has them; in a student they may be one convolution."""
    rank, begin = len(x.extents), b.whole(0, 1)
    kernel = Kernel((2,) * rank, {"pads": [begin] * rank + [1 - begin] * rank}, x.extents)
    point = Kernel((1,) * rank, {"kernel_shape": [1] * rank}, x.extents)
    to_itself = b.chance(0.4)
    out = (x.ids, x.kept) if to_itself else b.fresh(2 * b.whole(2, 5))
    drawn = [draw_weights(b, 1, len(out[0]), len(x.ids), k.shape) for k in (kernel, point)]
    factor = b.rng.uniform(0.5, 1, len(out[0]))
    state = b.state()
    parts = [conv(b, x, out, k, weights=w) for k, w in zip((kernel, point), drawn, strict=True)]
    if to_itself:
        scaled = b.node("Mul", [x.name, b.vector(factor, x.kept, b.spread(x))])
        parts.append(x.named(scaled))
    total = b.name("branches")
    if b.is_student and b.change.random() < 0.5:
        b.forget(state)
        matrix = drawn[0].matrix.copy()
        center = matrix[(slice(None),) * 3 + (begin,) * rank]
        center += drawn[1].matrix.reshape(center.shape)
        if to_itself:
            center += np.diag(factor)
        biases = [weights.bias for weights in drawn if weights.bias is not None]
        merged = Weights(matrix, np.sum(biases, axis=0) if biases else None)
        y = conv(b, x, out, kernel, weights=merged, output=total)
    else:
        first = parts[0].name
        if to_itself:
            first = b.node("Add", [first, parts[2].name], f"{total}/first")
        y = replace(parts[1], name=b.node("Add", [first, parts[1].name], total))
        add_sum(b, [part.name for part in parts[:2]], y)
    return activation(b, y)


def channels_last(b: Builder, x: Tensor) -> Tensor:
    """A MatMul per position, between two Transposes."""
    rank = len(x.extents)
    last = b.node("Transpose", [x.name], perm=[0, *range(2, 2 + rank), 1])
    y = replace(x, name=last, layout=Layout.TOKENS)
    if b.chance(0.5):
        y = layer_normalization(b, y)
    y = activation(b, dense(b, y, b.fresh(2 * b.whole(2, 5))))
    first = b.node("Transpose", [y.name], perm=[0, 1 + rank, *range(1, 1 + rank)])
    return replace(y, name=first, layout=Layout.SPATIAL)


SPATIAL, VECTOR, TOKENS, TIME = Layout.SPATIAL, Layout.VECTOR, Layout.TOKENS, Layout.TIME_FIRST
_ANY = (SPATIAL, VECTOR, TOKENS, TIME)

LAYERS: tuple[tuple[Layer, int, tuple[Layout, ...]], ...] = (
    (linear, 6, _ANY),
    (grouped, 3, (SPATIAL,)),
    (depthwise, 3, (SPATIAL,)),
    (transposed, 3, (SPATIAL,)),
    (batch_normalization, 1, (SPATIAL,)),
    (scale, 1, _ANY),
    (instance_normalization, 1, (SPATIAL,)),
    (group_normalization, 1, (SPATIAL,)),
    (layer_normalization, 2, (VECTOR, TOKENS, TIME)),
    (squeeze_and_excitation, 2, (SPATIAL,)),
    (gate, 1, _ANY),
    (residual, 5, _ANY),
    (concat, 2, _ANY),
    (split, 2, _ANY),
    (slice_, 1, _ANY),
    (shuffle, 2, (SPATIAL,)),
    (pool, 2, (SPATIAL,)),
    (pad, 1, (SPATIAL,)),
    (resize, 1, (SPATIAL,)),
    (shared, 1, (SPATIAL,)),
    (branches, 2, (SPATIAL,)),
    (channels_last, 1, (SPATIAL,)),
    (to_tokens, 2, (SPATIAL,)),
    (to_vector, 2, (SPATIAL, TOKENS)),
    (attention, 2, (TOKENS,)),
)
"""Each layer, how often it is drawn, and on which layouts."""
