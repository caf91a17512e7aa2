"""Small transformers with random weights, written in the ways that exporters and simplifiers do.

One network is its parameters, by name; how its layers become nodes is a ``Written``. So a student
is a choice among the parameters, and may be written in another way than its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers import Array, check

WIDTH, HEADS, HIDDEN, DEPTH = 24, 4, 48, 2
HEAD = WIDTH // HEADS
IMAGE, PATCH, TOKENS, WORDS, SCORES = 12, 4, 7, 30, 5

Parameters = dict[str, Array]


@dataclass(frozen=True)
class Written:
    """How layers become nodes.

    Attributes:
        linear: "MatMul" with an Add; "Gemm" between two Reshapes of stated extents; "Gemm of
            computed rows", their extents taken from Shape; "Gemm of rows", which stay rows up to
            the end of a feed-forward branch; "MatMul from the left", of transposed tokens;
            "Einsum".
        normalization: "LayerNormalization", "Pow" or "Mul" where it is written out.
        gelu: "Gelu", "Erf", "Erf last", "Tanh" or "Sigmoid".
        joined: whether queries, keys and values are one linear layer.
        opset: version of the operators.
    """

    linear: str = "MatMul"
    normalization: str = "LayerNormalization"
    gelu: str = "Erf"
    joined: bool = False
    opset: int = 17


def drawn(seed: int = 0, depth: int = DEPTH) -> Parameters:
    """Draw the parameters of both networks; singular values fall as those of trained layers do."""
    rng = np.random.default_rng(seed)

    def matrix(n: int, p: int, gain: float = 1.0) -> Array:
        u, _, v = np.linalg.svd(rng.standard_normal((n, p)), full_matrices=False)
        falling = 0.93 ** np.arange(min(n, p))
        return np.asarray(u * (gain * falling * np.sqrt(len(falling) / np.sum(falling**2))) @ v)

    found: Parameters = {
        "patch": matrix(WIDTH, 3 * PATCH**2).reshape(WIDTH, 3, PATCH, PATCH),
        "patch.bias": 0.1 * rng.standard_normal(WIDTH),
        "class": rng.standard_normal((1, 1, WIDTH)),
        "places": 0.5 * rng.standard_normal((1, (IMAGE // PATCH) ** 2 + 1, WIDTH)),
        "words": rng.standard_normal((WORDS, WIDTH)),
        "word.places": 0.5 * rng.standard_normal((1, TOKENS, WIDTH)),
        "pooler": matrix(WIDTH, WIDTH),
        "pooler.bias": 0.1 * rng.standard_normal(WIDTH),
        "head": matrix(SCORES, WIDTH),
        "head.bias": 0.1 * rng.standard_normal(SCORES),
    }
    norms = [f"{i}.{name}" for i in range(depth) for name in ("norm1", "norm2")] + ["norm"]
    for name in norms:
        found[f"{name}.scale"] = rng.uniform(0.7, 1.3, WIDTH)
        found[f"{name}.bias"] = 0.1 * rng.standard_normal(WIDTH)
    for i in range(depth):
        for name in ("q", "k", "v", "out"):
            found[f"{i}.{name}"] = matrix(WIDTH, WIDTH, 1.5 if name in "qk" else 1.0)
            found[f"{i}.{name}.bias"] = 0.1 * rng.standard_normal(WIDTH)
        found[f"{i}.up"] = matrix(HIDDEN, WIDTH, 1.5)
        found[f"{i}.up.bias"] = 0.3 * rng.standard_normal(HIDDEN)
        found[f"{i}.down"] = matrix(WIDTH, HIDDEN)
        found[f"{i}.down.bias"] = 0.1 * rng.standard_normal(WIDTH)
    return {name: value.astype(np.float32) for name, value in found.items()}


def narrower(parameters: Parameters, share: float = 0.5) -> Parameters:
    """Cut feed-forward layers to a share of their width, by the norms of their rows."""
    cut = dict(parameters)
    for i in _layers(parameters):
        strength = np.abs(cut[f"{i}.up"]).sum(axis=1)
        kept = np.sort(np.argsort(-strength)[: round(share * len(strength))])
        cut[f"{i}.up"], cut[f"{i}.up.bias"] = cut[f"{i}.up"][kept], cut[f"{i}.up.bias"][kept]
        cut[f"{i}.down"] = cut[f"{i}.down"][:, kept]
    return cut


def fewer_heads(parameters: Parameters, kept: Sequence[int] = (0, 2)) -> Parameters:
    """Leave attention heads out."""
    cut = dict(parameters)
    rows = (np.array(kept)[:, np.newaxis] * HEAD + np.arange(HEAD)).reshape(-1)
    for i in _layers(parameters):
        for name in ("q", "k", "v"):
            cut[f"{i}.{name}"] = cut[f"{i}.{name}"][rows]
            cut[f"{i}.{name}.bias"] = cut[f"{i}.{name}.bias"][rows]
        cut[f"{i}.out"] = cut[f"{i}.out"][:, rows]
    return cut


def vit(parameters: Parameters, written: Written | None = None) -> onnx.ModelProto:
    """Write a ViT: patches of images, a class token, normalization in front of each branch."""
    b = _Builder(parameters, written or Written())
    x = b.node("Conv", ["image", b.stored("patch"), b.stored("patch.bias")], strides=[PATCH] * 2)
    count = (IMAGE // PATCH) ** 2
    x = b.node("Reshape", [x, b.numbers(0, WIDTH, count)])
    x = b.node("Transpose", [x], perm=[0, 2, 1])
    first = b.node("Slice", [x, b.numbers(0), b.numbers(1), b.numbers(1)])
    zeros = b.node("Mul", [first, b.number(0.0)])
    x = b.node("Concat", [b.node("Add", [zeros, b.stored("class")]), x], axis=1)
    x = b.node("Add", [x, b.stored("places")])
    for i in _layers(parameters):
        x = b.node("Add", [x, b.attention(b.norm(x, f"{i}.norm1"), i, count + 1)])
        x = b.node("Add", [x, b.feed_forward(b.norm(x, f"{i}.norm2"), i, count + 1)])
    x = b.norm(x, "norm")
    x = b.node("Gather", [x, b.numbers(0, scalar=True)], axis=1)
    scores = b.node("Gemm", [x, b.stored("head"), b.stored("head.bias")], transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, IMAGE, IMAGE])
    return b.model([image], scores, ["n", SCORES])


def bert(parameters: Parameters, written: Written | None = None) -> onnx.ModelProto:
    """Write an encoder of tokens with a mask, normalization behind each sum, and a pooler."""
    b = _Builder(parameters, written or Written())
    x = b.node("Gather", [b.stored("words"), "tokens"])
    x = b.norm(b.node("Add", [x, b.stored("word.places")]), "norm")
    mask = b.node("Unsqueeze", [b.node("Cast", ["mask"], to=TensorProto.FLOAT), b.numbers(1, 2)])
    mask = b.node("Mul", [b.node("Sub", [b.number(1.0), mask]), b.number(-1e4)])
    for i in _layers(parameters):
        x = b.norm(b.node("Add", [b.attention(x, i, TOKENS, mask), x]), f"{i}.norm1")
        x = b.norm(b.node("Add", [b.feed_forward(x, i, TOKENS), x]), f"{i}.norm2")
    x = b.node("Gather", [x, b.numbers(0, scalar=True)], axis=1)
    x = b.node("Tanh", [b.node("Gemm", [x, b.stored("pooler"), b.stored("pooler.bias")], transB=1)])
    scores = b.node("Gemm", [x, b.stored("head"), b.stored("head.bias")], transB=1)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", TOKENS])
        for name in ("tokens", "mask")
    ]
    return b.model(inputs, scores, ["n", SCORES])


def images(count: int, seed: int = 1) -> dict[str, Array]:
    """Draw inputs of ``vit``."""
    rng = np.random.default_rng(seed)
    return {"image": rng.standard_normal((count, 3, IMAGE, IMAGE)).astype(np.float32)}


def sentences(count: int, seed: int = 1) -> dict[str, Array]:
    """Draw inputs of ``bert``, of three tokens at least."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, TOKENS + 1, count)
    mask = (np.arange(TOKENS) < lengths[:, np.newaxis]).astype(np.int64)
    return {"tokens": rng.integers(0, WORDS, (count, TOKENS)) * mask, "mask": mask}


