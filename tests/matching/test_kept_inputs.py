"""Inputs that a pruned block kept are found behind whatever moves channels on their way to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.kept_inputs import KeptInputs
from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.propagation import propagate
from fskd_onnx.results import BlockPair, Evidence
from tests.helpers import build, initializers, run

# x ─▶ Conv ─▶ y (8 channels) ─▶ [nodes] ─▶ r ─▶ Conv or Gemm ─▶ z; the student keeps 4 of y.
# Of each case: the nodes, with {c} for the channels of y, {h} for half of them; and the inputs of
# the last block for each channel of y, as the nodes bring them there.
CONVOLVED = {
    "shuffle": (
        "t = Reshape (y, g{c}) s = Transpose <perm = [0,2,1,3,4]> (t) r = Reshape (s, c{c})",
        [[0], [2], [4], [6], [1], [3], [5], [7]],
    ),
    "split and swapped": (
        "p, q = Split <axis = 1> (y) r = Concat <axis = 1> (q, p)",
        [[4], [5], [6], [7], [0], [1], [2], [3]],
    ),
    "half": ("r, q = Split <axis = 1> (y)", [[0], [1], [2], [3], [], [], [], []]),
    "twice": (
        "e = Neg (y) r = Concat <axis = 1> (y, e)",
        [[i, i + 8] for i in range(8)],
    ),
    "with the network's input": (
        "r = Concat <axis = 1> (x, y)",
        [[i + 3] for i in range(8)],
    ),
    "normalized": ("r = Softmax <axis = 1> (y)", [[i] for i in range(8)]),
    "channels last and back": (
        "t = Transpose <perm = [0,2,3,1]> (y) q = Erf (t) r = Transpose <perm = [0,3,1,2]> (q)",
        [[i] for i in range(8)],
    ),
    "on an axis counted from the last": (
        "p, q = Split <axis = -3> (y) r = Concat <axis = -3> (q, p)",
        [[4], [5], [6], [7], [0], [1], [2], [3]],
    ),
    "sliced": (
        "a = Constant <value_ints = [-3]> () s = Constant <value_ints = [0]> () "
        "h = Constant <value_ints = [{h}]> () e = Constant <value_ints = [1000]> () "
        "p = Slice (y, h, e, a) q = Slice (y, s, h, a) r = Concat <axis = 1> (p, q)",
        [[4], [5], [6], [7], [0], [1], [2], [3]],
    ),
    "gathered": (
        "i = Constant <value_ints = {backwards}> () r = Gather <axis = -3> (y, i)",
        [[7], [6], [5], [4], [3], [2], [1], [0]],
    ),
    "with an axis more and back": (
        "a = Constant <value_ints = [-3]> () u = Unsqueeze (y, a) t = Relu (u) r = Squeeze (t, a)",
        [[i] for i in range(8)],
    ),
    "gated": (
        "p = GlobalAveragePool (y) q = Sigmoid (p) r = Mul (y, q)",
        [[i] for i in range(8)],
    ),
    "gated by one value for all": (
        "p = ReduceMean <axes = [1]> (y) q = Sigmoid (p) r = Mul (y, q)",
        [[i] for i in range(8)],
    ),
    "broadcast": (
        "p = ReduceMax <axes = [2,-1]> (y) r = Add (p, y)",
        [[i] for i in range(8)],
    ),
    "one by one": (
        "s, t = Split <axis = 1> (y) p, q = Split <axis = 1> (s) r = Concat <axis = 1> (t, p, q)",
        [[4], [5], [6], [7], [0], [1], [2], [3]],
    ),
    "space to depth": (
        "r = SpaceToDepth <blocksize = 2> (y)",
        [[i, i + 8, i + 16, i + 24] for i in range(8)],
    ),
}
KEPT = [[0, 1, 4, 5], [1, 2, 5, 7]]  # two of each half


def network(nodes: str, width: int, inputs: int) -> onnx.ModelProto:
    half = width // 2
    return build(
        f"""g (float[N,3,4,4] x) => (float[N,5,A,B] z) <float[{width},3,3,3] w, float[{width}] b,
          float[5,{inputs},1,1] k, int64[5] g{width}, int64[4] c{width}> {{
            [first] y = Conv <pads = [1,1,1,1]> (x, w, b)
            {nodes.format(c=width, h=half, backwards=[*range(-1, -width - 1, -1)])}
            [last] z = Conv (r, k)
        }}""",
        {f"g{width}": [0, 2, half, 4, 4], f"c{width}": [0, width, 4, 4]},
    )


def with_weights(model: onnx.ModelProto, **values: np.ndarray) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            value = np.ascontiguousarray(values[tensor.name], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return changed


def found(teacher: onnx.ModelProto, student: onnx.ModelProto) -> dict[str, BlockPair]:
    graphs = (gs.import_onnx(Canonicalize()(model).model) for model in (teacher, student))
    return {pair.student: pair for pair in match_models(*graphs).pairs}


def followed(teacher: onnx.ModelProto, student: onnx.ModelProto, kept: Sequence[int]) -> list[int]:
    """Return the inputs of the last block, followed from the channels of the first alone."""
    graphs = [gs.import_onnx(Canonicalize()(model).model) for model in (teacher, student)]
    views = [[view for view in find_linear(graph) if isinstance(view, Linear)] for graph in graphs]
    inputs = KeptInputs(*map(propagate, graphs, views))
    inputs.add(views[1][0], views[0][0], np.array(kept))
    result = inputs.inputs(views[1][1], views[0][1])
    assert result is not None
    return [int(place) for place in result]


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("case", CONVOLVED)
def test_a_pruned_block_is_an_exact_slice_again(case: str, kept: Sequence[int]) -> None:
    nodes, inputs = CONVOLVED[case]
    extra = [0, 1, 2] if "input" in case else []
    count = len(extra) + sum(map(len, inputs))
    teacher = network(nodes, 8, count)
    w = initializers(teacher)
    left = sorted([*extra, *(i for channel in kept for i in inputs[channel])])
    # The last block writes the network's output: in another order, only weights can tell of it.
    student = with_weights(
        network(nodes, 4, len(left)), w=w["w"][kept], b=w["b"][kept], k=w["k"][:, left]
    )
    pairs = found(teacher, student)
    assert pairs["first"].channels == tuple(kept)
    assert (pairs["last"].evidence, pairs["last"].confidence) == (Evidence.WEIGHTS, 1.0)
    assert followed(teacher, student, kept) == left
    if case not in ("normalized", "gated by one value for all"):  # by all channels
        # It is the teacher's slice: the same as a teacher whose other channels are nobody's input.
        gone = [i for i in range(count) if i not in left]
        masked = w["k"].copy()
        masked[:, gone] = 0
        x = {"x": np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)}
        expected = run(with_weights(teacher, k=masked), x)["z"]
        np.testing.assert_allclose(run(student, x)["z"], expected, rtol=1e-4, atol=1e-5)


# x ─▶ Conv ─▶ y ─▶ [nodes] ─▶ f ─▶ Gemm ─▶ h ─▶ Relu ─▶ Gemm ─▶ z
FLATTENED = {
    "channels first": "f = Flatten (y)",
    "channels last": "t = Transpose <perm = [0,2,3,1]> (y) f = Reshape (t, flat)",
}


@pytest.mark.parametrize("case", FLATTENED)
def test_flattened_channels_are_told_apart_by_their_positions(case: str) -> None:
    nodes = FLATTENED[case]
    text = """g (float[N,3,4,4] x) => (float[N,5] z) <float[{c},3,1,1] w, float[{p},{h}] k,
      float[{h},5] v, int64[2] flat> {{
        [first] y = Conv (x, w)
        {nodes}
        [middle] h = Gemm (f, k)
        r = Relu (h)
        [last] z = Gemm (r, v)
    }}"""
    kept, rows = np.array([1, 2, 7]), np.array([0, 3, 4])
    first = np.add.outer(16 * kept, np.arange(16))
    inputs = first if case == "channels first" else np.add.outer(8 * np.arange(16), kept)
    flat = {"flat": [0, -1]}
    teacher = build(text.format(c=8, p=128, h=6, nodes=nodes), flat)
    w = initializers(teacher)
    student = with_weights(
        build(text.format(c=3, p=48, h=3, nodes=nodes), flat),
        w=w["w"][kept],
        k=w["k"][inputs.reshape(-1)][:, rows],
        v=w["v"][rows],
    )
    pairs = found(teacher, student)
    assert {pair.evidence for pair in pairs.values()} == {Evidence.WEIGHTS}
    assert pairs["first"].channels == tuple(kept)
    assert pairs["middle"].channels == tuple(rows)


def test_channels_are_not_followed_through_an_operator_that_is_not_known() -> None:
    # The operator may do anything with channels; that the student's kept as many says nothing. Only
    # of an exact slice, the weights tell.
    nodes = 'r = Einsum <equation = "nchw->nchw"> (y)'
    teacher = network(nodes, 8, 8)
    w, kept = initializers(teacher), [0, 2, 3, 6]
    student = with_weights(network(nodes, 4, 4), w=w["w"][kept], b=w["b"][kept], k=w["k"][:, kept])
    assert found(teacher, student)["last"].evidence is Evidence.WEIGHTS
    noisy = with_weights(student, k=1.01 * w["k"][:, kept])
    assert found(teacher, noisy)["last"].evidence is Evidence.OUTPUT


def test_parts_that_are_not_known_are_not_guessed() -> None:
    # The student keeps other channels than the first of what the unknown operator gives.
    nodes = 'e = Einsum <equation = "nchw->nchw"> (y) r = Concat <axis = 1> (y, e)'
    teacher = network(nodes, 8, 16)
    w, kept = initializers(teacher), [4, 5, 6, 7]
    left = [*kept, *(8 + channel for channel in kept)]
    student = with_weights(network(nodes, 4, 8), w=w["w"][kept], b=w["b"][kept], k=w["k"][:, left])
    graphs = [gs.import_onnx(Canonicalize()(model).model) for model in (teacher, student)]
    views = [[view for view in find_linear(graph) if isinstance(view, Linear)] for graph in graphs]
    inputs = KeptInputs(*map(propagate, graphs, views))
    inputs.add(views[1][0], views[0][0], np.array(kept))
    assert inputs.inputs(views[1][1], views[0][1]) is None


def test_a_stream_is_known_by_any_of_its_blocks() -> None:
    # x ─▶ Conv ─▶ y ─▶ + ─▶ s ─▶ Conv ─▶ z, the sum's first operand being matched by nothing
    # └──▶ Conv ─▶ k ─▶ ┘
    text = """g (float[N,3,4,4] x) => (float[N,5,4,4] z)
      <float[{n},3,3,3] w, float[{n},3,1,1] v, float[5,{n},1,1] o> {{
        [one] y = Conv <pads = [1,1,1,1]> (x, w)
        [two] k = Conv (x, v)
        s = Add (y, k)
        [last] z = Conv (s, o)
    }}"""
    teacher, fresh = build(text.format(n=8)), build(text.format(n=4), seed=7)
    w, kept = initializers(teacher), [6, 1, 3, 4]
    student = with_weights(fresh, v=w["v"][kept], o=w["o"][:, kept])
    pairs = found(teacher, student)
    assert (pairs["one"].evidence, pairs["two"].evidence) == (Evidence.STREAM, Evidence.WEIGHTS)
    assert pairs["one"].channels == pairs["two"].channels == tuple(kept)
    assert pairs["last"].evidence is Evidence.WEIGHTS


def test_channels_that_are_tied_to_each_other_are_not_mistaken() -> None:
    # x ─▶ Conv ─▶ y ─┬─▶ Conv ─▶ z
    #                 ├─▶ + ─▶ s ─▶ Conv ─▶ v, channel j of y being added to channel 7 - j
    #                 └─▶ reversed ─▶ ┘
    text = """g (float[N,3,4,4] x) => (float[N,5,4,4] z, float[N,5,4,4] v)
      <float[{n},3,3,3] w, float[5,{n},1,1] k, float[5,{n},1,1] o, int64[1] last, int64[1] end,
      int64[1] axis> {{
        [first] y = Conv <pads = [1,1,1,1]> (x, w)
        r = Slice (y, last, end, axis, last)
        s = Add (y, r)
        [direct] z = Conv (y, k)
        [behind] v = Conv (s, o)
    }}"""
    numbers = {"last": [-1], "end": [-100], "axis": [1]}
    teacher, fresh = (build(text.format(n=n), numbers) for n in (8, 4))
    w, kept = initializers(teacher), [7, 1, 6, 0]
    student = with_weights(fresh, w=w["w"][kept], k=w["k"][:, kept], o=w["o"][:, kept])
    pairs = found(teacher, student)
    assert pairs["first"].channels == tuple(kept)
    assert pairs["direct"].evidence is pairs["behind"].evidence is Evidence.WEIGHTS
