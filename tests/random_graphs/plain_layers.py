"""Layers without linear nodes: functions of elements, normalisations, and what moves elements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.random_graphs.builder import Builder
from tests.random_graphs.channels import Layout, Tensor

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
    if b.chance(0.06) and b.dtype == np.float32:
        slopes = b.vector(b.rng.uniform(0.1, 0.4, len(x.ids)), x.kept, b.spread(x))
        return x.named(b.node("PRelu", [x.name, slopes]))
    op = b.pick(*_POINTWISE)
    return x.named(b.node(op if b.dtype == np.float32 else "Relu", [x.name]))


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


def joined(b: Builder, parts: list[Tensor]) -> Tensor:
    """Tensors of the same positions behind each other, along their channels."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    kept = [part.kept + start for part, start in zip(parts, starts, strict=False)]
    axis = parts[0].axis - (b.pick(0, 2 + len(parts[0].extents)))
    name = b.node("Concat", [part.name for part in parts], axis=axis)
    ids = np.concatenate([part.ids for part in parts])
    pieces = int(any(part.pieces for part in parts))
    return replace(parts[0], name=name, ids=ids, kept=np.concatenate(kept), pieces=pieces)


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


def pad(b: Builder, x: Tensor) -> Tensor:
    """Zeros around the positions."""
    rank = len(x.extents)
    more = [b.whole(0, 1) for _ in range(2 * rank)]
    pads = b.indices(0, 0, *more[:rank], 0, 0, *more[rank:])
    extents = tuple(e + more[i] + more[rank + i] for i, e in enumerate(x.extents))
    return x.named(b.node("Pad", [x.name, pads]), extents)


def resize(b: Builder, x: Tensor) -> Tensor:
    """Each position twice."""
    if np.prod(x.extents) > 16 or b.dtype != np.float32:
        return x
    scales = b.constant([1, 1, *(2 for _ in x.extents)], dtype=np.float32)
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    name = b.node("Resize", [x.name, "", scales], nearest_mode="floor", **modes)
    return x.named(name, tuple(2 * extent for extent in x.extents))
