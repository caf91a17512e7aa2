"""The table of layers: each takes a tensor and gives the next, for teacher and student alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tests.random_graphs.builder import Builder
from tests.random_graphs.channels import Layout, Tensor
from tests.random_graphs.linear_nodes import (
    Space,
    conv,
    dense,
    draw_kernel,
    draw_transposed_kernel,
    draw_weights,
)

Layer = Callable[[Builder, Tensor], Tensor]

_POINTWISE = (
    "Relu",
    "Relu",
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "Elu",
    "HardSwish",
    "Softplus",
)


def activation(b: Builder, x: Tensor) -> Tensor:
    """A function of each element: channels stay."""
    if b.chance(0.15):
        low, high = b.constant(0.0), b.constant(2.0)
        return x.named(b.node("Clip", [x.name, low, high]))
    op = b.pick(*_POINTWISE)
    return x.named(b.node(op if b.dtype == np.float32 else "Relu", [x.name]))


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


def batch_normalization(b: Builder, x: Tensor) -> Tensor:
    """A scale and a shift per channel, from four vectors."""
    width = len(x.ids)
    values = [b.rng.uniform(0.5, 1.5, width), b.rng.standard_normal(width) * 0.2]
    values += [b.rng.standard_normal(width) * 0.2, b.rng.uniform(0.5, 1.5, width)]
    inputs = [x.name, *(b.vector(v, x.kept) for v in values)]
    return x.named(b.node("BatchNormalization", inputs, epsilon=1e-3))


def scale(b: Builder, x: Tensor) -> Tensor:
    """A constant factor or summand per channel."""
    op, values = b.pick("Mul", "Add", "Sub", "Div"), b.rng.uniform(0.5, 1.5, len(x.ids))
    return x.named(b.node(op, [x.name, b.vector(values, x.kept, b.spread(x))]))


def instance_normalization(b: Builder, x: Tensor) -> Tensor:
    """Each channel of each sample normalised over positions."""
    values = b.rng.uniform(0.5, 1.5, len(x.ids)), b.rng.standard_normal(len(x.ids)) * 0.2
    inputs = [x.name, *(b.vector(v, x.kept) for v in values)]
    return x.named(b.node("InstanceNormalization", inputs, epsilon=1e-2))


def group_normalization(b: Builder, x: Tensor) -> Tensor:
    """Groups of channels normalised together, as PyTorch exports it."""
    if not x.can_be_cut(2):
        return x
    b.equal(np.split(x.ids, 2))
    folded = b.node("Reshape", [x.name, b.indices(0, 2, -1)])
    ones, zeros = b.constant(np.ones(2)), b.constant(np.zeros(2))
    normal = b.node("InstanceNormalization", [folded, ones, zeros], epsilon=1e-2)
    y = x.named(b.node("Reshape", [normal, b.indices(0, x.width, *x.extents)]))
    return scale(b, y)


def layer_normalization(b: Builder, x: Tensor) -> Tensor:
    """All channels of a position normalised together."""
    values = b.rng.uniform(0.5, 1.5, len(x.ids)), b.rng.standard_normal(len(x.ids)) * 0.2
    inputs = [x.name, *(b.vector(v, x.kept) for v in values)]
    return x.named(b.node("LayerNormalization", inputs, axis=-1, epsilon=1e-2))


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
    """One or two linear nodes beside a shortcut, which may be broadcast."""
    y = x
    if b.chance(0.6):
        y = activation(b, linear_to(b, x, b.fresh(b.whole(2, 6) * 2), keep_extents=True))
    y = linear_to(b, y, (x.ids, x.kept), keep_extents=True)
    if x.layout is Layout.SPATIAL and b.chance(0.2):
        y = replace(y, name=b.node("GlobalAveragePool", [y.name]))
    operands = [x.name, y.name]
    y = x.named(b.node("Add", operands[:: b.pick(1, -1)]))
    return activation(b, y) if b.chance(0.5) else y


def concat(b: Builder, x: Tensor) -> Tensor:
    """Channels of two branches, or of one and of its input, behind each other."""
    one = linear_to(b, x, b.fresh(b.whole(2, 4) * 2), keep_extents=True)
    other = x if b.chance(0.4) else linear_to(b, x, b.fresh(2 * b.whole(2, 4)), keep_extents=True)
    y = joined(b, [one, other])
    return activation(b, y) if b.chance(0.6) else y


def joined(b: Builder, parts: list[Tensor]) -> Tensor:
    """Tensors of the same positions behind each other, along their channels."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    kept = [part.kept + start for part, start in zip(parts, starts, strict=False)]
    axis = parts[0].axis - (b.pick(0, 2 + len(parts[0].extents)))
    name = b.node("Concat", [part.name for part in parts], axis=axis)
    ids = np.concatenate([part.ids for part in parts])
    pieces = int(any(part.pieces for part in parts))
    return replace(parts[0], name=name, ids=ids, kept=np.concatenate(kept), pieces=pieces)


