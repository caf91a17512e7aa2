"""A teacher, its student, samples, and which block and channels are which, all from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from fskd_onnx import FitOptions, RunOptions
from tests.helpers import Array, check
from tests.random_graphs.builder import Builder, Recipe
from tests.random_graphs.channels import Ints, Layout, Tensor
from tests.random_graphs.layers import LAYERS, Layer, linear_to
from tests.random_graphs.names import Names, Scrambled, scrambled
from tests.random_graphs.plain_layers import activation, to_vector

_MOST_LINEAR = 6
_LAYOUTS = {
    Layout.SPATIAL: 0.6,
    Layout.VECTOR: 0.17,
    Layout.TOKENS: 0.18,
    Layout.TIME_FIRST: 0.05,
}


@dataclass(frozen=True)
class Case:
    """What a seed gives.

    Attributes:
        seed: the seed.
        teacher: the teacher, under names of its own.
        student: the student, likewise.
        recipe: how it was made.
        truth: the teacher's position of each channel, by the student's block output as it was
            called before names were scrambled; the teacher's block output was called the same.
        truth_of_sums: the same of sums of linear branches.
        outputs: axis of the channels of each block output of the teacher.
        sums: the sum that a linear branch is a part of, by block output.
        same_weights: another block output of the same weights, by block output.
        options: of the fit.
        count: number of samples.
        batch_axis: which axis of the inputs follows the samples.
    """

    seed: int
    teacher: Scrambled
    student: Scrambled
    recipe: Recipe
    truth: Mapping[str, Ints]
    truth_of_sums: Mapping[str, Ints]
    outputs: Mapping[str, int]
    sums: Mapping[str, str]
    same_weights: Mapping[str, str]
    options: FitOptions
    count: int
    batch_axis: int

    def samples(self, count: int = 0, seed: int = 0) -> dict[str, Array]:
        """Draw values for all inputs, those of the fit where nothing is said."""
        rng = np.random.default_rng([self.seed, 9, seed])
        return {
            value.name: self._values(value, count or self.count, rng)
            for value in self.teacher.model.graph.input
        }

    def _values(self, value: onnx.ValueInfoProto, count: int, rng: np.random.Generator) -> Array:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        shape[self.batch_axis] = count
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return rng.standard_normal(shape).astype(dtype)


def draw(seed: int) -> Case:
    """Draw a case."""
    rng = np.random.default_rng([seed, 0])
    layout = list(_LAYOUTS)[rng.choice(len(_LAYOUTS), p=list(_LAYOUTS.values()))]
    dtype: np.dtype[Any] = np.dtype(np.float32)
    if rng.random() < 0.06:
        dtype = np.dtype(np.float16)
    elif rng.random() < 0.1 and layout in (Layout.VECTOR, Layout.TOKENS):
        dtype = np.dtype(np.float64)
    opset, recipe = int(rng.choice([17, 17, 21])), draw_recipe(rng)
    batch = int(rng.integers(1, 5)) if rng.random() < 0.15 else 0
    teacher = Builder(seed, dtype, opset, recipe, batch=batch)
    program(teacher, layout)
    keep = set(range(teacher.channels.count))
    if recipe.prune:
        keep = teacher.channels.draw_kept(rng, teacher.spaces)
    permutable = frozenset(keep - teacher.channels.ordered()) | (
        frozenset(range(teacher.channels.count)) - teacher.channels.ordered()
    )
    if batch and rng.random() < 0.3:
        batch = int(rng.integers(1, 5))
    student = Builder(seed, dtype, opset, recipe, keep, permutable, batch)
    program(student, layout)
    names = [Names(str(name)) for name in rng.choice(list(Names), 2)]
    if rng.random() < 0.2:
        names = [Names.KEPT, Names.KEPT]
    models = [teacher.model(), student.model()]
    for model in models:
        check(model)
    if len(teacher.outputs) > 1 and rng.random() < 0.1:
        models[1].graph.output.reverse()
    constant_nodes = 0.5 if rng.random() < 0.15 else 0.0
    one, other = (
        scrambled(model, how, rng, constant_nodes) for model, how in zip(models, names, strict=True)
    )
    count = int(rng.choice([60, 64, 80]) if rng.random() < 0.5 else rng.integers(3, 60))
    options = FitOptions(
        RunOptions(providers=("cpu",), seed=int(rng.integers(10))),
        adapter=str(rng.choice(["auto", "auto", "pointwise", "kernel"])),
        targets=str(rng.choice([*["kept"] * 7, "auto", "auto", "select"])),
    )
    axis = 1 if layout is Layout.TIME_FIRST else 0
    sums = {name: student.truth.get(name) for name in teacher.truth_of_sums}
    sums |= student.truth_of_sums
    there = {name: kept for name, kept in sums.items() if kept is not None}
    truth = student.truth, there, teacher.axes, student.sums, student.same_weights
    return Case(seed, one, other, recipe, *truth, options, count, axis)


def draw_recipe(rng: np.random.Generator) -> Recipe:
    """Draw what makes the student: one thing, or several."""
    noise = float(rng.choice([0.01, 0.05, 0.2]))
    recipes = [
        *[Recipe(prune=True)] * 4,
        *[Recipe(prune=True, permute=True)] * 2,
        *[Recipe(prune=True, noise=noise)] * 2,
        Recipe(noise=noise),
        Recipe(prune=bool(rng.random() < 0.5), zeros=0.5),
        Recipe(low_rank=True),
        Recipe(decompose=float(rng.choice([0.4, 1.0]))),
        Recipe(prune=True, decompose=0.5),
    ]
    recipe = recipes[rng.integers(len(recipes))]
    if rng.random() < 0.1:
        recipe = replace(recipe, noise=noise)
    return replace(recipe, drop=0.5) if rng.random() < 0.15 else recipe


def program(b: Builder, layout: Layout) -> None:
    """Write a network: stems, layers, one or more heads."""
    ranks = {Layout.VECTOR: 0, Layout.TOKENS: 1, Layout.TIME_FIRST: 1}
    rank = ranks.get(layout, b.pick(1, 2, 2, 2, 3))
    low, high = {0: (1, 1), 1: (4, 8), 2: (3, 6), 3: (2, 3)}[rank]
    extents = tuple(b.whole(low, high) for _ in range(rank))
    x = b.input(layout, b.whole(2, 8), extents)
    x = activation(b, linear_to(b, x, b.fresh(2 * b.whole(2, 6)), keep_extents=True))
    if b.chance(0.15):
        u = b.input(layout, b.whole(2, 6), extents)
        u = linear_to(b, u, (x.ids, x.kept), keep_extents=True)
        x = x.named(b.node(b.pick("Add", "Mul"), [x.name, u.name]))
    for _ in range(b.whole(1, 5)):
        if b.linear_count >= _MOST_LINEAR:
            break
        x = drawn_layer(b, x)(b, x)
        if b.chance(0.1) and x.name not in [t.name for t in (*b.inputs, *b.outputs)]:
            b.output(x) if b.chance(0.3) else head(b, x)
    head(b, x)
    if b.chance(0.02):
        constant = b.constant(b.rng.standard_normal((1, 3)))
        ids, kept = b.fresh(3)
        same = Tensor(b.node("Identity", [constant]), Layout.CONSTANT, ids, kept)
        b.output(same)


def head(b: Builder, x: Tensor) -> None:
    """Write an output: a linear node, mostly behind a mean over positions."""
    if x.layout in (Layout.SPATIAL, Layout.TOKENS) and b.chance(0.6):
        x = to_vector(b, x)
    y = linear_to(b, x, b.fresh(b.whole(2, 6)))
    b.output(activation(b, y) if b.chance(0.1) else y)


def drawn_layer(b: Builder, x: Tensor) -> Layer:
    """Draw one of the layers that take a tensor."""
    fitting = [(layer, often) for layer, often, layouts in LAYERS if x.layout in layouts]
    shares = np.array([often for _, often in fitting], float)
    return fitting[int(b.rng.choice(len(fitting), p=shares / shares.sum()))][0]
