"""New weights of the old shape: the function is the new one, all else is as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.passes import AffineMap, ReplaceWeights
from fskd_onnx.passes.errors import PreconditionError
from tests.helpers import (
    Array,
    assert_close,
    build,
    check,
    initializers,
    insert_and_fuse,
    linears,
    ops,
    random_adapters,
    random_feeds,
    run,
)

# x ─▶ [one linear node] ─▶ h ─▶ LeakyRelu ─▶ z
FORMS = {
    "Conv": "g ({t}[N,4,9] x) => ({t}[N,6,9] z) <{t}[6,4,3] w, {t}[6] b>"
    "{{ [n] h = Conv <pads = [1,1]> (x, w, b) z = LeakyRelu (h) }}",
    "no bias": "g ({t}[N,4,5,6] x) => ({t}[N,6,4,5] z) <{t}[6,4,2,2] w>"
    "{{ [n] h = Conv (x, w) z = LeakyRelu (h) }}",
    "groups": "g ({t}[N,4,5,6] x) => ({t}[N,6,5,6] z) <{t}[6,2,1,1] w, {t}[6] b>"
    "{{ [n] h = Conv <group = 2> (x, w, b) z = LeakyRelu (h) }}",
    "depthwise": "g ({t}[N,4,5] x) => ({t}[N,4,4] z) <{t}[4,1,2] w, {t}[4] b>"
    "{{ [n] h = Conv <group = 4> (x, w, b) z = LeakyRelu (h) }}",
    "Gemm": "g ({t}[N,4] x) => ({t}[N,6] z) <{t}[4,6] w, {t}[6] b>"
    "{{ [n] h = Gemm <alpha: float = 0.5, beta: float = 2.0> (x, w, b) z = LeakyRelu (h) }}",
    "transB": "g ({t}[N,4] x) => ({t}[N,6] z) <{t}[6,4] w>"
    "{{ [n] h = Gemm <transB = 1> (x, w) z = LeakyRelu (h) }}",
    "MatMul": "g ({t}[N,3,4] x) => ({t}[N,3,6] z) <{t}[4,6] w>"
    "{{ [n] h = MatMul (x, w) z = LeakyRelu (h) }}",
    "MatMul + Add": "g ({t}[N,3,4] x) => ({t}[N,3,6] z) <{t}[4,6] w, {t}[6] b>"
    "{{ [n] p = MatMul (x, w) h = Add (b, p) z = LeakyRelu (h) }}",
}
ADDS_A_BIAS = ("no bias", "transB", "MatMul")


def random_weights(model: onnx.ModelProto, seed: int = 5) -> dict[str, AffineMap]:
    """Draw values that the node's type holds exactly."""
    rng = np.random.default_rng(seed)
    new = {}
    for name, linear in linears(model).items():
        parts = [rng.standard_normal(shape) for shape in (linear.shape, linear.shape[:2])]
        rounded = [part.astype(linear.weight.dtype).astype(np.float64) for part in parts]
        new[name] = AffineMap(*rounded)
    return new


