"""A chain of linear nodes is one linear map, of the composed kernel."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.composed_kernels import Kernel, compose, next_in_chain
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from tests.helpers import build, random_feeds, run


def views(text: str) -> tuple[gs.Graph, list[Linear]]:
    graph = gs.import_onnx(build(text))
    return graph, [view for view in find_linear(graph) if isinstance(view, Linear)]


CONV = "double[N,6,17] x"
# Attributes and weights of each node, first to last, on (N, 6, 17).
CHAINS = {
    "k then 1": [("", (8, 6, 3)), ("", (5, 8, 1))],
    "1 then k": [("", (4, 6, 1)), ("", (5, 4, 3))],
    "k then k": [("", (4, 6, 3)), ("", (5, 4, 2))],
    "strides": [("strides = [2]", (4, 6, 3)), ("strides = [3]", (5, 4, 2))],
    "dilations": [("dilations = [2]", (4, 6, 3)), ("dilations = [3]", (5, 4, 2))],
    "all of it": [
        ("strides = [2], dilations = [3]", (4, 6, 2)),
        ("dilations = [2]", (5, 4, 3)),
    ],
    "1 with a stride": [("strides = [2]", (4, 6, 1)), ("", (5, 4, 3))],
    "depthwise, pointwise": [("group = 6", (12, 1, 3)), ("", (5, 12, 1))],
    "pointwise, depthwise": [("", (9, 6, 1)), ("group = 9", (9, 1, 3))],
    "groups": [("group = 2", (8, 3, 2)), ("group = 2", (6, 4, 2))],
    "other groups": [("group = 6", (12, 1, 2)), ("group = 4", (8, 3, 2))],
    "Tucker": [("", (3, 6, 1)), ("strides = [2]", (4, 3, 3)), ("", (7, 4, 1))],
    "four": [
        ("group = 3", (6, 2, 2)),
        ("", (4, 6, 1)),
        ("group = 2", (4, 2, 3)),
        ("", (5, 4, 1)),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_composed_kernel_gives_the_same_outputs(chain: str) -> None:
    parts = CHAINS[chain]
    shapes = ", ".join(
        f"double[{','.join(map(str, shape))}] w{i}" for i, (_, shape) in enumerate(parts)
    )
    nodes = [
        f"y{i} = Conv <{attributes}> ({f'y{i - 1}' if i else 'x'}, w{i})".replace("<>", "")
        for i, (attributes, _) in enumerate(parts)
    ]
    last = f"y{len(parts) - 1}"
    text = f"g (double[N,6,17] x) => (double[N,A,B] {last}) <{shapes}> {{ {chr(10).join(nodes)} }}"
    graph, linears = views(text)
    assert next_in_chain(graph, linears) == {i: i + 1 for i in range(len(parts) - 1)}
    kernels = [kernel for view in linears if (kernel := Kernel.of(view)) is not None]
    composed = compose(kernels)
    groups, n, inputs, taps = composed.weights.shape
    whole = build(
        f"""g (double[N,6,17] x) => (double[N,A,B] {last}) <double[{groups * n},{inputs},{taps}] w>
        {{ {last} = Conv <group = {groups}, strides = [{composed.strides[0]}],
          dilations = [{composed.dilations[0]}]> (x, w) }}""",
        {"w": composed.weights.reshape(-1, inputs, taps)},
    )
    model = build(text)
    feeds = random_feeds(model)
    expected = run(model, feeds)[last]
    np.testing.assert_allclose(run(whole, feeds)[last], expected, rtol=1e-12, atol=1e-12)
    few = compose([*kernels[:-1], kernels[-1].sampled(2)]).rows
    assert len(few) < n * groups or kernels[-1].weights.shape[1] == 1
    distances = np.abs(few[:, np.newaxis] - composed.rows).max(axis=(2, 3))
    assert distances.min(axis=1).max() < 1e-12


def test_two_spatial_axes_are_composed_each_by_itself() -> None:
    graph, linears = views("""g (double[N,3,8,9] x) => (double[N,A,B,C] z)
      <double[4,3,3,1] v, double[5,4,1,2] w> {
        y = Conv <strides = [2, 1], pads = [1, 0, 1, 0]> (x, v)
        z = Conv <strides = [1, 3], dilations = [1, 4], pads = [0, 2, 0, 2]> (y, w)
    }""")
    first, second = (kernel for v in linears if (kernel := Kernel.of(v)) is not None)
    composed = second.behind(first)
    assert (composed.kernel_shape, composed.strides, composed.dilations) == ((3, 2), (2, 3), (1, 4))
    expected = np.einsum("nmb,mca->ncab", second.weights[0, :, :, 0], first.weights[0, :, :, :, 0])
    np.testing.assert_allclose(composed.weights[0], expected, rtol=1e-12)
    assert next_in_chain(graph, linears) == {0: 1}


def test_matrices_are_composed_whatever_holds_them() -> None:
    graph, linears = views("""g (double[N,4] x) => (double[N,3] z)
      <double[4,2] u, double[5,2] v, double[5] b, double[5,3] w> {
        p = MatMul (x, u)
        q = Gemm <transB = 1, alpha = 0.5> (p, v, b)
        z = MatMul (q, w)
    }""")
    kernels = [kernel for v in linears if (kernel := Kernel.of(v)) is not None]
    u, v, w = (view.matrix[0] for view in linears)
    np.testing.assert_allclose(compose(kernels).weights, (w @ v @ u)[np.newaxis], rtol=1e-12)
    assert next_in_chain(graph, linears) == {0: 1, 1: 2}


def test_what_does_not_fit_is_not_composed() -> None:
    one, other = (Kernel(np.ones((1, 4, c, 2)), (1,), (1,)) for c in (3, 5))
    with pytest.raises(ValueError, match="does not read the channels"):
        other.behind(one)
    with pytest.raises(ValueError, match="another number of axes"):
        Kernel(np.ones((1, 2, 4)), (), ()).behind(one)


@pytest.mark.parametrize(
    ("between", "chained"),
    [
        ("p = Identity (y)", True),
        ("p = Dropout (y)", True),
        ("p = Relu (y)", False),
        ("p = Add (y, y)", False),
        ("p = MaxPool <kernel_shape = [1, 1]> (y)", False),
        ("p, m = Dropout (y) n = Not (m)", False),
    ],
)
def test_only_what_hands_on_values_may_be_between(between: str, chained: bool) -> None:
    graph, linears = views(f"""g (float[N,4,5,5] x) => (float[N,4,5,5] z)
      <float[4,4,1,1] v, float[4,4,1,1] w> {{
        y = Conv (x, v)
        {between}
        z = Conv (p, w)
    }}""")
    assert next_in_chain(graph, linears) == ({0: 1} if chained else {})


@pytest.mark.parametrize(
    ("between", "reads", "chained"),
    [
        ("q = Reshape (y, rows)", 5, True),
        ("p = Reshape (y, rows) r = Identity (p) q = Reshape (r, tokens)", 5, True),
        ("q = Flatten (y)", 20, False),
        ("q = Reshape (y, halves)", 10, False),
        ("p = Relu (y) q = Reshape (p, rows)", 5, False),
    ],
)
def test_rows_of_positions_may_be_made_between_matrices(
    between: str, reads: int, chained: bool
) -> None:
    values = {"rows": [-1, 5], "tokens": [-1, 4, 5], "halves": [-1, 2, 10]}
    text = f"""g (float[N,4,3] x) => (float[A,B] z) <float[3,5] v, float[{reads},2] w,
      int64[2] rows, int64[3] tokens, int64[3] halves> {{
        y = MatMul (x, v)
        {between}
        t = MatMul (q, w)
        z = Flatten (t)
    }}"""
    graph = gs.import_onnx(build(text, values))
    linears = [view for view in find_linear(graph) if isinstance(view, Linear)]
    assert next_in_chain(graph, linears) == ({0: 1} if chained else {})


def test_a_second_reader_or_an_output_ends_a_chain() -> None:
    # x ─▶ y ─▶ p (an output too) ─▶ q ─┬─▶ r
    #                                    └─▶ s
    graph, linears = views("""g (float[N,4,5,5] x) => (float[N,4,5,5] p, float[N,4,5,5] r,
      float[N,4,5,5] s) <float[4,4,1,1] v, float[4,4,1,1] w> {
        y = Conv (x, v)
        p = Conv (y, w)
        q = Conv (p, w)
        r = Conv (q, w)
        s = Conv (q, v)
    }""")
    assert next_in_chain(graph, linears) == {0: 1}


def test_a_transposed_convolution_is_in_no_chain() -> None:
    graph, linears = views("""g (float[N,4,5,5] x) => (float[N,A,B,C] z)
      <float[4,4,2,2] v, float[4,4,1,1] w> {
        y = ConvTranspose <strides = [2, 2]> (x, v)
        z = Conv (y, w)
    }""")
    assert Kernel.of(linears[0]) is None
    assert next_in_chain(graph, linears) == {}
