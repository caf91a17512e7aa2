"""Convolutions, Gemm and MatMul: drawn weights, of which a student gets a slice, or factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tests.helpers import Array
from tests.random_graphs.builder import Builder
from tests.random_graphs.channels import Ints, Layout, Tensor

Space = tuple[Ints, Ints]
"""Ids of output channels, and the positions that are kept."""


@dataclass(frozen=True)
class Weights:
    """Weights of the teacher, and where they are stored once they are.

    Attributes:
        matrix: (groups, n, channels, kernel...).
        bias: (groups * n,); None for none.
        stored: names of the initializers of a node that was written, for others to share.
    """

    matrix: Array
    bias: Array | None
    stored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kernel:
    """How a convolution moves over positions.

    Attributes:
        shape: extents of the kernel.
        attributes: of the node, without ``group``.
        extents: of the output.
        transposed: whether it is a ConvTranspose.
    """

    shape: tuple[int, ...]
    attributes: dict[str, Any]
    extents: tuple[int, ...]
    transposed: bool = False


def draw_weights(
    b: Builder, groups: int, n: int, channels: int, kernel: tuple[int, ...] = ()
) -> Weights:
    """Draw weights that keep the variance of activations; a few have equal or dead rows."""
    shape = (groups, n, channels, *kernel)
    matrix = b.rng.standard_normal(shape) * math.sqrt(2 / (channels * math.prod(kernel)))
    u, s, vt = np.linalg.svd(matrix.reshape(groups, n, -1), full_matrices=False)
    s *= np.exp(-b.decay * np.arange(s.shape[1]) / s.shape[1])
    matrix = ((u * s[:, np.newaxis]) @ vt).reshape(shape) * (1.5 if b.decay else 1)
    bias = 0.3 * b.rng.standard_normal(groups * n) if b.chance(0.7) else None
    kind, rows = b.rng.random(), b.rng.integers(n, size=2)
    if kind < 0.02:
        matrix = np.sign(matrix) * np.abs(matrix).mean()
    elif kind < 0.04:
        matrix[:, rows[0]] = matrix[:, rows[1]]
    elif kind < 0.06:
        matrix[:, rows[0]] = 0
    return Weights(matrix, bias)


def draw_kernel(b: Builder, x: Tensor, keep_extents: bool = False, most: int = 3) -> Kernel:
    """Draw the kernel and all attributes of a Conv."""
    rank = len(x.extents)
    shape = tuple(b.whole(1, min(most, extent)) for extent in x.extents)
    dilations = [b.whole(1, 2) if b.chance(0.25) else 1 for _ in range(rank)]
    strides = [1 if keep_extents or b.chance(0.7) else 2 for _ in range(rank)]
    auto_pad = b.pick("SAME_UPPER", "SAME_LOWER", "VALID") if b.chance(0.2) else ""
    if keep_extents and auto_pad == "VALID":
        auto_pad = ""
    if auto_pad:
        dilations = [1] * rank
    begin, end = [], []
    for axis, (extent, size) in enumerate(zip(x.extents, shape, strict=True)):
        reach = dilations[axis] * (size - 1)
        first, last = b.whole(0, reach), b.whole(0, reach)
        if keep_extents or extent + first + last - reach < 2:
            last = reach - first
        begin.append(first)
        end.append(last)
    if auto_pad == "VALID":
        begin = end = [0] * rank
    extents = tuple(
        -(-extent // strides[i])
        if auto_pad.startswith("SAME")
        else (extent + begin[i] + end[i] - dilations[i] * (shape[i] - 1) - 1) // strides[i] + 1
        for i, extent in enumerate(x.extents)
    )
    attributes: dict[str, Any] = {"strides": strides, "kernel_shape": list(shape)}
    if auto_pad:
        attributes["auto_pad"] = auto_pad
    else:
        attributes |= {"pads": begin + end, "dilations": dilations}
    return Kernel(shape, attributes, extents)


def draw_transposed_kernel(b: Builder, x: Tensor) -> Kernel:
    """Draw the kernel and all attributes of a ConvTranspose."""
    shape = tuple(b.whole(1, 3) for _ in x.extents)
    strides = [b.whole(1, 2) if extent < 6 else 1 for extent in x.extents]
    dilations = [b.whole(1, 2) if b.chance(0.2) else 1 for _ in shape]
    more = [b.whole(0, stride - 1) for stride in strides]
    reach = [d * (k - 1) for d, k in zip(dilations, shape, strict=True)]
    pads = [b.whole(0, min(1, r)) for r in reach * 2]
    rank = len(shape)
    extents = tuple(
        strides[i] * (extent - 1) + more[i] + reach[i] + 1 - pads[i] - pads[rank + i]
        for i, extent in enumerate(x.extents)
    )
    if min(extents) < 1:
        pads, extents = (
            [0] * 2 * rank,
            tuple(strides[i] * (e - 1) + more[i] + reach[i] + 1 for i, e in enumerate(x.extents)),
        )
    attributes = {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "output_padding": more,
        "kernel_shape": list(shape),
    }
    return Kernel(shape, attributes, extents, transposed=True)


def conv(
    b: Builder,
    x: Tensor,
    out: Space,
    kernel: Kernel,
    groups: int = 1,
    weights: Weights | None = None,
    output: str = "",
) -> Tensor:
    """Write a convolution to new channels, or with weights that another one has too."""
    ids, kept = out
    channels, n = len(x.ids) // groups, len(ids) // groups
    alone = weights is None
    weights = weights or draw_weights(b, groups, n, channels, kernel.shape)
    if 1 < groups < len(x.ids):
        b.equal(np.split(x.ids, groups))
        b.equal(np.split(ids, groups))
    stored = f"{output}/weight", f"{output}/bias"
    if not output:
        output, stored = b.name("conv"), (b.name("weight"), b.name("bias"))
        b.linear_count += 1
    matrix = sliced(weights.matrix, x.kept, kept)
    attributes = {**kernel.attributes, "group": len(matrix)}
    source, shared = x.name, bool(weights.stored)
    rank = len(kernel.shape)
    if b.is_student and not shared:
        matrix = changed(b, matrix)
        dense = len(matrix) == 1 and not kernel.transposed
        if alone and dense and b.change.random() < b.recipe.decompose:
            first, matrix, pointwise_first = factors(b, matrix)
            ones = first if pointwise_first else matrix
            ones = ones.reshape(*ones.shape[:3], *[1] * rank)
            point = {"kernel_shape": [1] * rank}
            if pointwise_first:
                first, own = ones, point
            else:
                matrix, own, attributes = ones, attributes, {**point, "group": 1}
            name = b.constant(_stored(first, False), f"{output}/inner_weight")
            source = b.node("Conv", [source, name], f"{output}/inner", **own)
    if not shared:
        weights.stored.append(b.constant(_stored(matrix, kernel.transposed), stored[0]))
        if weights.bias is not None:
            weights.stored.append(b.constant(weights.bias[kept], stored[1]))
    op = "ConvTranspose" if kernel.transposed else "Conv"
    b.node(op, [source, *weights.stored], output, **attributes)
    b.truth[output], b.axes[output] = kept, 1
    return replace(x, name=output, ids=ids, kept=kept, extents=kernel.extents, pieces=0)


def dense(b: Builder, x: Tensor, out: Space, op: str = "") -> Tensor:
    """Write a Gemm, or a MatMul with or without the Add of its bias."""
    ids, kept = out
    weights = draw_weights(b, 1, len(ids), len(x.ids))
    op = op or (b.pick("Gemm", "MatMul") if x.layout is Layout.VECTOR else "MatMul")
    gemm = {}
    transposed = op == "Gemm" and b.chance(0.6)
    if op == "Gemm" and b.chance(0.2):
        gemm = {"alpha": float(b.pick(0.5, 2.0)), "beta": float(b.pick(0.5, 1.0))}
    first_addend = b.whole(0, 1)
    output, stored = b.name(op), (b.name("weight"), b.name("bias"))
    matrix = sliced(weights.matrix, x.kept, kept)
    source = x.name
    if b.is_student:
        matrix = changed(b, matrix)
        if b.change.random() < b.recipe.decompose:
            first, matrix, _ = factors(b, matrix)
            name = b.constant(first[0].T, f"{output}/inner_weight")
            source = b.node(op, [source, name], f"{output}/inner")
    weight = b.constant(matrix[0] if transposed else matrix[0].T, stored[0])
    bias = None if weights.bias is None else b.constant(weights.bias[kept], stored[1])
    rows = x.layout is Layout.TOKENS and (len(output) + 2 * b.linear_count + b.is_student) % 3 == 0
    if rows:
        # As simplifiers write it; here nothing is drawn, so other layers stay as they were.
        flat = b.constant([-1, matrix.shape[2]], f"{output}/flat", np.int64)
        source = b.node("Reshape", [source, flat], f"{output}/rows")
        b.node("Gemm", [source, weight] + ([bias] if bias else []), output, transB=0)
    elif op == "Gemm":
        inputs = [source, weight] + ([bias] if bias else [])
        b.node(op, inputs, output, transB=int(transposed), **gemm)
    elif bias is None:
        b.node(op, [source, weight], output)
    else:
        product = b.node(op, [source, weight], f"{output}/product")
        addends = [product, bias]
        b.node("Add", addends[:: 1 if first_addend else -1], output)
    b.truth[output], b.axes[output] = kept, -1
    b.linear_count += 1
    result = output
    if rows:
        back = b.constant([-1, *x.extents, len(kept)], f"{output}/back", np.int64)
        result = b.node("Reshape", [output, back], f"{output}/tokens")
    return replace(x, name=result, ids=ids, kept=kept, pieces=0)


def sliced(matrix: Array, inputs: Ints, outputs: Ints) -> Array:
    """Give the rows and columns of some channels, group by group.

    Args:
        matrix: (groups, n, channels, kernel...).
        inputs: positions that are kept, group by group.
        outputs: likewise.
    """
    groups, n, channels = matrix.shape[:3]
    if channels == 1 and groups > 1:
        return matrix[inputs]
    rows, columns = outputs.reshape(groups, -1) % n, inputs.reshape(groups, -1) % channels
    parts = [matrix[g][rows[g]][:, columns[g]] for g in range(groups)]
    return np.stack(parts)


def changed(b: Builder, matrix: Array) -> Array:
    """Do to a slice of weights what the recipe says."""
    recipe, shape = b.recipe, matrix.shape
    if recipe.low_rank and shape[0] == 1:
        u, s, vt = np.linalg.svd(matrix.reshape(shape[1], -1), full_matrices=False)
        rank = (len(s) + 1) // 2
        matrix = ((u[:, :rank] * s[:rank]) @ vt[:rank]).reshape(shape)
    if recipe.noise:
        matrix = matrix + recipe.noise * matrix.std() * b.change.standard_normal(shape)
    if recipe.zeros:
        matrix = np.where(np.abs(matrix) < np.quantile(np.abs(matrix), recipe.zeros), 0, matrix)
    return matrix


def factors(b: Builder, matrix: Array) -> tuple[Array, Array, bool]:
    """Divide (1, n, channels, kernel...) into two factors of lower rank.

    Returns:
        The first factor, the second, and whether it is the first that has no kernel.
    """
    _, n, channels, *kernel = matrix.shape
    pointwise_first = bool(kernel) and b.change.random() < 0.3
    if pointwise_first:
        u, s, vt = np.linalg.svd(np.moveaxis(matrix[0], 1, 0).reshape(channels, -1), False)
    else:
        u, s, vt = np.linalg.svd(matrix[0].reshape(n, -1), full_matrices=False)
    rank = max(1, round(len(s) * b.change.uniform(0.4, 0.8)))
    root = np.sqrt(s[:rank])
    u, vt = u[:, :rank] * root, root[:, np.newaxis] * vt[:rank]
    if pointwise_first:
        second = np.moveaxis(vt.reshape(rank, n, *kernel), 1, 0)
        return u.T[np.newaxis], second[np.newaxis], True
    return vt.reshape(1, rank, channels, *kernel), u[np.newaxis], False


def _stored(matrix: Array, transposed: bool) -> Array:
    """Give (groups, n, channels, kernel...) as Conv or ConvTranspose stores it."""
    matrix = np.swapaxes(matrix, 1, 2) if transposed else matrix
    return matrix.reshape(-1, *matrix.shape[2:])
