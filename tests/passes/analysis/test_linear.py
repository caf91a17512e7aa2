"""The view of linear nodes: what it shows, what it writes, what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from fskd_onnx.passes.analysis.linear import Linear, Refusal, find_linear
from tests.helpers import build, linears, random_feeds, run
from tests.passes.linear_forms import FORMS, evaluate


@pytest.mark.parametrize("form", FORMS)
def test_the_view_is_what_the_node_computes(form: str) -> None:
    model = build(FORMS[form])
    linear = linears(model)["n"]
    feeds = random_feeds(model)
    expected = run(model, feeds)["y"]
    np.testing.assert_allclose(
        evaluate(linear, feeds["x"]).reshape(expected.shape), expected, rtol=1e-12, atol=1e-12
    )
    assert linear.output.name == "y"
    assert linear.input.name == "x"
    assert linear.shared_with is None


REFUSALS = [
    (
        "g (float[N,4,5] x, float[6,4,1] w) => (float[N,6,5] y) { [n] y = Conv (x, w) }",
        "its weight 'w' is not an initializer",
    ),
    (
        "g (float[N,4,5] x, float[6] b) => (float[N,6,5] y) <float[6,4,1] w>"
        "{ [n] y = Conv (x, w, b) }",
        "its bias 'b' is not an initializer",
    ),
    (
        "g (float[2,4] x) => (float[2,6] y) <float[4,6] w, float[2,6] b>{ [n] y = Gemm (x, w, b) }",
        "its bias 'b' is not one value per channel",
    ),
    (
        "g (float[4,2] x) => (float[2,6] y) <float[4,6] w> { [n] y = Gemm <transA = 1> (x, w) }",
        "its input is transposed",
    ),
    (
        "g (float[N,3,4] x) => (float[N,3,6] y) <float[1,4,6] w> { [n] y = MatMul (x, w) }",
        "its weight 'w' is not a matrix",
    ),
    (
        "g (int32[N,4] x) => (int32[N,6] y) <int32[4,6] w> { [n] y = MatMul (x, w) }",
        "its weight 'w' is not of type float16, float32 or float64",
    ),
    (
        "g (bfloat16[N,4] x) => (bfloat16[N,2] y) <bfloat16[4,2] w = {1,2,3,4,5,6,7,8}>"
        "{ [n] y = MatMul (x, w) }",
        "its weight 'w' is not of type float16, float32 or float64",
    ),
    (
        "g (float[4,2] x) => (float[6,2] y) <float[6,4] w> { [n] y = MatMul (w, x) }",
        "its input 'w' is a constant",
    ),
    (
        "g (float[N,4] x) => (float[N,6] y, float[4,6] w) <float[4,6] w> { [n] y = MatMul (x, w) }",
        "its weight 'w' is also an output of the graph",
    ),
]


@pytest.mark.parametrize(("text", "reason"), REFUSALS)
def test_every_refusal_has_a_reason(text: str, reason: str) -> None:
    # x ─▶ [one node that looks linear] ─▶ y
    [refusal] = find_linear(gs.import_onnx(build(text)))
    assert isinstance(refusal, Refusal)
    assert refusal.name == "n"
    assert refusal.reason.startswith(reason)


def test_a_sparse_weight_is_refused() -> None:
    # x ─▶ MatMul(sparse w) ─▶ y
    model = build("g (float[N,2] x) => (float[N,2] y) <float[2,2] w> { [n] y = MatMul (x, w) }")
    del model.graph.initializer[:]
    values = numpy_helper.from_array(np.array([3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2, 2]))
    [refusal] = find_linear(gs.import_onnx(model))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "its weight 'w' is a sparse initializer"


def test_products_of_activations_and_nodes_without_weights_are_not_listed() -> None:
    # x ─▶ MatMul(x, x) ─▶ my.Gemm (a vector) ─▶ y
    model = build("""<ir_version: 8, opset_import: ["": 17, "my": 1]>
    g (float[4,4] x) => (float[4,4] y) <float[1,4] w> { h = MatMul (x, x) y = my.Gemm (h, w) }""")
    assert find_linear(gs.import_onnx(model)) == []


@pytest.mark.parametrize(
    "text",
    [
        # the product is an output
        "g (float[N,4] x) => (float[N,6] h, float[N,6] y) <float[4,6] w, float[6] b>"
        "{ h = MatMul (x, w) y = Add (h, b) }",
        # it has two readers
        "g (float[N,4] x) => (float[N,6] y, float[N,6] z) <float[4,6] w, float[6] b>"
        "{ h = MatMul (x, w) y = Add (h, b) z = Relu (h) }",
        # not one value per channel
        "g (float[2,4] x) => (float[2,6] y) <float[4,6] w, float[2,6] b>"
        "{ h = MatMul (x, w) y = Add (h, b) }",
        "g (float[N,4] x) => (float[N,6] y) <float[4,6] w, float b>"
        "{ h = MatMul (x, w) y = Add (h, b) }",
        # the Add stands in a body
        "g (float[N,4] x, bool c) => (float[N,6] y) <float[4,6] w, float[6] b> {"
        "  h = MatMul (x, w)"
        "  y = If (c) <then_branch = t () => (float[N,6] p) { p = Add (h, b) },"
        "              else_branch = e () => (float[N,6] q) "
        "                <float[1] zero = {0}> { q = Expand (zero, s) }>"
        "}",
    ],
)
def test_an_add_that_is_no_bias_is_left_alone(text: str) -> None:
    # x ─▶ MatMul ─▶ h ─▶ Add ─▶ y
    if "Expand" in text:
        text = text.replace("float[6] b>", "float[6] b, int64[2] s = {1, 6}>")
    [linear] = find_linear(gs.import_onnx(build(text)))
    assert isinstance(linear, Linear)
    assert linear.bias_node is None
    assert linear.output.name == "h"


def test_names_are_the_nodes_own_or_those_of_the_outputs() -> None:
    # x ─▶ a ─▶ twin ─▶ b ─▶ twin ─▶ c ─▶ nameless ─▶ d ─▶ + bias ─▶ e
    model = build("""g (float[N,4] x) => (float[N,4] e) <float[4,4] w, float[4] t> {
        [one] a = MatMul (x, w)
        [twin] b = MatMul (a, w)
        [twin] c = MatMul (b, w)
        d = MatMul (c, w)
        e = Add (d, t)
    }""")
    views = find_linear(gs.import_onnx(model))
    assert [view.name for view in views] == ["one", "b", "c", "e"]
    assert [view.shared_with for view in views if isinstance(view, Linear)] == [
        "twin",
        "one",
        "one",
        "one",
    ]


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["", "a", "c"], ["a", "b", "c"]),  # a node has the name of another's output
        (["b", "", ""], ["a", "b", "c"]),
        (["b", "c", "a"], ["a", "b", "c"]),  # in a circle
        (["b", "b", "a"], ["a", "b", "c"]),
        (["a", "b", "c"], ["a", "b", "c"]),  # its own output is no other's
        (["one", "b", "b"], ["one", "b", "c"]),
        (["p", "", "three"], ["a", "b", "three"]),  # of a product in front of its bias
        (["x", "r", "w"], ["x", "r", "w"]),  # of what no listed node writes
    ],
)
def test_keys_are_unique_whatever_names_nodes_have(names: list[str], keys: list[str]) -> None:
    # x ─▶ MatMul ─▶ a ─▶ Relu ─▶ MatMul ─▶ p ─▶ + bias ─▶ b ─▶ refused MatMul ─▶ c
    labels = [f"[{name}]" if name else "" for name in names]
    model = build(f"""g (float[4,4] x) => (float[4,4] c)
      <float[4,4] w, float[4] t> {{
        {labels[0]} a = MatMul (x, w)
        r = Relu (a)
        {labels[1]} p = MatMul (r, w)
        b = Add (p, t)
        {labels[2]} c = Gemm <transA = 1> (b, w)
    }}""")
    views = find_linear(gs.import_onnx(model))
    assert [type(view).__name__ for view in views] == ["Linear", "Linear", "Refusal"]
    assert [view.name for view in views] == keys


def test_a_cast_that_two_nodes_read_is_shared() -> None:
    # x ─▶ one ─▶ y ─▶ two ─▶ z with one weight behind one Cast, or behind two
    for casts, second in (("", "w"), ("v = Cast <to = 1> (ws)", "v")):
        model = build(f"""g (float[N,4] x) => (float[N,4] z) <float16[4,4] ws> {{
            w = Cast <to = 1> (ws) {casts}
            [one] y = MatMul (x, w)
            [two] z = MatMul (y, {second})
        }}""")
        views = find_linear(gs.import_onnx(model))
        assert all(isinstance(view, Linear) and view.shared_with for view in views)


@pytest.mark.parametrize("form", FORMS)
def test_the_shape_is_that_of_the_matrix(form: str) -> None:
    linear = linears(build(FORMS[form]))["n"]
    assert linear.shape == linear.matrix.shape
    assert linear.shape[0] * linear.shape[1] == linear.width


def test_the_shape_of_a_transposed_convolution_is_that_of_its_matrix() -> None:
    model = build(
        "g (double[N,4,5] x) => (double[N,6,A] y) <double[4,3,2] w>"
        "{ [n] y = ConvTranspose <group = 2> (x, w) }"
    )
    linear = linears(model)["n"]
    assert linear.shape == linear.matrix.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("dtype", "attributes", "expected"),
    [
        ("float16", "", np.float16),
        ("float", "", np.float32),
        ("double", "", np.float64),
        ("float", "<alpha: float = 0.7>", np.float64),
        ("float16", "<transB = 1>", np.float16),
    ],
)
def test_native_weights_are_the_matrix_in_its_own_type(
    dtype: str, attributes: str, expected: type[np.floating]
) -> None:
    model = build(
        f"g ({dtype}[N,4] x) => ({dtype}[N,4] y) <{dtype}[4,4] w>"
        f"{{ [n] y = Gemm {attributes} (x, w) }}"
    )
    linear = linears(model)["n"]
    assert linear.native.dtype == expected
    assert linear.matrix.dtype == np.float64
    np.testing.assert_array_equal(linear.native, linear.matrix)
