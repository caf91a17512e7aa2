"""Scales and shifts per channel fold into the linear node beside them without a change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes.fold_affine import FoldAffine
from tests.helpers import assert_same_function, build, initializers, ops

LINEAR = {  # output, shape of the input, weights, node, shape of one value per channel
    "Conv": (
        "N,6,A,B",
        "N,4,5,5",
        "{t}[6,2,3,3] w",
        "Conv <group = 2> (x, w)",
        ["6,1,1", "1,6,1,1"],
    ),
    "ConvTranspose": (
        "N,6,A,B",
        "N,4,5,5",
        "{t}[4,3,2,2] w, {t}[6] b",
        "ConvTranspose <group = 2, strides = [2,2]> (x, w, b)",
        ["6,1,1"],
    ),
    "rank 1": ("N,6,A", "N,4,9", "{t}[6,4,3] w", "Conv (x, w)", ["6,1", "1,6,1"]),
    "Gemm": (
        "N,6",
        "N,4",
        "{t}[6,4] w, {t}[6] b",
        "Gemm <transB = 1, alpha: float = 0.5, beta: float = 2.0> (x, w, b)",
        ["6", "1,6"],
    ),
    "MatMul": ("N,3,6", "N,3,4", "{t}[4,6] w", "MatMul (x, w)", ["6"]),
}
NODES = ["Mul (y, {c})", "Mul ({c}, y)", "Add (y, {c})", "Add ({c}, y)", "Sub (y, {c})"]
NODES += ["Sub ({c}, y)", "Div (y, {c})"]


def chain(op: str, nodes: list[str], shapes: list[str], dtype: str = "double") -> str:
    """x ─▶ linear node ─▶ each of the nodes ─▶ z."""
    output, data, weights, node, _ = LINEAR[op]
    lines = [f"[linear] y = {node}"]
    values = [weights.format(t=dtype)]
    for index, (text, shape) in enumerate(zip(nodes, shapes, strict=True)):
        brackets = f"[{shape}]" if shape else ""
        values.append(f"{dtype}{brackets} c{index}")
        out = "z" if index == len(nodes) - 1 else f"y{index + 1}"
        source = f"y{index}" if index else "y"
        lines.append(f"{out} = " + text.format(c=f"c{index}").replace("y", source))
    values_text = ", ".join(values)
    return f"g ({dtype}[{data}] x) => ({dtype}[{output}] z) <{values_text}> {{ {' '.join(lines)} }}"


@pytest.mark.parametrize("op", LINEAR)
@pytest.mark.parametrize("node", NODES)
def test_one_value_per_channel_folds(op: str, node: str) -> None:
    for shape in [*LINEAR[op][4], "1", ""]:
        # ONNX Runtime has no ConvTranspose in float64.
        model = build(chain(op, [node], [shape], "float" if "Transpose" in op else "double"))
        result = FoldAffine()(model)
        # A MatMul keeps its bias in an Add, as it may be there already.
        assert set(ops(result.model)) <= {op, "Conv", "Add"}
        assert sum(ops(result.model).values()) <= 1 + (op == "MatMul")
        assert_same_function(result.model, model)
        assert not FoldAffine()(result.model).changed


@settings(max_examples=40)
@given(st.data())
def test_chains_fold_whole(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from([op for op in LINEAR if op != "ConvTranspose"]))
    nodes = data.draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=5))
    shapes = [data.draw(st.sampled_from([*LINEAR[op][4], ""])) for _ in nodes]
    model = build(chain(op, nodes, shapes))
    result = FoldAffine()(model)
    assert sum(ops(result.model).values()) <= 1 + (op == "MatMul")
    assert_same_function(result.model, model)


STAYS = {
    "one value per position": ("Conv", "Mul (y, {c})", "1,1,3,3"),
    "one value per row": ("Conv", "Add (y, {c})", "3,1"),
    "more axes than the output has": ("Gemm", "Add (y, {c})", "1,1,6"),
    "channels on the last axis of a convolution": ("rank 1", "Mul (y, {c})", "7"),
    "a quotient of the constant": ("Conv", "Div ({c}, y)", "6,1,1"),
    "another operator": ("Conv", "Max (y, {c})", "6,1,1"),
}


@pytest.mark.parametrize("why", STAYS)
def test_what_is_not_affine_per_channel_stays(why: str) -> None:
    op, node, shape = STAYS[why]
    text = chain(op, [node], [shape], "float").replace(
        "N,6]", "A,B,C]" if "1,1,6" in shape else "N,6]"
    )
    model = build(text)
    assert not FoldAffine()(model).changed


def test_a_scale_that_overflows_stays() -> None:
    text = chain("Conv", ["Mul (y, {c})"], ["6,1,1"], "float16")
    model = build(text, {"c0": np.full((6, 1, 1), 60000.0), "w": np.full((6, 2, 3, 3), 3.0)})
    assert not FoldAffine()(model).changed
    quotient = chain("Conv", ["Div (y, {c})"], ["6,1,1"], "float")
    assert not FoldAffine()(build(quotient, {"c0": np.zeros((6, 1, 1))})).changed


def test_what_is_stored_in_half_precision_is_not_rounded_once_more() -> None:
    # w (float16) ─▶ Cast ─▶ Conv ─▶ BatchNormalization, or a scale that is a power of two
    model = build("""g (float[N,4,5,5] x) => (float[N,6,3,3] z)
      <float16[6,4,3,3] w, float[6] s, float two = {2}> {
        k = Cast <to = 1> (w)
        y = Conv (x, k)
        h = Mul (y, two)
        z = BatchNormalization (h, s, s, s, s)
    }""")
    result = FoldAffine()(model)
    assert ops(result.model) == {"Cast": 1, "Conv": 1, "BatchNormalization": 1}
    assert_same_function(result.model, model)


def test_an_output_that_is_read_twice_is_not_folded_over() -> None:
    # HardSwish: y ─▶ Add ─▶ Clip ─▶ Mul (y)
    model = build("""g (float[N,4,5,5] x) => (float[N,6,3,3] z)
      <float[6,4,3,3] w, float three = {3}, float low = {0}, float six = {6}> {
        y = Conv (x, w)
        a = Add (y, three)
        c = Clip (a, low, six)
        z = Mul (y, c)
    }""")
    assert not FoldAffine()(model).changed


# x ─▶ BatchNormalization ─▶ linear node ─▶ z
FRONT = """g (double[{data}] x) => (double[{out}] z)
  <double[4] s, double[4] t, double[4] m, double[4] v, {weights}> {{
    [bn] n = BatchNormalization (x, s, t, m, v)
    [linear] z = {node}
}}"""
IN_FRONT = [
    ("N,4,6,6", "N,5,A,B", "double[5,4,3,3] w, double[5] b", "Conv <strides = [2,1]> (n, w, b)"),
    ("N,4,6,6", "N,6,A,B", "double[6,2,2,3] w", "Conv <group = 2, dilations = [2,1]> (n, w)"),
    ("N,4,6,6", "N,8,A,B", "double[8,1,1,1] w", 'Conv <group = 4, auto_pad = "SAME_UPPER"> (n, w)'),
    ("N,4,6,6", "N,5,A,B", "double[5,4,3,3] w", 'Conv <auto_pad = "VALID", pads = []> (n, w)'),
    ("N,4,7", "N,5,A", "double[5,4,3] w", "Conv <pads = [0,0]> (n, w)"),
    ("N,4", "N,5", "double[4,5] w, double[5] b", "Gemm <alpha: float = 0.5> (n, w, b)"),
]


@pytest.mark.parametrize(("data", "out", "weights", "node"), IN_FRONT)
def test_batch_normalization_in_front_folds(data: str, out: str, weights: str, node: str) -> None:
    node = node.replace(", pads = []", "")
    model = build(FRONT.format(data=data, out=out, weights=weights, node=node))
    result = FoldAffine()(model)
    assert result.notes == ("BatchNormalization 'bn' folded into 'linear'",)
    assert sum(ops(result.model).values()) == 1
    assert_same_function(result.model, model)


def test_a_scale_without_a_shift_passes_through_padding() -> None:
    text = FRONT.format(
        data="N,4,6,6",
        out="N,5,6,6",
        weights="double[5,4,3,3] w",
        node="Conv <pads = [1,1,1,1]> (n, w)",
    )
    assert not FoldAffine()(build(text)).changed
    model = build(text, {"t": np.zeros(4), "m": np.zeros(4)})
    result = FoldAffine()(model)
    assert ops(result.model) == {"Conv": 1}
    assert_same_function(result.model, model)


FRONT_STAYS = {
    "a second reader": "n = BatchNormalization (x, s, s, s, s) y = Conv (n, w) z = Add (y, n)",
    "an activation between": (
        "n = BatchNormalization (x, s, s, s, s) r = Relu (n) z = Conv (r, w)"
    ),
    "channels on the last axis": "n = BatchNormalization (x, s, s, s, s) z = MatMul (n, k)",
    "shared weights": ("n = BatchNormalization (x, s, s, s, s) y = Conv (n, w) z = Conv (y, w)"),
    "an upsampling": "n = BatchNormalization (x, s, s, s, s) z = ConvTranspose (n, w)",
    "a scale that is no BatchNormalization": "n = Mul (x, one) z = Conv (n, w)",
}


@pytest.mark.parametrize("why", FRONT_STAYS)
def test_what_is_in_front_stays_with(why: str) -> None:
    model = build(f"""g (float[N,4,4,4] x) => (float[N,4,4,4] z)
      <float[4,4,1,1] w, float[4,4] k, float[4] s, float one> {{ {FRONT_STAYS[why]} }}""")
    before = set(initializers(model))
    result = FoldAffine()(model)
    assert not result.changed
    assert set(initializers(result.model)) == before


SHARED = """g (double[N,4,5,5] x1, double[N,4,7,7] x2) => (double[N,6,A,B] z1, double[N,6,C,D] z2)
  <double[6,4,3,3] w, double[6] s, double[6] t, double[6,1,1] u, double[6,1,1] v> {{
    y1 = Conv (x1, w)
    y2 = Conv <strides = [2,2]> (x2, w)
    {}
}}"""
BEHIND_USES = {
    "the same nodes": (
        "n1 = BatchNormalization (y1, s, t, t, s) z1 = Mul (n1, u)"
        "n2 = BatchNormalization (y2, s, t, t, s) z2 = Mul (u, n2)",
        {"Conv": 2},
    ),
    "another node behind": (
        "n1 = BatchNormalization (y1, s, t, t, s) z1 = Mul (n1, u)"
        "n2 = BatchNormalization (y2, s, t, t, s) z2 = Mul (n2, v)",
        {"Conv": 2, "Mul": 2},
    ),
    "others": (
        "z1 = BatchNormalization (y1, s, t, t, s) z2 = BatchNormalization (y2, t, s, s, t)",
        {"Conv": 2, "BatchNormalization": 2},
    ),
    "one only": (
        "z1 = BatchNormalization (y1, s, t, t, s) z2 = Relu (y2)",
        {"Conv": 2, "BatchNormalization": 1, "Relu": 1},
    ),
}


@pytest.mark.parametrize("case", BEHIND_USES)
def test_what_follows_all_uses_of_the_same_weights_folds(case: str) -> None:
    nodes, left = BEHIND_USES[case]
    model = build(SHARED.format(nodes))
    result = FoldAffine()(model)
    assert ops(result.model) == left
    weights = {tuple(n.input[1:]) for n in result.model.graph.node if n.op_type == "Conv"}
    assert len(weights) == 1
    assert_same_function(result.model, model)
    assert not FoldAffine()(result.model).changed


@pytest.mark.parametrize("biases", [("b", "b"), ("b", "d")])
def test_biases_that_appear_behind_a_folded_scale_stay_apart(biases: tuple[str, str]) -> None:
    nodes = "\n".join(
        f"y{i} = MatMul (x{i}, w) m{i} = Mul (y{i}, s)"
        f" h{i} = Add (m{i}, {bias}) z{i} = Mul (h{i}, t)"
        for i, bias in enumerate(biases, 1)
    )
    model = build(f"""g (double[N,4] x1, double[N,4] x2) => (double[N,6] z1, double[N,6] z2)
      <double[4,6] w, double[6] s, double[6] t, double[6] b, double[6] d> {{ {nodes} }}""")
    result = FoldAffine()(model)
    left = 0 if biases[0] == biases[1] else 2
    assert ops(result.model).get("Mul", 0) == left
    assert_same_function(result.model, model)


SUMS = {
    "branches": "p = Conv (x, a, b)  q = Conv (x, c)  s = Add (p, q)",
    "a Sum of three": "p = Conv (x, a, b)  q = Conv (x, c)  r = Conv (x, d)  s = Sum (p, q, r)",
    "sums of sums": (
        "p = Conv (x, a)  q = Conv (x, c)  r = Conv (x, d, b)  t = Add (p, q)  s = Add (r, t)"
    ),
    "other inputs": "i = Relu (x)  p = Conv (x, a)  q = Conv (i, c)  s = Add (p, q)",
}
SUMS_THAT_STAY = {
    "a shortcut": "p = Conv (x, a)  s = Add (p, x)",
    "a term that is read twice": (
        "p = Conv (x, a)  q = Conv (x, c)  t = Add (p, q)  r = Relu (p)  u = Conv (r, d)"
        "  s = Add (t, u)"
    ),
}
HEAD_OF_SUMS = """g (float[N,4,3,3] x) => (float[N,4,3,3] y)
    <float[4,4,1,1] a, float[4] b, float[4,4,1,1] c, float[4,4,1,1] d, float[4] k, float[4] l,
     float[4] m, float[4] v>"""


@pytest.mark.parametrize("form", SUMS)
def test_what_is_behind_a_sum_folds_into_its_terms(form: str) -> None:
    nodes = f"{SUMS[form]}  y = BatchNormalization (s, k, l, m, v)"
    model = build(f"{HEAD_OF_SUMS} {{ {nodes} }}")
    result = FoldAffine()(model)
    assert "BatchNormalization" not in ops(result.model)
    assert_same_function(model, result.model)
    assert not FoldAffine()(result.model).changed


@pytest.mark.parametrize("form", SUMS_THAT_STAY)
def test_what_is_behind_a_sum_of_other_things_stays(form: str) -> None:
    nodes = f"{SUMS_THAT_STAY[form]}  y = BatchNormalization (s, k, l, m, v)"
    result = FoldAffine()(build(f"{HEAD_OF_SUMS} {{ {nodes} }}"))
    assert ops(result.model)["BatchNormalization"] == 1
