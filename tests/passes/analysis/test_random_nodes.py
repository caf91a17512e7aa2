"""Nodes that make an output random are found wherever they stand, harmless ones are not."""

from __future__ import annotations

import pytest

from fskd_onnx.passes.analysis.random_nodes import find_random, find_training_dropouts
from tests.helpers import build

HEAD = '<ir_version: 8, opset_import: ["": 17, "my": 1]>'


@pytest.mark.parametrize(
    ("body", "node"),
    [
        ("[n] r = RandomNormalLike (x)  y = Add (x, r)", "n"),
        ("r = RandomUniformLike (x)  y = Add (x, r)", "r"),
        ("[n] r = RandomNormal <shape = [4]> ()  y = Add (x, r)", "n"),
        ("[n] r = RandomUniform <shape = [4], seed = 1.0> ()  y = Add (x, r)", "n"),
        ("p = Sigmoid (x)  [n] r = Bernoulli (p)  y = Mul (x, r)", "n"),
        (
            "[n] r = Multinomial <sample_size = 1> (x)  f = Cast <to = 1> (r)  y = Add (x, f)",
            "n",
        ),
    ],
)
def test_random_nodes_are_named(body: str, node: str) -> None:
    model = build(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}")
    [(name, reason)] = find_random(model)
    assert name == node
    assert "draws anew in each run" in reason


def test_batch_normalization_in_training_mode_is_named() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float[4] s, float[4] b, float[4] m, float[4] v> {{
        [bn] {outputs} = BatchNormalization {attributes} (x, s, b, m, v)
    }}"""
    training = build(text.format(outputs="y, a, c", attributes="<training_mode = 1>"))
    [(name, reason)] = find_random(training)
    assert name == "bn"
    assert "depends on which samples run together" in reason
    assert (
        len(find_random(build(text.format(outputs="y, a, c, d, e", attributes=""), opset=9))) == 1
    )
    assert find_random(build(text.format(outputs="y", attributes=""))) == []


@pytest.mark.parametrize(("read", "found"), [("w", []), ("r", ["n", "bn"]), ("x", ["bn"])])
def test_a_weight_may_be_normalized_as_in_training(read: str, found: list[str]) -> None:
    """As exporters write weight standardization."""
    model = build(
        f"""g (float[4,4,1,1] x) => (float[4,4,1,1] y)
        <float[4,4,1,1] w, float[4] s, float[4] b, float[4] m, float[4] v> {{
            [n] r = RandomNormalLike (w)
            i = Identity ({read})
            [bn] k, a, c = BatchNormalization <training_mode = 1> (i, s, b, m, v)
            y = Conv (x, k)
        }}"""
    )
    assert [name for name, _ in find_random(model)] == found


def test_what_a_function_is_given_may_be_anything() -> None:
    model = build(
        f"""{HEAD} g (float[N,4] x) => (float[N,4] y)
        <float[N,4] a, float[4] s, float[4] b, float[4] m, float[4] v> {{
            y = my.Normal (x, s, b, m, v)
        }}
        <domain: "my", opset_import: ["": 17]>
        Normal (a, s, b, m, v) => (y) {{
            [bn] y, p, q = BatchNormalization <training_mode = 1> (a, s, b, m, v)
        }}"""
    )
    assert [name for name, _ in find_random(model)] == ["bn"]


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormalLike (x)  y = Relu (x)",
        "r = RandomNormalLike (x)  s = Shape (r)  y = Reshape (x, s)",
        "r = Relu (x)  y = Dropout (r)",
    ],
)
def test_what_no_output_depends_on_is_harmless(body: str) -> None:
    assert find_random(build(f"g (float[N,4] x) => (float[N,4] y) {{ {body} }}")) == []


def test_bodies_and_functions_are_searched() -> None:
    model = build(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            y = If (c) <
                then_branch = one () => (float[N,4] a) {
                    b = RandomNormalLike (x)
                    unread = RandomUniformLike (x)
                    a = Add (x, b)
                },
                else_branch = two () => (float[N,4] a) { a = Relu (x) }>
        }"""
    )
    assert [name for name, _ in find_random(model)] == ["b"]
    model = build(
        f"""{HEAD} g (float[N,4] x) => (float[N,4] y) {{ h = my.Noisy (x)  y = my.Noisy (h) }}
        <domain: "my", opset_import: ["": 17, "my": 1]>
        Noisy (a) => (b) {{ b = my.Inner (a) }}
        <domain: "my", opset_import: ["": 17]>
        Inner (a) => (b) {{ r = RandomNormalLike (a)  b = Add (a, r) }}"""
    )
    assert [name for name, _ in find_random(model)] == ["r"]


@pytest.mark.parametrize(
    ("inputs", "body", "found"),
    [
        ("", "t = Constant <value = bool {1}> ()  [d] y = Dropout (x, r, t)", ["d"]),
        ("", "t = Constant <value = bool {0}> ()  [d] y = Dropout (x, r, t)", []),
        ("", "[d] y = Dropout (x, r)", []),
        (", bool t", "[d] y = Dropout (x, r, t)", ["d"]),
        ("", "s = Constant <value = bool {0}> ()  t = Not (s)  [d] y = Dropout (x, r, t)", ["d"]),
        ("", "t = Constant <value = bool {1}> ()  [d] z = Dropout (x, r, t)  y = Relu (x)", []),
    ],
)
def test_dropouts_in_training_mode_are_named(inputs: str, body: str, found: list[str]) -> None:
    model = build(f"g (float[N,4] x{inputs}) => (float[N,4] y) <float r> {{ {body} }}")
    assert find_training_dropouts(model) == found
