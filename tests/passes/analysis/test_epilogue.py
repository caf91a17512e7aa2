"""Where a block's error is seen: at its output, behind a sum, behind a clipping activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue, find_epilogue
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.nodes import nodes_in_bodies
from fskd_onnx.passes.analysis.shapes import KnownShapes
from tests.helpers import build

INF = math.inf


def epilogue(
    behind: str,
    outputs: str = "z",
    opset: int = 17,
    values: Mapping[str, float] = MappingProxyType({}),
) -> Epilogue:
    """Read what is behind the first of two convolutions of one input, y and k."""
    named = ", ".join(f"float {name}" for name in values)
    results = ", ".join(f"float[N,4,5] {name}" for name in outputs.split())
    model = build(
        f"""g (float[N,3,5] x, bool yes) => ({results}) <float[4,3,1] w, float[4,3,1] v,
          float[4,1] c{", " if named else ""}{named}> {{
            [n] y = Conv (x, w)
            [m] k = Conv (x, v)
            {behind}
        }}""",
        {name: np.array(value) for name, value in values.items()},
        opset=opset,
    )
    graph = gs.import_onnx(model)
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    return find_epilogue(graph, linear, nodes_in_bodies(graph), KnownShapes(graph))


ACTIVATIONS = [  # behind y, its bounds
    ("z = Relu (y)", (0.0, INF)),
    ("z = Clip (y, low, high)", (0.0, 6.0)),
    ("z = Clip (y, low)", (0.0, INF)),
    ("z = Clip (y, , high)", (-INF, 6.0)),
    ("z = Clip (y)", (-INF, INF)),
    ("z = LeakyRelu (y)", (-INF, INF)),
    ("z = Sigmoid (y)", (-INF, INF)),
    ("r = Identity (y) z = Relu (r)", (-INF, INF)),
]


@pytest.mark.parametrize(("behind", "bounds"), ACTIVATIONS)
def test_activations(behind: str, bounds: tuple[float, float]) -> None:
    # x ─▶ Conv ─▶ y ─▶ activation ─▶ z
    values = {"low": 0.0} if "low" in behind else {}
    values |= {"high": 6.0} if "high" in behind else {}
    seen = epilogue(behind, values=values)
    assert seen == Epilogue(low=bounds[0], high=bounds[1])
    assert seen.clips == (bounds != (-INF, INF))
    assert seen.without_sum() == seen


@pytest.mark.parametrize(
    ("attributes", "bounds"),
    [
        ("<min: float = 0.0, max: float = 6.0>", (0.0, 6.0)),
        ("<min: float = -1.0>", (-1.0, INF)),
        ("<max: float = 1.0>", (-INF, 1.0)),
    ],
)
def test_bounds_that_are_attributes(attributes: str, bounds: tuple[float, float]) -> None:
    assert epilogue(f"z = Clip {attributes} (y)", opset=10) == Epilogue(
        low=bounds[0], high=bounds[1]
    )


def test_bounds_that_are_computed_are_not_known() -> None:
    assert epilogue("m = ReduceMax <keepdims = 0> (x) z = Clip (y, , m)") == Epilogue()


SUMS = [  # behind y, the epilogue
    ("s = Add (y, k) z = Relu (s)", Epilogue("k", "s", 0.0, INF)),
    ("s = Add (k, y) z = Relu (s)", Epilogue("k", "s", 0.0, INF)),
    ("s = Sum (k, y) z = Relu (s)", Epilogue("k", "s", 0.0, INF)),
    ("s = Add (y, k) z = Tanh (s)", Epilogue("k", "s")),
    ("z = Add (y, k)", Epilogue("k", "z")),
    ("s = Add (y, k) r = Relu (s) z = Add (s, r)", Epilogue("k", "s")),
    ("s = Sum (k, y, k) z = Relu (s)", Epilogue()),
    ("s = Sub (y, k) z = Relu (s)", Epilogue()),
    ("s = Add (y, c) z = Relu (s)", Epilogue()),
    ("s = Add (y, y) z = Relu (s)", Epilogue()),
    ("r = Relu (y) z = Add (r, k)", Epilogue(low=0.0)),
]


@pytest.mark.parametrize(("behind", "expected"), SUMS)
def test_sums(behind: str, expected: Epilogue) -> None:
    # x ─▶ Conv ─▶ y ─▶ + ─▶ s ─▶ activation ─▶ z
    # └──▶ Conv ─▶ k ─▶ ┘
    assert epilogue(behind) == expected


def test_a_sum_that_is_left_out_takes_what_is_behind_it_along() -> None:
    assert epilogue("s = Add (y, k) z = Relu (s)").without_sum() == Epilogue()


@pytest.mark.parametrize(
    "behind",
    [
        "r = Relu (y) t = Tanh (y) z = Add (r, t)",
        "s = Add (y, k) t = Add (y, s) z = Relu (t)",
        "z = If (yes) <then_branch = a () => (float[N,4,5] p) { p = Relu (y) },"
        " else_branch = b () => (float[N,4,5] q) { q = Relu (y) }>",
    ],
    ids=["activations", "sums", "branches"],
)
def test_an_output_with_several_readers_is_seen_as_it_is(behind: str) -> None:
    assert epilogue(behind) == Epilogue()


def test_outputs_of_the_graph_are_seen_as_they_are() -> None:
    assert epilogue("z = Relu (y)", "y z") == Epilogue()
    assert epilogue("s = Add (y, k) z = Relu (s)", "y z") == Epilogue()
    assert epilogue("s = Add (y, k) z = Relu (s)", "s z") == Epilogue("k", "s")
    assert epilogue("s = Add (y, k) z = Relu (s)", "k z") == Epilogue("k", "s", 0.0, INF)
    assert epilogue("u = Tanh (k) z = Identity (y)", "u y") == Epilogue()


def test_the_bias_of_a_product_belongs_to_the_block() -> None:
    # x ─▶ MatMul ─▶ Add (bias) ─▶ y ─▶ Add ─▶ s ─▶ Relu ─▶ z, the shortcut being x
    graph = gs.import_onnx(
        build("""g (float[N,4] x) => (float[N,4] z) <float[4,4] w, float[4] b> {
            h = MatMul (x, w)
            y = Add (h, b)
            s = Add (x, y)
            z = Relu (s)
        }""")
    )
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    assert find_epilogue(graph, linear, set(), KnownShapes(graph)) == Epilogue("x", "s", 0.0, INF)


ROWS = """g (float[N,3,4] x) => (float[N,A,B] z)
    <float[4,4] w, int64[2] flat = {-1,4}, int64[3] back = {-1,3,4}, int64[3] turned = {-1,4,3}> {
        f = Reshape (x, flat)
        y = Gemm (f, w)
        BEHIND
    }"""


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ("r = Reshape (y, back) s = Add (r, x) z = Relu (s)", Epilogue("x", "s", 0.0, INF)),
        ("r = Add (y, f) s = Reshape (r, back) z = Relu (s)", Epilogue("f", "r", 0.0, INF)),
        ("r = Reshape (y, back) z = Relu (r)", Epilogue(None, None, 0.0, INF)),
        ("r = Reshape (y, turned) z = Relu (r)", Epilogue()),
    ],
)
def test_rows_of_a_matrix_may_be_given_their_axes_in_between(
    behind: str, expected: Epilogue
) -> None:
    graph = gs.import_onnx(build(ROWS.replace("BEHIND", behind)))
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    assert find_epilogue(graph, linear, set(), KnownShapes(graph)) == expected


def test_nothing_follows_an_output_that_nobody_clips() -> None:
    assert Epilogue() == NO_EPILOGUE
    assert not NO_EPILOGUE.clips


@pytest.mark.parametrize("node", ["Add (y, k)", "Relu (y)"])
def test_nodes_in_the_body_of_another_are_no_epilogue(node: str) -> None:
    nodes = (
        f"z = If (yes) <then_branch = a () => (float[N,4,5] p) {{ p = {node} }},"
        " else_branch = b () => (float[N,4,5] q) { q = Neg (k) }>"
    )
    assert epilogue(nodes) == Epilogue()


def test_an_activation_of_another_domain_is_another_operator() -> None:
    graph = gs.import_onnx(
        build("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
          g (float[N,4] x) => (float[N,4] z) <float[4,4] w> {
            y = Gemm (x, w)
            z = own.Relu (y)
        }""")
    )
    linear = find_linear(graph)[0]
    assert isinstance(linear, Linear)
    assert find_epilogue(graph, linear, set(), KnownShapes(graph)) == NO_EPILOGUE