def _layers(parameters: Parameters) -> range:
    return range(sum(name.endswith(".up") for name in parameters))


@dataclass
class _Builder:
    """Nodes and initializers so far."""

    parameters: Mapping[str, Array]
    written: Written
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attrs: Any) -> str:
        names = [f"t{len(self.nodes)}.{i}" if i else f"t{len(self.nodes)}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{len(self.nodes)}", **attrs))
        return names[0]

    def store(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def stored(self, name: str) -> str:
        return self.store(name, self.parameters[name])

    def numbers(self, *values: int, scalar: bool = False) -> str:
        value = np.array(values[0] if scalar else values, np.int64)
        return self.store(f"i{len(self.initializers)}", value)

    def number(self, value: float) -> str:
        return self.store(f"f{len(self.initializers)}", np.array(value, np.float32))

    def linear(self, x: str, name: str, tokens: int, matrix: Array, bias: Array) -> str:
        """Apply a linear layer to (n, tokens, p)."""
        form, p = self.written.linear, matrix.shape[1]
        if form.startswith("Gemm"):
            stays = form == "Gemm of rows" and name.endswith(("up", "down"))
            if not (stays and name.endswith("down")):
                x, tensor = self.node("Reshape", [x, self.numbers(-1, p)]), x
            y = self.node("Gemm", [x, self.store(name, matrix.T), self.store(f"{name}.b", bias)])
            if stays and name.endswith("up"):
                return y
            back = self.numbers(-1, tokens, len(matrix))
            if form == "Gemm of computed rows":
                extents = self.node("Shape", [tensor])
                rows = self.node("Slice", [extents, self.numbers(0), self.numbers(2)])
                back = self.node("Concat", [rows, self.numbers(len(matrix))], axis=0)
            return self.node("Reshape", [y, back])
        if form == "MatMul from the left":
            turned = self.node("Transpose", [x], perm=[0, 2, 1])
            y = self.node("MatMul", [self.store(name, matrix), turned])
            y = self.node("Add", [y, self.store(f"{name}.b", bias[:, np.newaxis])])
            return self.node("Transpose", [y], perm=[0, 2, 1])
        if form == "Einsum":
            y = self.node("Einsum", [x, self.store(name, matrix.T)], equation="btc,cd->btd")
        else:
            y = self.node("MatMul", [x, self.store(name, matrix.T)])
        return self.node("Add", [self.store(f"{name}.b", bias), y])

    def projection(self, x: str, name: str, tokens: int) -> str:
        bias = self.parameters[f"{name}.bias"]
        return self.linear(x, name, tokens, self.parameters[name], bias)

    def heads(self, x: str, tokens: int, heads: int, perm: Sequence[int]) -> str:
        return self.node(
            "Transpose",
            [self.node("Reshape", [x, self.numbers(0, tokens, heads, HEAD)])],
            perm=perm,
        )

    def attention(self, x: str, i: int, tokens: int, mask: str = "") -> str:
        width = len(self.parameters[f"{i}.q"])
        heads, parts = width // HEAD, [f"{i}.{name}" for name in "qkv"]
        if self.written.joined:
            matrix, bias = (
                np.concatenate([self.parameters[part + end] for part in parts])
                for end in ("", ".bias")
            )
            y = self.linear(x, f"{i}.qkv", tokens, matrix, bias)
            y = self.node("Reshape", [y, self.numbers(0, tokens, 3, heads, HEAD)])
            y = self.node("Transpose", [y], perm=[2, 0, 3, 1, 4])
            q, k, v = (
                self.node("Gather", [y, self.numbers(number, scalar=True)]) for number in range(3)
            )
            k = self.node("Transpose", [k], perm=[0, 1, 3, 2])
        else:
            q, k, v = (
                self.heads(self.projection(x, part, tokens), tokens, heads, perm)
                for part, perm in zip(
                    parts, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
                )
            )
        scores = self.node("Div", [self.node("MatMul", [q, k]), self.number(HEAD**0.5)])
        if mask:
            scores = self.node("Add", [scores, mask])
        y = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), v])
        y = self.node("Transpose", [y], perm=[0, 2, 1, 3])
        y = self.node("Reshape", [y, self.numbers(0, tokens, width)])
        return self.projection(y, f"{i}.out", tokens)

    def feed_forward(self, x: str, i: int, tokens: int) -> str:
        y = self.gelu(self.projection(x, f"{i}.up", tokens))
        return self.projection(y, f"{i}.down", tokens)

    def norm(self, x: str, name: str) -> str:
        scale, bias = self.stored(f"{name}.scale"), self.stored(f"{name}.bias")
        form = self.written.normalization
        if form == "LayerNormalization":
            return self.node(form, [x, scale, bias], axis=-1, epsilon=1e-5)
        centered = self.node("Sub", [x, self.node("ReduceMean", [x], axes=[-1])])
        square = (
            self.node("Mul", [centered, centered])
            if form == "Mul"
            else self.node("Pow", [centered, self.number(2.0)])
        )
        variance = self.node("ReduceMean", [square], axes=[-1])
        deviation = self.node("Sqrt", [self.node("Add", [variance, self.number(1e-5)])])
        y = (
            self.node("Mul", [centered, self.node("Reciprocal", [deviation])])
            if form == "Mul"
            else self.node("Div", [centered, deviation])
        )
        return self.node("Add", [self.node("Mul", [y, scale]), bias])

    def gelu(self, x: str) -> str:
        form = self.written.gelu
        if form == "Gelu":
            return self.node("Gelu", [x])
        if form == "Sigmoid":
            gate = self.node("Sigmoid", [self.node("Mul", [x, self.number(1.702)])])
            return self.node("Mul", [x, gate])
        if form == "Tanh":
            cube = self.node(
                "Mul", [self.node("Pow", [x, self.number(3.0)]), self.number(0.044715)]
            )
            inner = self.node("Mul", [self.node("Add", [x, cube]), self.number(0.7978845608)])
            gate = self.node("Add", [self.node("Tanh", [inner]), self.number(1.0)])
        else:
            gate = self.node("Erf", [self.node("Div", [x, self.number(2**0.5)])])
            gate = self.node("Add", [gate, self.number(1.0)])
        if form == "Erf last":
            return self.node("Mul", [self.node("Mul", [x, gate]), self.number(0.5)])
        return self.node("Mul", [self.node("Mul", [x, self.number(0.5)]), gate])

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], output: str, shape: Sequence[int | str]
    ) -> onnx.ModelProto:
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(
            self.nodes, "transformer", inputs, [result], list(self.initializers.values())
        )
        opset = helper.make_opsetid("", self.written.opset)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        check(model)
        return model