def stored(weights: AffineMap, weight: Array, form: str) -> Array:
    """Bring a matrix into the order that the operator keeps."""
    transposed = form == "Gemm" or form.startswith("MatMul")
    return (weights.matrix[0].T if transposed else weights.matrix).reshape(weight.shape)


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("form", FORMS)
def test_rewrites(form: str, dtype: str) -> None:
    model = build(FORMS[form].format(t=dtype))
    before = model.SerializeToString()
    new = random_weights(model)
    result = ReplaceWeights(new)(model)
    check(result.model)
    assert result.changed
    assert result.notes == ("weights of 'n' replaced",)
    assert ops(result.model) == {**ops(model), **({"Add": 1} if form == "MatMul" else {})}
    assert len(initializers(result.model)) == len(initializers(model)) + (form in ADDS_A_BIAS)

    plain = FORMS[form].replace("alpha: float = 0.5, beta: float = 2.0", "transA = 0")
    if form in ADDS_A_BIAS:  # the same graph, written with a bias
        plain = (
            plain.replace("> {{", "> {{").replace("w>", "w, {t}[6] b>").replace("w) z", "w, b) z")
        )
        plain = plain.replace("h = MatMul (x, w, b)", "p = MatMul (x, w) h = Add (p, b)")
    values = {
        "w": stored(new["n"], initializers(model)["w"], form),
        "b": new["n"].shift.reshape(-1),
    }
    expected = build(plain.format(t=dtype), values)
    feeds = random_feeds(model)
    assert_close(run(result.model, feeds), run(expected, feeds))
    view = linears(result.model)["n"]
    np.testing.assert_array_equal(view.matrix, new["n"].matrix)
    np.testing.assert_array_equal(view.bias, new["n"].shift.reshape(-1))

    # A second run, and the weights that are there already, leave every byte.
    again = ReplaceWeights(new)(result.model).model
    assert again.SerializeToString() == result.model.SerializeToString()
    same = {name: v.affine for name, v in linears(model).items()}
    assert ReplaceWeights(same)(model).model.SerializeToString() == before
    assert model.SerializeToString() == before


def test_no_weights_change_nothing() -> None:
    model = build(FORMS["Conv"].format(t="float"))
    result = ReplaceWeights({})(model)
    assert not result.changed
    assert result.notes == ()
    assert result.model is model


def test_values_are_cast_once() -> None:
    # This rounds up in float16; rounded to float32 first, it would be halfway and round down.
    model = build(FORMS["MatMul + Add"].format(t="float16"))
    value = 1 + 2.0**-11 + 2.0**-30
    new = AffineMap(np.full((1, 6, 4), value), np.full((1, 6), value))
    weights = initializers(ReplaceWeights({"n": new})(model).model)
    assert {v.dtype for v in weights.values()} == {np.dtype(np.float16)}
    assert {float(v.max()) for v in weights.values()} == {1 + 2.0**-10}


def test_only_the_named_node_changes() -> None:
    # x ─▶ Conv ─▶ y ─▶ Conv ─▶ z, with one bias for both
    model = build("""g (float[N,4,5] x) => (float[N,4,5] z)
      <float[4,4,1] w, float[4,4,1] k, float[4] b> {
        [one] y = Conv (x, w, b)
        [two] z = Conv (y, k, b)
    }""")
    new = {"two": random_weights(model)["two"]}
    result = ReplaceWeights(new)(model)
    check(result.model)
    before, after = initializers(model), initializers(result.model)
    for name in ("w", "b"):
        assert after[name].tobytes() == before[name].tobytes()
    view = linears(result.model)
    np.testing.assert_array_equal(view["two"].bias, new["two"].shift.reshape(-1))
    np.testing.assert_array_equal(view["one"].bias, linears(model)["one"].bias)
    assert len(after) == len(before) + 1


CONV = FORMS["Conv"].format(t="float")
SHARED = """g (float[N,4,5] x) => (float[N,4,5] z) <float[4,4,1] w> {
    [n] y = Conv (x, w)
    [m] z = Conv (y, w)
}"""


@pytest.mark.parametrize(
    ("text", "name", "shape", "reason"),
    [
        (CONV, "other", (1, 6, 12), "the graph has no linear node 'other'"),
        (SHARED, "n", (1, 4, 4), "the weights of 'n' are also those of 'm'"),
        (CONV, "n", (1, 6, 4), r"\(1, 6, 4\); it has \(1, 6, 12\)"),
        (CONV, "n", (2, 3, 12), r"\(2, 3, 12\)"),
    ],
    ids=["no such node", "shared", "unknowns", "groups"],
)
def test_refusals(text: str, name: str, shape: tuple[int, int, int], reason: str) -> None:
    model = build(text)
    before = model.SerializeToString()
    with pytest.raises(PreconditionError, match=reason):
        ReplaceWeights({name: AffineMap(np.zeros(shape), np.zeros(shape[:2]))})(model)
    assert model.SerializeToString() == before