def split(b: Builder, x: Tensor) -> Tensor:
    """Channels in two parts, one of which goes through a linear node, then together again."""
    if len(x.ids) < 4 or not x.can_be_cut(2):
        return x
    at = b.pick(2, len(x.ids) // 2)
    one, other = cut(b, x, len(x.ids) // 2 if x.pieces else at)
    one = linear_to(b, one, b.fresh(b.whole(2, 4) * 2), keep_extents=True)
    parts = [one, other]
    return activation(b, joined(b, parts[:: b.pick(1, -1)]))


def slice_(b: Builder, x: Tensor) -> Tensor:
    """The first or the last channels alone."""
    can = len(x.ids) >= 4 and x.can_be_cut(2)
    return cut(b, x, len(x.ids) // 2)[b.whole(0, 1)] if can else x


def cut(b: Builder, x: Tensor, at: int) -> list[Tensor]:
    """Channels in two parts, by Split or by two Slices."""
    parts = [x.ids[:at], x.ids[at:]]
    if x.pieces:
        b.equal(parts)
    else:
        for part in parts:
            b.equal([part])
    counts = [int((x.kept < at).sum()), int((x.kept >= at).sum())]
    if b.chance(0.5):
        names = [b.name("split"), b.name("split")]
        b.split(x.name, b.indices(*counts), names, x.axis)
    else:
        ends = (0, counts[0], sum(counts))
        axis = b.indices(x.axis)
        names = [
            b.node("Slice", [x.name, b.indices(ends[i]), b.indices(ends[i + 1]), axis])
            for i in (0, 1)
        ]
    kept = x.kept[x.kept < at], x.kept[x.kept >= at] - at
    return [
        replace(x, name=names[i], ids=parts[i], kept=kept[i], pieces=min(x.pieces, 1))
        for i in (0, 1)
    ]


def shuffle(b: Builder, x: Tensor) -> Tensor:
    """The channel shuffle: two groups between each other."""
    if len(x.ids) % 4 or x.pieces:
        return x
    half = len(x.ids) // 2
    b.equal(np.split(x.ids, 4))
    rest = range(3, 3 + len(x.extents))
    apart = b.node("Reshape", [x.name, b.indices(0, 2, x.width // 2, *x.extents)])
    moved = b.node("Transpose", [apart], perm=[0, 2, 1, *rest])
    name = b.node("Reshape", [moved, b.indices(0, x.width, *x.extents)])
    kept = (x.kept % half) * 2 + x.kept // half
    order = kept.reshape(2, -1).T.reshape(-1)
    return replace(x, name=name, ids=x.ids.reshape(2, -1).T.reshape(-1), kept=order, pieces=2)


def pool(b: Builder, x: Tensor) -> Tensor:
    """A window over positions."""
    if min(x.extents) < 2:
        return activation(b, x)
    op, rank = b.pick("MaxPool", "AveragePool"), len(x.extents)
    stride = b.whole(1, 2)
    extents = tuple((extent - 2) // stride + 1 for extent in x.extents)
    name = b.node(op, [x.name], kernel_shape=[2] * rank, strides=[stride] * rank)
    return x.named(name, extents)


def to_vector(b: Builder, x: Tensor) -> Tensor:
    """Positions averaged, or laid out beside each other."""
    if x.layout is Layout.SPATIAL and b.chance(0.5):
        mean = b.node(b.pick("GlobalAveragePool", "GlobalMaxPool"), [x.name])
        return replace(x, name=b.flatten(mean), layout=Layout.VECTOR, extents=())
    if x.layout is Layout.SPATIAL and len(x.ids) * np.prod(x.extents) <= 160:
        count = int(np.prod(x.extents))
        kept = (x.kept[:, np.newaxis] * count + np.arange(count)).reshape(-1)
        ids = np.repeat(x.ids, count)
        return Tensor(b.flatten(x.name), Layout.VECTOR, ids, kept, pieces=min(x.pieces, 1))
    axis = 0 if x.layout is Layout.TIME_FIRST else 1
    axes = tuple(range(2, 2 + len(x.extents))) if x.layout is Layout.SPATIAL else (axis,)
    return replace(x, name=b.mean(x.name, axes), layout=Layout.VECTOR, extents=())


def to_tokens(b: Builder, x: Tensor) -> Tensor:
    """Positions become tokens."""
    flat = b.node("Reshape", [x.name, b.indices(0, x.width, -1)])
    name = b.node("Transpose", [flat], perm=[0, 2, 1])
    return replace(x, name=name, layout=Layout.TOKENS, extents=(int(np.prod(x.extents)),))


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
    """One weight at two scales, as the heads of a feature pyramid."""
    out, kernel = b.fresh(2 * b.whole(2, 4)), draw_kernel(b, x, keep_extents=True, most=2)
    weights = draw_weights(b, 1, len(out[0]), len(x.ids), kernel.shape)
    small = x.named(b.node("GlobalAveragePool", [x.name]), (1,) * len(x.extents))
    one = conv(b, x, out, kernel, weights=weights)
    same = replace(kernel, extents=small.extents)
    other = conv(b, small, out, same, weights=weights)
    return activation(b, one.named(b.node("Add", [one.name, other.name])))


SPATIAL, VECTOR, TOKENS, TIME = Layout.SPATIAL, Layout.VECTOR, Layout.TOKENS, Layout.TIME_FIRST

LAYERS: tuple[tuple[Layer, int, tuple[Layout, ...]], ...] = (
    (linear, 8, (SPATIAL, VECTOR, TOKENS, TIME)),
    (grouped, 2, (SPATIAL,)),
    (depthwise, 2, (SPATIAL,)),
    (transposed, 2, (SPATIAL,)),
    (batch_normalization, 1, (SPATIAL,)),
    (scale, 1, (SPATIAL, VECTOR, TOKENS, TIME)),
    (instance_normalization, 1, (SPATIAL,)),
    (group_normalization, 1, (SPATIAL,)),
    (layer_normalization, 2, (VECTOR, TOKENS, TIME)),
    (squeeze_and_excitation, 2, (SPATIAL,)),
    (gate, 1, (SPATIAL, VECTOR, TOKENS, TIME)),
    (residual, 4, (SPATIAL, VECTOR, TOKENS, TIME)),
    (concat, 2, (SPATIAL, VECTOR, TOKENS, TIME)),
    (split, 2, (SPATIAL, VECTOR, TOKENS, TIME)),
    (slice_, 1, (SPATIAL, VECTOR, TOKENS, TIME)),
    (shuffle, 2, (SPATIAL,)),
    (pool, 2, (SPATIAL,)),
    (shared, 1, (SPATIAL,)),
    (to_tokens, 1, (SPATIAL,)),
    (to_vector, 1, (SPATIAL, TOKENS)),
    (attention, 2, (TOKENS,)),
)
"""Each layer, how often it is drawn, and on which layouts."""
