"""Channels that nothing reads go without a trace, whatever stands beside the linear nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from fskd_onnx.passes import Canonicalize, PruneChannels
from fskd_onnx.passes.errors import PreconditionError
from tests.helpers import build, check, initializers, random_feeds, run, zoo_model
from tests.networks import NETWORKS
from tests.pruning import assert_prunes_what_is_not_read, draw_kept, units_of
from tests.random_graphs.case import draw

# Eight channels in front (y, of 4 x 6 positions), and what reads them behind; both units halved.
AROUND = """g (float[N,3,4,6] x) => (float[N,{out}] z)
  <float[8,3,1,1] w1, float[8] b1, {weights}> {{
    [one] y = Conv (x, w1, b1)
    {nodes}
    {end}
}}"""
CONV = "[end] e = Conv ({}, v) z = Flatten (e)"


def around(
    nodes: str, weights: str = "", inputs: int = 8, end: str = "", opset: int = 17, **values: Any
) -> onnx.ModelProto:
    """Build a network with some nodes between two linear ones; ``r`` is what the second reads."""
    own = f"float[5,{inputs},1,1] v"
    text = AROUND.format(
        out="M",
        nodes=nodes,
        weights=", ".join(filter(None, [own, weights])),
        end=end or CONV.format("r"),
    )
    return build(text, values, opset=opset)


# Nodes between, their weights, and how many channels stand in front of the last convolution.
BETWEEN: Mapping[str, tuple[str, str, int]] = {
    "an activation": ("r = Relu (y)", "", 8),
    "pooling": ("p = MaxPool <kernel_shape = [2,2]> (y) r = GlobalAveragePool (p)", "", 8),
    "a scale per channel": ("r = Mul (y, s)", "float[8,1,1] s", 8),
    "a shift per channel in front": ("t = Relu (y) r = Sub (s, t)", "float[1,8,1,1] s", 8),
    "a scale per channel and position": ("t = Relu (y) r = Add (t, s)", "float[8,4,6] s", 8),
    "a scale per position": ("t = Relu (y) r = Add (t, s)", "float[4,6] s", 8),
    "slopes": ("r = PRelu (y, s)", "float[8,1,1] s", 8),
    "one slope": ("r = PRelu (y, s)", "float[1] s", 8),
    "normalization": (
        "t = Relu (y) r = BatchNormalization (t, a, b, c, d)",
        "float[8] a, float[8] b, float[8] c, float[8] d",
        8,
    ),
    "normalization of each channel": (
        "t = Relu (y) r = InstanceNormalization (t, a, b)",
        "float[8] a, float[8] b",
        8,
    ),
    "a choice": ("r = Where (m, y, s)", "float[8,1,1] s, bool[8,1,1] m = {1,0,1,0,1,0,1,1}", 8),
    "the gate of each element": ("s = Sigmoid (y) r = Mul (y, s)", "", 8),
    "squeeze and excitation": (
        """p = GlobalAveragePool (y) [s] q = Conv (p, d) h = Relu (q) [e] g = Conv (h, u)
        k = HardSigmoid (g) r = Mul (y, k)""",
        "float[4,8,1,1] d, float[8,4,1,1] u",
        8,
    ),
    "one gate for all": (
        "[g] g = Conv (y, u) s = Sigmoid (g) r = Mul (y, s)",
        "float[1,8,1,1] u",
        8,
    ),
    "a residual branch": (
        "[b] t = Conv <pads = [1,1,1,1]> (y, u, c) s = Add (t, y) r = Relu (s)",
        "float[8,8,3,3] u, float[8] c",
        8,
    ),
    "a dense branch": (
        "[b] t = Conv (y, u) h = Relu (t) r = Concat <axis = 1> (h, x, y)",
        "float[4,8,1,1] u",
        15,
    ),
    "a constant appended": ("t = Concat <axis = 1> (y, c) r = Relu (t)", "float[3,2,4,6] c", 10),
    "a depthwise follower": (
        "t = Relu (y) [dw] r = Conv <group = 8, pads = [1,1,1,1]> (t, u, c)",
        "float[8,1,3,3] u, float[8] c",
        8,
    ),
    "a depthwise follower of twice the channels": (
        "t = Relu (y) [dw] r = Conv <group = 8> (t, u, c)",
        "float[16,1,1,1] u, float[16] c",
        16,
    ),
    "a transposed depthwise follower": (
        "t = Relu (y) [dw] r = ConvTranspose <group = 8, strides = [2,2]> (t, u, c)",
        "float[8,1,2,2] u, float[8] c",
        8,
    ),
    "groups": (
        "t = Relu (y) [gr] s = Conv <group = 2> (t, u, c) r = Relu (s)",
        "float[12,4,1,1] u, float[12] c",
        12,
    ),
    "groups that spread": (
        "t = Relu (y) [gr] s = ConvTranspose <group = 2, strides = [2,2]> (t, u, c) r = Relu (s)",
        "float[8,6,2,2] u, float[12] c",
        12,
    ),
    "a shuffle": (
        """[gr] t = Conv <group = 2> (y, u) a = Reshape (t, split)
        b = Transpose <perm = [0,2,1,3,4]> (a) s = Reshape (b, join)
        [dw] d = Conv <group = 8> (s, k) [g2] r = Conv <group = 2> (d, l)""",
        """float[8,4,1,1] u, float[8,1,1,1] k, float[6,4,1,1] l,
        int64[5] split = {0,2,4,4,6}, int64[4] join = {0,-1,4,6}""",
        6,
    ),
    "halves": (
        "a, b = Split <axis = 1> (y, sizes) s = Sigmoid (b) r = Mul (a, s)",
        "int64[2] sizes = {4,4}",
        4,
    ),
    "halves of no stated size": (
        "a, b = Split <axis = 1> (y) [c] t = Conv (b, u) r = Concat <axis = 1> (a, t)",
        "float[4,4,1,1] u",
        8,
    ),
    "unequal parts": (
        "a, b = Split <axis = 1> (y, sizes) [c] t = Conv (b, u) r = Concat <axis = 1> (a, t)",
        "int64[2] sizes = {2,6}, float[4,6,1,1] u",
        6,
    ),
    "a slice": (
        "a = Slice (y, start, stop, axis) r = Relu (a)",
        "int64[1] start = {2}, int64[1] stop = {-1}, int64[1] axis = {1}",
        5,
    ),
    "a slice of positions": (
        "a = Slice (y, start, stop, axis) r = Relu (a)",
        "int64[2] start = {2,1}, int64[2] stop = {100,4}, int64[2] axis = {1,2}",
        6,
    ),
    "another order": (
        "a = Gather <axis = 1> (y, order) r = Relu (a)",
        "int64[6] order = {7,0,3,-2,3,1}",
        6,
    ),
    "zeros around": ("r = Pad (y, pads)", "int64[8] pads = {0,1,0,0,0,2,1,1}", 11),
    "a pixel shuffle": ("r = DepthToSpace <blocksize = 2> (y)", "", 2),
    "a pixel shuffle, by columns": (
        'r = DepthToSpace <blocksize = 2, mode = "CRD"> (y)',
        "",
        2,
    ),
    "the reverse": ("r = SpaceToDepth <blocksize = 2> (y)", "", 32),
    "a size": (
        'r = Resize <mode = "nearest"> (y, , , sizes)',
        "int64[4] sizes = {3,8,8,12}",
        8,
    ),
    "a computed size": (
        """shape = Shape (y) first = Slice (shape, zero, two) sizes = Concat <axis = 0> (first, new)
        r = Resize <mode = "nearest"> (y, , , sizes)""",
        "int64[1] zero = {0}, int64[1] two = {2}, int64[2] new = {8,12}",
        8,
    ),
    "a computed target": (
        """shape = Shape (y) n = Gather (shape, zero) first = Unsqueeze (n, axis)
        target = Concat <axis = 0> (first, rest) t = Reshape (y, target) r = Unsqueeze (t, at3)""",
        "int64 zero = {0}, int64[1] axis = {0}, int64[2] rest = {8,24}, int64[1] at3 = {3}",
        8,
    ),
    "the same target elsewhere": (
        """a = Reshape (y, target) b = Reshape (x, target) s = Concat <axis = 1> (a, b)
        r = Unsqueeze (s, at3)""",
        "int64[3] target = {0,-1,24}, int64[1] at3 = {3}",
        11,
    ),
    "a shape that is copied": (
        "a = Reshape (y, target) r = Unsqueeze (a, at3)",
        "int64[3] target = {0,0,-1}, int64[1] at3 = {3}",
        8,
    ),
    "weights used twice": (
        """[a] s = Conv (y, u, c) p = MaxPool <kernel_shape = [2,2]> (y) [b] t = Conv (p, u, c)
        f = Resize <mode = "nearest"> (t, , , sizes) h = Concat <axis = 1> (s, f) r = Relu (h)""",
        "float[6,8,1,1] u, float[6] c, int64[4] sizes = {3,6,4,6}",
        12,
    ),
    "a bias used twice": (
        "[a] s = Conv (y, u, b1) [b] r = Conv (s, k, b1)",
        "float[8,8,1,1] u, float[8,8,1,1] k",
        8,
    ),
    "a scale used twice": (
        "[a] t = Relu (y) s = Mul (t, c) [b] h = Conv (s, u) k = Relu (h) r = Mul (k, c)",
        "float[8,1,1] c, float[8,8,1,1] u",
        8,
    ),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_channels_go_with_all_that_stands_between_linear_nodes(what: str) -> None:
    nodes, weights, inputs = BETWEEN[what]
    model = around(nodes, weights, inputs)
    kept = draw_kept(model, np.random.default_rng(0))
    assert "one" in kept
    assert_prunes_what_is_not_read(model, kept)
    alone = {"one": kept["one"]}
    assert_prunes_what_is_not_read(model, alone)


def test_a_unit_that_cannot_be_pruned_is_refused_with_its_reason() -> None:
    model = around("r = LRN <size = 3> (y)")
    with pytest.raises(PreconditionError, match=r"channels of 'one' .* 'r' \(LRN\), which"):
        PruneChannels({"one": [0]})(model)
    with pytest.raises(PreconditionError, match=r"of 'end' .* an output of the network"):
        PruneChannels({"end": [0]})(model)
    assert not PruneChannels({"one": range(8), "end": range(5)})(model).changed


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ([], "one at least has to stay"),
        ([0, 8], r"not numbers of 0\.\.7, ascending"),
        ([-1, 2], r"not numbers of 0\.\.7, ascending"),
        ([2, 1], "ascending"),
        ([1, 1], "ascending"),
        ([0, 1, 4], "as many have to stay of each 4 in a row"),
    ],
)
def test_channels_that_cannot_be_those_that_stay_are_refused(kept: list[int], why: str) -> None:
    model = around("[g] r = Conv <group = 2> (y, u)", "float[8,4,1,1] u")
    with pytest.raises(PreconditionError, match=f"channels of 'one' .* asked: .*{why}"):
        PruneChannels({"one": kept})(model)


def test_a_part_that_goes_its_own_way_keeps_one_channel() -> None:
    model = around("a = Slice (y, zero, two, one) r = Relu (a)", SLICE, 2)
    with pytest.raises(PreconditionError, match="one at least of 0, 1 has to stay"):
        PruneChannels({"one": [3, 4]})(model)
    assert_prunes_what_is_not_read(model, {"one": [1, 3, 4]})


SLICE = "int64[1] zero = {0}, int64[1] two = {2}, int64[1] one = {1}"


def test_a_name_that_opens_no_unit_is_refused() -> None:
    model = around("[b] t = Conv (y, u) r = Add (t, y)", "float[8,8,1,1] u")
    for name in ("b", "r", "nothing"):
        with pytest.raises(PreconditionError, match=f"no linear node '{name}' .* opens"):
            PruneChannels({name: [0]})(model)


def test_rows_and_columns_of_the_channels_that_stay_are_those_of_the_teacher() -> None:
    model = around("r = Relu (y)")
    result = PruneChannels({"one": [1, 4, 6]})(model)
    assert result.notes == ("'one' keeps 3 of 8 channels",)
    before, after = initializers(model), initializers(result.model)
    assert before.keys() == after.keys()
    np.testing.assert_array_equal(after["w1"], before["w1"][[1, 4, 6]])
    np.testing.assert_array_equal(after["b1"], before["b1"][[1, 4, 6]])
    np.testing.assert_array_equal(after["v"], before["v"][:, [1, 4, 6]])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_weights_in_half_precision_stay_in_it(kind: str) -> None:
    model = build(
        f"""g (float[N,3] x) => (float[N,4] z) <{kind}[3,8] v, {kind}[8] c, {kind}[8,4] w> {{
            a = Cast <to = 1> (v)
            b = Cast <to = 1> (c)
            d = Cast <to = 1> (w)
            [one] h = MatMul (x, a)
            y = Add (h, b)
            r = Relu (y)
            s = Mul (r, b)
            [two] z = MatMul (s, d)
        }}"""
    )
    left = assert_prunes_what_is_not_read(model, {"one": [0, 3, 5]})
    types = {tensor.name: (tensor.data_type, [*tensor.dims]) for tensor in left.graph.initializer}
    of = onnx.TensorProto.FLOAT16 if kind == "float16" else onnx.TensorProto.BFLOAT16
    assert types == {"v": (of, [3, 3]), "c": (of, [3]), "w": (of, [3, 4])}


def test_a_constant_that_others_read_whole_stays_beside_the_cut_one() -> None:
    model = build(
        """g (float[N,8] x) => (float[N,4] z, float[N,8] u) <float[8,8] v, float[8] c,
          float[8,4] w> {
            [one] h = MatMul (x, v)
            y = Add (h, c)
            [two] z = MatMul (y, w)
            u = Add (x, c)
        }"""
    )
    left = assert_prunes_what_is_not_read(model, {"one": [0, 3, 5]})
    shapes = {name: values.shape for name, values in initializers(left).items()}
    assert shapes == {"v": (8, 3), "c": (8,), "c/cut": (3,), "w": (3, 4)}


def test_stated_shapes_and_inputs_of_old_files_follow() -> None:
    model = build(
        """<ir_version: 3, opset_import: ["": 9]> g (float[2,3,4,4] x) => (float[2,4,4,4] z)
          <float[8,3,1,1] v, float[8] b, float[4,8,1,1] w, float[2,8,4,4] y> {
            [one] y = Conv (x, v, b)
            r = Relu (y)
            [two] z = Conv (r, w)
        }"""
    )
    left = assert_prunes_what_is_not_read(model, {"one": [0, 3, 5]})
    stated = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in left.graph.input}
    assert stated == {"x": [2, 3, 4, 4], "v": [3, 3, 1, 1], "b": [3], "w": [4, 3, 1, 1]}
    [y] = left.graph.value_info
    assert [dim.dim_value for dim in y.type.tensor_type.shape.dim] == [2, 3, 4, 4]


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_sizes_of_a_split_are_stated_as_the_opset_wants_it(opset: int) -> None:
    attributes = ", num_outputs = 2" if opset == 18 else ""
    nodes = f"a, b = Split <axis = 1{attributes}> (y) r = Concat <axis = 1> (b, a)"
    model = around(nodes, opset=opset)
    left = assert_prunes_what_is_not_read(model, {"one": [0, 4, 5, 6]})
    [split] = [node for node in left.graph.node if node.op_type == "Split"]
    assert len(split.input) == (2 if opset >= 13 else 1)


def test_sizes_of_a_split_take_the_place_of_an_input_that_is_left_out() -> None:
    model = around("a, b = Split <axis = 1> (y, ) r = Concat <axis = 1> (b, a)")
    left = assert_prunes_what_is_not_read(model, {"one": [0, 4, 5, 6]})
    [split] = [node for node in left.graph.node if node.op_type == "Split"]
    assert [*split.input] == ["y", "a/split"]
    assert initializers(left)["a/split"].tolist() == [1, 3]


@pytest.mark.parametrize("what", NETWORKS)
def test_channels_of_small_networks_go(what: str) -> None:
    network = NETWORKS[what]
    model = network.teacher()
    kept = draw_kept(model, np.random.default_rng(1))
    assert kept
    assert_prunes_what_is_not_read(model, kept, network.samples(4))


@pytest.mark.parametrize("seed", range(25))
def test_channels_of_random_networks_go(seed: int) -> None:
    case = draw(seed)
    model = Canonicalize()(case.teacher.model).model
    rng = np.random.default_rng(seed)
    kept = draw_kept(model, rng, share=rng.uniform(0.2, 0.9))
    if any(
        len(kept[unit.name]) < unit.width for unit in units_of(model).values() if not unit.reason
    ):
        assert_prunes_what_is_not_read(model, kept)


ZOO = {
    "bvlc_alexnet": 5,
    "densenet121": 120,
    "inception_v1": 55,
    "inception_v2": 69,
    "resnet50": 37,
    "shufflenet": 12,
    "squeezenet": 25,
    "vgg19": 18,
    "zfnet512": 5,
}
"""Graphs of the model zoo, and how many of their units can be pruned."""


@pytest.mark.parametrize("name", ZOO)
def test_every_unit_of_a_network_of_the_model_zoo_can_be_halved(name: str) -> None:
    model = Canonicalize()(zoo_model(name)).model
    kept = draw_kept(model, np.random.default_rng(0))
    assert len(kept) == ZOO[name]
    result = PruneChannels(kept)(model)
    check(result.model)
    feeds = random_feeds(model, batch=1)
    shapes = {name: value.shape for name, value in run(model, feeds).items()}
    assert {name: value.shape for name, value in run(result.model, feeds).items()} == shapes
