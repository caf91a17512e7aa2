"""Blocks and channels of a student are found from names and weights, or a reason is given."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from fskd_onnx.matching.channels import match_channels, match_models
from fskd_onnx.matching.pairing import Partner, pair_blocks
from fskd_onnx.passes import Canonicalize
from fskd_onnx.results import BlockPair, Evidence
from tests.helpers import DEMO, Array, build, initializers

# x ─▶ c1 ─▶ Relu ─▶ dw (depthwise) ─▶ c2 ─▶ + ─▶ c3 ─▶ Concat ─▶ gr (2 groups) ─▶ Flatten ─▶ fc
#                 └──────────▶ c0 ──────────▶ ┘      └─ c1b ─▶ ┘
NETWORK = """g (float[N,3,4,4] x) => (float[N,5] z) <
  float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] wd, float[8] bd, float[6,8,1,1] w2, float[6] b2,
  float[6,8,1,1] w0, float[6] b0, float[4,6,1,1] w3, float[4] b3, float[4,6,1,1] w4,
  float[8,4,1,1] wg, float[32,5] wf> {
    [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [dw] yd = Conv <group = 8, pads = [1,1,1,1]> (r1, wd, bd)
    [c2] y2 = Conv (yd, w2, b2)
    [c0] y0 = Conv (r1, w0, b0)
    s = Add (y2, y0)
    [c3] y3 = Conv (s, w3, b3)
    [c4] y4 = Conv (s, w4)
    k = Concat <axis = 1> (y3, y4)
    [gr] yg = Conv <group = 2> (k, wg)
    p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (yg)
    f = Flatten (p)
    [fc] z = Gemm (f, wf)
}"""
# kept channels of the tensors behind c1, c2 and c0 (one stream), c3, c4, gr
KEPT = {"1": [0, 2, 3, 5, 7], "s": [1, 2, 4, 5], "3": [0, 3], "4": [1, 2], "g": [0, 2, 5, 6]}


def teacher() -> onnx.ModelProto:
    return build(NETWORK, seed=5)


def sliced(model: onnx.ModelProto, kept: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Prune the network: every weight is a slice of the teacher's."""
    k = {name: np.asarray(channels) for name, channels in kept.items()}
    inputs_g = np.array([*k["3"], *(k["4"])]).reshape(2, -1)  # of each group
    w = initializers(model)
    flat = (k["g"][:, np.newaxis] * 4 + np.arange(4)).reshape(-1)
    new = {
        "w1": w["w1"][k["1"]],
        "b1": w["b1"][k["1"]],
        "wd": w["wd"][k["1"]],
        "bd": w["bd"][k["1"]],
        "w2": w["w2"][k["s"]][:, k["1"]],
        "b2": w["b2"][k["s"]],
        "w0": w["w0"][k["s"]][:, k["1"]],
        "b0": w["b0"][k["s"]],
        "w3": w["w3"][k["3"]][:, k["s"]],
        "b3": w["b3"][k["3"]],
        "w4": w["w4"][k["4"]][:, k["s"]],
        "wg": np.stack([w["wg"][c, inputs_g[c // 4]] for c in k["g"]]),
        "wf": w["wf"][flat],
    }
    return with_values(model, new, groups=len(k["1"]))


def with_values(
    model: onnx.ModelProto, new: Mapping[str, Array], groups: int | None = None
) -> onnx.ModelProto:
    student = onnx.ModelProto()
    student.CopyFrom(model)
    for tensor in student.graph.initializer:
        if tensor.name in new:
            value = np.ascontiguousarray(new[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    if groups is not None:
        depthwise = next(n for n in student.graph.node if n.name == "dw")
        next(a for a in depthwise.attribute if a.name == "group").i = groups
    onnx.checker.check_model(student, full_check=True)
    return student


def pairs(one: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, BlockPair]:
    graphs = (gs.import_onnx(Canonicalize()(model).model) for model in (one, other))
    return {pair.student: pair for pair in match_models(*graphs).pairs}


def assert_kept(found: Mapping[str, BlockPair], kept: Mapping[str, Sequence[int]]) -> None:
    blocks = {"c1": "1", "dw": "1", "c2": "s", "c0": "s", "c3": "3", "c4": "4", "gr": "g"}
    assert {name: found[name].channels for name in blocks} == {
        name: tuple(kept[key]) for name, key in blocks.items()
    }
    assert found["fc"].channels == tuple(range(5))
    assert {pair.evidence for pair in found.values()} == {"weights"}
    assert {pair.reason for pair in found.values()} == {""}
    assert min(pair.confidence for pair in found.values()) > 0.999


WHOLE = {"1": range(8), "s": range(6), "3": range(4), "4": range(4), "g": range(8)}


@pytest.mark.parametrize(
    "kept",
    [
        WHOLE,
        KEPT,
        WHOLE | {"1": KEPT["1"]},
        WHOLE | {"s": KEPT["s"]},
        WHOLE | {"g": KEPT["g"]},
        {"1": [7, 0, 3], "s": [5, 1, 0], "3": [3, 1], "4": [2, 0], "g": [3, 1, 6, 4]},
        {k: list(range(len(v)))[::-1] for k, v in WHOLE.items()} | {"g": [3, 2, 1, 0, 7, 6, 5, 4]},
    ],
    ids=["equal", "all pruned", "first", "stream", "grouped", "permuted and pruned", "reversed"],
)
def test_kept_channels_are_exact(kept: Mapping[str, Sequence[int]]) -> None:
    assert_kept(pairs(teacher(), sliced(teacher(), kept)), kept)


def test_targets_are_the_teachers_block_outputs() -> None:
    found = pairs(teacher(), sliced(teacher(), KEPT))
    assert {name: pair.teacher for name, pair in found.items()} == {
        "c1": "y1",
        "dw": "yd",
        "c2": "y2",
        "c0": "y0",
        "c3": "y3",
        "c4": "y4",
        "gr": "yg",
        "fc": "z",
    }
    assert [found[name].teacher_width for name in ("c1", "gr", "fc")] == [8, 8, 5]
    assert [found[name].op for name in ("c1", "fc")] == ["Conv", "Gemm"]


def test_dead_and_equal_filters_are_told_apart_by_bias_and_order() -> None:
    w, b = (initializers(teacher())[name].copy() for name in ("w1", "b1"))
    w[[2, 3]] = 0  # two dead filters of different bias, of which the first stays
    w[7] = w[5] = w[0]  # three equal filters: two of equal bias stay in order, one of another goes
    b[7] = b[0]
    model = with_values(teacher(), {"w1": w, "b1": b})
    kept = dict(KEPT, **{"1": [0, 1, 2, 6, 7]})
    assert_kept(pairs(model, sliced(model, kept)), kept)


def test_rows_may_be_scaled() -> None:
    # A positive factor per row, as by a BatchNormalization that only one side has folded.
    student = sliced(teacher(), KEPT)
    scale = np.linspace(0.1, 3, 5).reshape(-1, 1, 1, 1)
    student = with_values(student, {"w1": initializers(student)["w1"] * scale})
    assert_kept(pairs(teacher(), student), KEPT)


def test_a_batch_normalization_on_one_side_makes_no_difference() -> None:
    # x ─▶ Conv ─▶ BN ─▶ z against x ─▶ Conv ─▶ z
    with_bn = build("""g (float[N,4,4,4] x) => (float[N,6,4,4] z)
      <float[6,4,1,1] w, float[6] s, float[6] t, float[6] m, float[6] v> {
        [conv] y = Conv (x, w)
        z = BatchNormalization (y, s, t, m, v)
    }""")
    folded = Canonicalize()(with_bn).model
    for one, other in ((with_bn, folded), (folded, with_bn)):
        assert pairs(one, other)["conv"].evidence == "weights"


def test_fresh_weights_of_equal_width_pair_channel_by_channel() -> None:
    found = pairs(teacher(), build(NETWORK, seed=6))
    assert {pair.evidence for pair in found.values()} <= {"width", "weights", "output"}
    assert (found["fc"].evidence, found["fc"].confidence) == ("output", 1.0)
    assert found["c1"].evidence == "width"
    assert all(p.channels == tuple(range(p.teacher_width or 0)) for p in found.values())
    assert all(pair.reason == "" for pair in found.values())


@pytest.mark.parametrize(
    ("ending", "width", "evidence"),
    [
        ("z = Softmax (y)", 6000, "output"),
        ("r = Relu (y) [last] z = Gemm (r, v)", 3, "width"),
    ],
)
def test_many_noisy_rows_are_not_compared_each_with_each(
    ending: str, width: int, evidence: str
) -> None:
    many = 6000
    model = build(
        f"""g (float[N,2] x) => (float[N,{width}] z) <float[2,{many}] w, float[{many},3] v> {{
            [wide] y = Gemm (x, w) {ending}
        }}""",
        seed=0,
    )
    noisy = with_values(model, {"w": 1.01 * initializers(model)["w"] + 0.01})
    tracemalloc.start()
    try:
        found = pairs(model, noisy)["wide"]
        assert tracemalloc.get_traced_memory()[1] < many**2
    finally:
        tracemalloc.stop()
    assert (found.channels, found.evidence) == (tuple(range(many)), evidence)


def test_fresh_weights_of_other_width_stay_open_until_activations_decide() -> None:
    student = sliced(teacher(), KEPT)
    rng = np.random.default_rng(7)
    fresh = {name: rng.standard_normal(initializers(student)[name].shape) for name in ("w1", "b1")}
    fresh |= {"wd": rng.standard_normal(initializers(student)["wd"].shape), "bd": fresh["b1"]}
    fresh |= {name: 1.1 * initializers(student)[name] for name in ("w2", "w0")}
    student = with_values(student, fresh)
    found = pairs(teacher(), student)
    assert found["c1"].channels is None
    assert found["c1"].evidence == "activations"
    assert found["c1"].reason == ""
    assert found["dw"].channels is None  # it carries what nobody knows yet

    graphs = gs.import_onnx(teacher()), gs.import_onnx(student)
    known = {"c1": (np.array(KEPT["1"]), 0.9)}
    matching = match_channels(*graphs, pair_blocks(*graphs), known)
    again = {pair.student: pair for pair in matching.pairs}
    assert (again["c1"].evidence, again["c1"].confidence) == ("activations", 0.9)
    assert {name: pair.channels for name, pair in again.items()} == {
        name: pair.channels for name, pair in pairs(teacher(), sliced(teacher(), KEPT)).items()
    }


@pytest.mark.parametrize(("fresh", "telling"), [("2", "0"), ("0", "2")])
def test_blocks_of_one_stream_follow_the_one_whose_weights_tell(fresh: str, telling: str) -> None:
    student = sliced(teacher(), KEPT)
    rng = np.random.default_rng(7)
    new = {
        name: rng.standard_normal(initializers(student)[name].shape)
        for name in (f"w{fresh}", f"b{fresh}")
    }
    found = pairs(teacher(), with_values(student, new))
    follower, other = found[f"c{fresh}"], found[f"c{telling}"]
    assert (follower.teacher, follower.reason) == (f"y{fresh}", "")
    assert follower.channels == other.channels == tuple(KEPT["s"])
    assert (follower.evidence, other.evidence) == ("stream", "weights")
    assert follower.confidence <= 0.5 < other.confidence
    # What reads the stream is an exact slice again.
    assert found["c3"].evidence == found["c4"].evidence == "weights"
    assert found["c3"].channels == tuple(KEPT["3"])


def test_a_stream_that_no_block_tells_of_stays_open() -> None:
    student = sliced(teacher(), KEPT)
    rng = np.random.default_rng(7)
    shapes = {name: initializers(student)[name].shape for name in ("w2", "b2", "w0", "b0")}
    fresh = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    # Blocks that read the stream would tell of it, were they exact slices.
    fresh |= {name: 1.1 * initializers(student)[name] for name in ("w3", "w4")}
    found = pairs(teacher(), with_values(student, fresh))
    for name in ("c2", "c0"):
        assert (found[name].channels, found[name].evidence) == (None, "activations")
        assert found[name].reason == ""


# x ─▶ c1 ─▶ Relu ─▶ [between] ─▶ y2 ─▶ Relu ─▶ c3 ─▶ Relu ─▶ c4 ─▶ z, channels of c1: a, of y2: b
BETWEEN = {
    "shared weights": (
        "[s] q = Conv (r1, ws) p = Relu (q) [t] o = Conv (p, ws) [c2] y2 = Conv (o, w2, b2)",
        "float[{a},{a},1,1] ws",
        "",
    ),
    "a weight that is an output": (
        "[c2] y2 = Conv (r1, w2, b2)",
        "",
        ", float[{b},{a},1,1] w2",
    ),
    "quantized": (
        "v2 = DequantizeLinear (q2, scale) [c2] y2 = Conv (r1, v2, b2)",
        "int8[{b},{a},1,1] q2, float scale = {{0.05}}",
        "",
    ),
    "unknown": (
        '[c2] k2 = Conv (r1, w2, b2) y2 = Einsum <equation = "nchw->nchw"> (k2)',
        "",
        "",
    ),
    "a concatenation with what is not known": (
        "e2 = DequantizeLinear (q2, scale) [e] k2 = Conv (r1, e2, b2) "
        "[c2] p2 = Conv (r1, w2, b2) y2 = Concat <axis = -3> (k2, p2)",
        "int8[{b},{a},1,1] q2, float scale = {{0.05}}",
        "",
    ),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_exact_slices_are_found_behind_nodes_that_are_left_alone(case: str) -> None:
    nodes, weights, outputs = BETWEEN[case]
    kept = {"a": np.array([1, 2, 5, 6, 8]), "b": np.array([0, 3, 4, 7]), "c": np.array([1, 4, 5])}
    twice = 2 if "concatenation" in case else 1

    def network(a: int, b: int, c: int) -> onnx.ModelProto:
        more = f", {weights}".format(a=a, b=b) if weights else ""
        return build(f"""g (float[N,3,6,6] x) => (float[N,5,4,4] z{outputs.format(a=a, b=b)}) <
          float[{a},3,3,3] w1, float[{a}] b1, float[{b},{a},1,1] w2, float[{b}] b2,
          float[{c},{twice * b},1,1] w3, float[{c}] b3, float[5,{c},1,1] w4{more}> {{
            [c1] y1 = Conv (x, w1, b1)
            r1 = Relu (y1)
            {nodes}
            r2 = Relu (y2)
            [c3] y3 = Conv (r2, w3, b3)
            r3 = Relu (y3)
            [c4] z = Conv (r3, w4)
        }}""")

    whole = network(10, 8, 6)
    w = initializers(whole)
    inputs_3 = np.concatenate([kept["b"], 8 + kept["b"]])[: twice * len(kept["b"])]
    new = {
        "w1": w["w1"][kept["a"]],
        "b1": w["b1"][kept["a"]],
        "w2": w["w2"][kept["b"]][:, kept["a"]],
        "b2": w["b2"][kept["b"]],
        "w3": w["w3"][kept["c"]][:, inputs_3],
        "b3": w["b3"][kept["c"]],
        "w4": w["w4"][:, kept["c"]],
    }
    if "ws" in w:
        new["ws"] = w["ws"][kept["a"]][:, kept["a"]]
    found = pairs(whole, with_values(network(5, 4, 3), new))
    for name, key in {"c1": "a", "c2": "b", "c3": "c"}.items():
        if not found[name].reason:
            assert found[name].channels == tuple(kept[key]), name
            assert found[name].evidence == "weights"
    assert found["c3"].reason == ""
    assert found["c4"].evidence == "weights"


@pytest.mark.parametrize("width", ["other", "same"])
def test_blocks_that_read_channels_tell_of_them(width: str) -> None:
    # Nothing is left of the first block's weights; what reads them is an exact slice, or permuted.
    kept = dict(WHOLE, **{"1": KEPT["1"] if width == "other" else [3, 1, 2, 0, 7, 5, 6, 4]})
    student = sliced(teacher(), kept)
    rng = np.random.default_rng(7)
    fresh = {name: rng.standard_normal(initializers(student)[name].shape) for name in ("w1", "b1")}
    found = pairs(teacher(), with_values(student, fresh))
    assert found["c1"].channels == tuple(kept["1"])
    assert found["dw"].channels == tuple(kept["1"])
    assert found["c3"].evidence == "weights"


def test_blocks_of_a_stream_tell_together_what_none_tells_alone() -> None:
    # x ─▶ four Convs of two inputs ─▶ Sum ─▶ Conv ─▶ z
    names = "abde"
    nodes = " ".join(f"[{n}] y{n} = Conv (x, w{n})" for n in names)
    text = f"""g (float[N,2,4,4] x) => (float[N,3,4,4] z)
      <{", ".join(f"float[{{n}},2,1,1] w{n}" for n in names)}, float[3,{{n}},1,1] k> {{{{
        {nodes}
        s = Sum ({", ".join(f"y{n}" for n in names)})
        r = Relu (s)
        [last] z = Conv (r, k)
    }}}}"""
    whole, student = build(text.format(n=20)), build(text.format(n=10))
    kept = np.sort(np.random.default_rng(0).permutation(20)[:10])
    rng, w = np.random.default_rng(1), initializers(whole)
    new = {f"w{n}": w[f"w{n}"][kept] for n in names}
    new = {n: v + 0.1 * v.std() * rng.standard_normal(v.shape) for n, v in new.items()}
    student = with_values(student, new | {"k": 1.1 * w["k"][:, kept]})
    graphs = gs.import_onnx(whole), gs.import_onnx(student)
    partners = [Partner(n, f"y{n}", Evidence.MAP, 1.0) for n in names]
    partners.append(Partner("last", "z", Evidence.MAP, 1.0))
    found = {pair.student: pair for pair in match_channels(*graphs, partners).pairs}
    assert {found[n].channels for n in names} == {tuple(kept)}
    assert "stream" in {found[n].evidence for n in names}


def test_a_wider_student_is_refused() -> None:
    student = sliced(teacher(), KEPT)
    found = pairs(student, teacher())
    assert found["c1"].reason == "it is wider than the teacher's 'c1'"
    assert found["c1"].teacher is None
    assert found["c1"].channels is None


def test_more_rows_in_a_group_than_the_teacher_has_stay_open() -> None:
    # x ─▶ Conv ─▶ y ─▶ Conv ─▶ z: one group, with more rows than either of the teacher's two
    text = """g (float[N,4,4,4] x) => (float[N,W,4,4] z) <float[{y},4,1,1] w, float[{z},2,1,1] k> {{
        y = Conv (x, w)
        z = Conv <group = {groups}> (y, k)
    }}"""
    one = build(text.format(y=4, z=6, groups=2))
    other = build(text.format(y=2, z=4, groups=1))
    other = with_values(other, {"w": initializers(one)["w"][:2]})
    found = pairs(one, other)
    assert found["y"].channels == (0, 1)
    assert found["z"].channels is None


def test_a_depthwise_block_follows_its_input_only_where_that_is_known() -> None:
    # x ─▶ depthwise ─▶ y ─▶ Conv ─▶ c ─▶ depthwise ─▶ z, fresh depthwise weights on both sides
    text = """g (float[N,4,4,4] x) => (float[N,{c},4,4] z)
      <float[4,1,3,3] w, float[{c},4,3,3] k, float[{c},1,3,3] v> {{
        y = Conv <group = 4, pads = [1,1,1,1]> (x, w)
        c = Conv <pads = [1,1,1,1]> (y, k)
        z = Conv <group = {c}, pads = [1,1,1,1]> (c, v)
    }}"""
    one, other = build(text.format(c=6), seed=1), build(text.format(c=3), seed=2)
    other = with_values(other, {"k": initializers(one)["k"][[4, 1, 0]]})
    found = pairs(one, other)
    assert found["y"].evidence == "width"
    assert found["c"].channels == found["z"].channels == (4, 1, 0)


def test_names_say_nothing_where_weights_do() -> None:
    text = onnx.printer.to_text(sliced(teacher(), KEPT))
    renamed = re.sub(r"\b(c|y|d|g|f)(\d|d|w|r|c|g)\b", r"n_\1\2", text)
    student = with_values(onnx.parser.parse_model(renamed), {})
    found = {name.removeprefix("n_"): pair for name, pair in pairs(teacher(), student).items()}
    assert_kept(found, KEPT)


def test_blocks_without_a_counterpart_say_so() -> None:
    # The teacher's c4 is not there, so that the student's has no place.
    text = onnx.printer.to_text(teacher())
    text = re.sub(r"\[c4\].*\n", "", text).replace("(y3, y4)", "(y3, y3)")
    found = pairs(onnx.parser.parse_model(text), teacher())
    assert found["c4"].reason == "no place in the teacher fits it"
    assert found["c4"].teacher is None
    assert found["c3"].reason == ""


def test_blocks_that_cannot_be_viewed_are_listed_with_their_reason() -> None:
    # x ─▶ Conv (computed weight) ─▶ a ─▶ Conv ─▶ b ─▶ Conv (the same weights) ─▶ z
    model = build("""g (float[N,4,4,4] x, float[4,4,1,1] w) => (float[N,4,4,4] z)
      <float[4,4,1,1] k> {
        v = Neg (w)
        [computed] a = Conv (x, v)
        [one] b = Conv (a, k)
        [two] z = Conv (b, k)
    }""")
    found = pairs(model, model)
    assert found["computed"].reason.startswith("its weight 'v' is computed by Neg")
    assert found["computed"].op == "Conv"
    for name, other in (("one", "two"), ("two", "one")):
        reason = found[name].reason
        assert reason.startswith(
            f"its weights are also those of '{other}', and one of them depends"
        )


@pytest.mark.parametrize(
    ("one", "other"),
    [("teacher", "student"), ("vgg16_small", "vgg16_small_D"), ("teacher", "teacher")],
)
def test_demo_networks(one: str, other: str) -> None:
    found = pairs(onnx.load(DEMO / f"{one}.onnx"), onnx.load(DEMO / f"{other}.onnx"))
    assert {pair.evidence for pair in found.values()} == {"weights"}
    assert {pair.reason for pair in found.values()} == {""}
    assert min(pair.confidence for pair in found.values()) > 0.999
    for pair in found.values():
        assert pair.channels is not None
        assert list(pair.channels) == sorted(set(pair.channels))