# x1, x2 ─▶ [two uses of one block] ─▶ y1, y2
USES = {
    "Conv": "g (float[N,4,5] x1, float[N,4,9] x2) => (float[N,6,A] y1, float[N,6,B] y2)"
    "<float[6,4,2] w, float[6] b>"
    "{ [n] y1 = Conv (x1, w, b) [m] y2 = Conv <strides = [2]> (x2, w, b) }",
    "no bias": "g (float[N,4] x1, float[N,4] x2) => (float[N,6] y1, float[N,6] y2) <float[6,4] w>"
    "{ [n] y1 = Gemm <transB = 1, alpha: float = 0.5> (x1, w)"
    "  [m] y2 = Gemm <transB = 1, alpha: float = 0.5> (x2, w) }",
    "MatMul": "g (float[N,4] x1, float[N,4] x2) => (float[N,6] y1, float[N,6] y2) <float[4,6] w>"
    "{ [n] y1 = MatMul (x1, w) [m] y2 = MatMul (x2, w) }",
    "a bias of others": "g (float[N,4] x1, float[N,4] x2) => (float[N,4] y1, float[N,4] y2)"
    "<float[4,4] w, float[4] b>"
    "{ [n] p = MatMul (x1, w) h = Add (p, b) [m] q = MatMul (x2, w) k = Add (b, q)"
    "  y1 = Add (h, b) y2 = Relu (k) }",
}
NEW_VECTORS = {"Conv": 0, "no bias": 1, "MatMul": 1, "a bias of others": 1}


@pytest.mark.parametrize("form", USES)
def test_uses_of_the_same_weights_go_on_reading_one_constant(form: str) -> None:
    model = build(USES[form])
    [*views] = linears(model).values()
    rng = np.random.default_rng(6)
    new = AffineMap(*(rng.standard_normal(shape) for shape in (views[0].shape, views[0].shape[:2])))
    for name in (view.name for view in views):
        with pytest.raises(PreconditionError, match="which does not get the same"):
            ReplaceWeights({name: new})(model)
    result = ReplaceWeights({view.name: new for view in views})(model)
    assert len(result.notes) == 2
    written = linears(result.model)
    assert len({view.weight.name for view in written.values()}) == 1
    biases = [view.bias_constant for view in written.values()]
    assert len({constant.name for constant in biases if constant is not None}) == 1
    for view in written.values():
        np.testing.assert_allclose(view.matrix, new.matrix, rtol=1e-6)
        np.testing.assert_allclose(view.bias, new.shift.reshape(-1), rtol=1e-6)
    before, after = initializers(model), initializers(result.model)
    assert len(after) == len(before) + NEW_VECTORS[form]
    assert "w" in after
    if form == "a bias of others":
        np.testing.assert_array_equal(after["b"], before["b"])
    assert not ReplaceWeights({name: view.affine for name, view in written.items()})(
        result.model
    ).changed


@pytest.mark.parametrize("form", FORMS)
def test_a_fused_adapter_is_what_insert_and_fuse_give_with_no_more_rounding(form: str) -> None:
    model = build(FORMS[form].format(t="float"))
    adapters = random_adapters(model)
    exact = {name: adapters[name].after(v.affine) for name, v in linears(model).items()}
    explicit, oracle = insert_and_fuse(model, adapters)
    fused = ReplaceWeights(exact)(model).model
    assert_close(run(fused, random_feeds(model)), run(explicit, random_feeds(model)))
    assert ops(fused) == ops(oracle)
    once, twice = (linears(each)["n"].affine for each in (fused, oracle))
    for part in ("matrix", "shift"):
        value = getattr(exact["n"], part)
        error = np.abs(getattr(once, part) - value)
        assert (error <= 2.0**-24 * np.abs(value) * (1 + 1e-9)).all()  # half a unit of float32
        assert (error <= np.abs(getattr(twice, part) - value)).all()
        np.testing.assert_allclose(getattr(twice, part), value, rtol=1e-5, atol=1e-6)
