"""Sums of linear branches of one input become one linear node, without a change."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import AffineMap, FoldAffine, MergeBranches, ReplaceWeights, export
from fskd_onnx.passes.branch_sums import find_sums
from fskd_onnx.passes.merge_branches import give_back
from tests.helpers import assert_same_function, build, initializers, linears, ops

NORM = "{t}[6] s, {t}[6] t, {t}[6] m, {t}[6] v"
# Of x: what the weights are, what computes the sum z, and the shape of the merged weight.
FORMS: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "RepVGG": (
        f"{{t}}[6,6,3,3] a, {{t}}[6] b, {{t}}[6,6,1,1] c, {{t}}[6] d, {NORM}",
        """p = Conv <pads = [1,1,1,1]> (x, a, b)
           q = Conv (x, c, d)
           i = BatchNormalization (x, s, t, m, v)
           y = Add (p, q)
           z = Add (i, y)""",
        (6, 6, 3, 3),
    ),
    "one Sum": (
        "{t}[6,6,3,3] a, {t}[6,6,1,1] c",
        """p = Conv <pads = [1,1,1,1]> (x, a)
           q = Conv (x, c)
           z = Sum (p, x, q)""",
        (6, 6, 3, 3),
    ),
    "strides": (
        "{t}[8,6,3,3] a, {t}[8] b, {t}[8,6,1,1] c",
        """p = Conv <pads = [1,1,1,1], strides = [2,2]> (x, a, b)
           q = Conv <strides = [2,2]> (x, c)
           z = Add (p, q)""",
        (8, 6, 3, 3),
    ),
    "depthwise": (
        "{t}[6,1,5,5] a, {t}[6,1,3,3] c, {t}[6,1,1,1] e",
        """p = Conv <group = 6, pads = [2,2,2,2]> (x, a)
           q = Conv <group = 6, pads = [1,1,1,1]> (x, c)
           r = Conv <group = 6> (x, e)
           u = Add (p, q)
           w = Add (u, r)
           z = Add (w, x)""",
        (6, 1, 5, 5),
    ),
    "other groups": (
        "{t}[12,3,3,3] a, {t}[12,2,1,1] c",
        """p = Conv <group = 2, pads = [1,1,1,1]> (x, a)
           q = Conv <group = 3> (x, c)
           z = Add (p, q)""",
        (12, 6, 3, 3),
    ),
    "several of one size": (
        "{t}[4,6,3,3] a, {t}[4,6,3,3] b, {t}[4,6,3,3] c",
        """p = Conv <pads = [1,1,1,1]> (x, a)
           q = Conv <pads = [1,1,1,1]> (x, b)
           r = Conv <auto_pad = "SAME_UPPER"> (x, c)
           y = Add (p, q)
           z = Add (y, r)""",
        (4, 6, 3, 3),
    ),
    "dilations": (
        "{t}[6,6,3,3] a, {t}[6,6,3,3] b",
        """p = Conv <pads = [2,2,2,2], dilations = [2,2]> (x, a)
           q = Conv <pads = [1,1,1,1]> (x, b)
           z = Add (p, q)""",
        (6, 6, 5, 5),
    ),
    "a dilation and a point": (
        "{t}[6,6,3,3] a, {t}[6,6,1,1] b",
        """p = Conv <pads = [2,2,2,2], dilations = [2,2]> (x, a)
           q = Conv (x, b)
           z = Add (p, q)""",
        (6, 6, 3, 3),
    ),
    "rows, columns, square": (
        "{t}[5,6,1,3] a, {t}[5,6,3,1] b, {t}[5,6,3,3] c",
        """p = Conv <pads = [0,1,0,1]> (x, a)
           q = Conv <pads = [1,0,1,0]> (x, b)
           r = Conv <pads = [1,1,1,1]> (x, c)
           z = Sum (p, q, r)""",
        (5, 6, 3, 3),
    ),
    "one pad at the end": (
        "{t}[5,6,2,2] a, {t}[5,6,1,1] b",
        """p = Conv <pads = [0,0,1,1]> (x, a)
           q = Conv (x, b)
           z = Add (p, q)""",
        (5, 6, 2, 2),
    ),
    "a convolution and its input": (
        "{t}[6,6,3,3] a, {t}[1,6,1,1] c",
        """p = Conv <pads = [1,1,1,1]> (x, a)
           k = Mul (x, c)
           z = Add (k, p)""",
        (6, 6, 3, 3),
    ),
}


def model(form: str, dtype: str = "float", rest: str = "end = Relu (z)") -> onnx.ModelProto:
    values, nodes, _ = FORMS[form]
    text = f"g ({dtype}[N,6,7,8] x) => ({dtype}[N,A,B,C] end) <{values.format(t=dtype)}>"
    return build(f"{text} {{ {nodes} {rest} }}")


@pytest.mark.parametrize("form", FORMS)
def test_a_sum_becomes_one_convolution(form: str) -> None:
    before = model(form)
    result = MergeBranches()(before)
    assert len(result.notes) == 1
    assert ops(result.model) == {"Conv": 1, "Relu": 1}
    weight = result.model.graph.node[0].input[1]
    assert initializers(result.model)[weight].shape == FORMS[form][2]
    assert_same_function(result.model, before)
    assert not MergeBranches()(result.model).changed


@pytest.mark.parametrize("form", FORMS)
def test_in_double_precision_nothing_is_lost(form: str) -> None:
    before = model(form, "double")
    assert_same_function(MergeBranches()(before).model, before)


MATRICES = {
    "Gemm": ("N,4", "c = Gemm (x, a, b) d = Gemm <transB = 1, alpha = 0.5> (x, k, b)"),
    "MatMul": ("N,3,4", "m = MatMul (x, a) c = Add (m, b) n = MatMul (x, k) d = Add (b, n)"),
    "MatMul without biases": ("N,3,4", "c = MatMul (x, a) d = MatMul (x, k)"),
    "both": ("N,4", "m = MatMul (x, a) c = Add (m, b) d = Gemm (x, k)"),
}


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("form", MATRICES)
def test_matrices_add_up_as_well(form: str, shortcut: bool) -> None:
    shape, nodes = MATRICES[form]
    end = "s = Sum (c, x, d)" if shortcut else "s = Add (c, d)"
    before = build(
        f"g (float[{shape}] x) => (float[{shape}] z) <float[4,4] a, float[4,4] k, float[4] b>"
        f"{{ {nodes} {end} z = Relu (s) }}"
    )
    result = MergeBranches()(before)
    counts = ops(result.model)
    assert counts.pop("Gemm", 0) + counts.pop("MatMul", 0) == 1
    assert counts.pop("Add", 0) <= 1
    assert counts == {"Relu": 1}
    assert_same_function(result.model, before)


KEPT = {
    "another input": "p = Conv (x, a) u = Relu (x) q = Conv (u, b) z = Add (p, q)",
    "an activation": "p = Conv (x, a) u = Relu (p) q = Conv (x, b) z = Add (u, q)",
    "a second reader": "p = Conv (x, a) q = Conv (x, b) y = Add (p, q) z = Mul (p, y)",
    "a shortcut from elsewhere": "u = Relu (x) p = Conv (u, a) q = Conv (p, b) z = Add (q, x)",
    "a constant": "p = Conv (x, a) z = Add (p, c)",
    "a product": "p = Conv (x, a) q = Conv (x, b) z = Mul (p, q)",
    "in a row": "p = Conv (x, a) q = Conv (p, b) z = Add (q, x)",
    "one position broadcast": "g = GlobalAveragePool (x) p = Conv (x, a) q = Conv (g, b)"
    " z = Add (p, q)",
    "another scale": "w = Sigmoid (x) u = Mul (x, w) p = Conv (x, a) z = Add (p, u)",
}


@pytest.mark.parametrize("form", KEPT)
def test_what_is_no_sum_of_branches_stays(form: str) -> None:
    before = build(f"""g (float[N,4,6,6] x) => (float[N,4,6,6] z)
      <float[4,4,1,1] a, float[4,4,1,1] b, float[4,6,6] c> {{ {KEPT[form]} }}""")
    assert not MergeBranches()(before).changed


@pytest.mark.parametrize(
    ("one", "other"),
    [("pads = [1,1,1,1]", "pads = [0,0,0,0]"), ("strides = [2,2]", "strides = [1,1]")],
)
def test_positions_have_to_agree(one: str, other: str) -> None:
    # Of 3 x 3 on an image of one position broadcast, the outputs differ in extent.
    before = build(f"""g (float[N,4,3,3] x) => (float[N,4,A,B] z)
      <float[4,4,3,3] a, float[4,4,3,3] b> {{
        p = Conv <{one}, auto_pad = "NOTSET"> (x, a)
        q = Conv <{other}, auto_pad = "NOTSET"> (x, b)
        z = Add (p, q)
    }}""")
    assert not MergeBranches()(before).changed


def test_a_branch_that_is_an_output_stays() -> None:
    before = build("""g (float[N,4,6,6] x) => (float[N,4,6,6] z, float[N,4,6,6] p)
      <float[4,4,1,1] a, float[4,4,1,1] b> {
        p = Conv (x, a)
        q = Conv (x, b)
        z = Add (p, q)
    }""")
    assert not MergeBranches()(before).changed


def test_the_inner_sum_is_merged_where_a_residual_follows() -> None:
    # x ─▶ Relu ─┬─▶ Conv ─▶ + ─▶ + ─▶ z, the shortcut from in front of the Relu
    before = build("""g (float[N,4,6,6] x) => (float[N,4,6,6] z)
      <float[4,4,3,3] a, float[4,4,1,1] b> {
        u = Relu (x)
        p = Conv <pads = [1,1,1,1]> (u, a)
        q = Conv (u, b)
        y = Add (p, q)
        z = Add (y, x)
    }""")
    result = MergeBranches()(before)
    assert ops(result.model) == {"Relu": 1, "Conv": 1, "Add": 1}
    assert_same_function(result.model, before)


def test_only_the_named_sums_are_merged_and_a_normalization_behind_folds() -> None:
    before = build("""g (float[N,4,6,6] x) => (float[N,4,6,6] z) <float[4,4,3,3] a,
      float[4,4,1,1] b, float[4] s, float[4] t, float[4] m, float[4] v> {
        p = Conv <pads = [1,1,1,1]> (x, a)
        q = Conv (x, b)
        y = Add (p, q)
        n = BatchNormalization (y, s, t, m, v)
        u = Relu (n)
        k = Conv (u, b)
        z = Add (k, u)
    }""")
    assert not MergeBranches({"other"})(before).changed
    result = MergeBranches({"y"})(before)
    assert ops(result.model) == {"Conv": 2, "BatchNormalization": 1, "Relu": 1, "Add": 1}
    folded = FoldAffine()(result.model).model
    assert ops(folded) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert_same_function(folded, before)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_fitted_to_a_sum_goes_to_its_largest_branch(form: str) -> None:
    separate = gs.import_onnx(before := model(form, "double"))
    (branches,) = find_sums(separate)
    if not branches.is_spanned:
        assert form in ("dilations", "other groups", "a dilation and a point")
        return
    merged = MergeBranches()(before).model
    (view,) = linears(merged).values()
    rng = np.random.default_rng(1)
    wanted = AffineMap(
        view.matrix + rng.standard_normal(view.shape), rng.standard_normal(view.shape[:2])
    )
    fitted = ReplaceWeights({view.name: wanted})(merged).model
    notes = give_back(separate, gs.import_onnx(merged), gs.import_onnx(fitted))
    assert len(notes) == 1
    result = export(separate, like=before)
    assert_same_function(result, fitted)
    old, new = initializers(before), initializers(result)
    largest = {branches.largest.weight.name}
    changed = {n for n, v in old.items() if not np.array_equal(v, new[n])}
    assert changed <= {*largest, *(c.name for c in [branches.largest.bias_constant] if c)}
    assert largest <= changed


def test_what_was_not_fitted_keeps_its_bytes() -> None:
    before = model("RepVGG")
    separate, merged = gs.import_onnx(before), MergeBranches()(before).model
    assert give_back(separate, gs.import_onnx(merged), gs.import_onnx(merged)) == []
    assert initializers(export(separate, like=before)).keys() == initializers(before).keys()
