"""A chain in the place of a node applies the kernel that is nearest to it, wherever it stands."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper

from fskd_onnx.passes import Canonicalize, ChannelSvd, SpatialSvd
from fskd_onnx.passes.analysis.factored_blocks import chain_of
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, full_rank, links, why_not
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.windows import Window
from fskd_onnx.passes.errors import PreconditionError
from fskd_onnx.passes.linear_chain import low_rank
from tests.helpers import (
    assert_same_function,
    build,
    check,
    initializers,
    linears,
    ops,
    random_feeds,
    run,
    zoo_model,
)
from tests.passes.factorized import CASES, FORMS, PLANES, expected, pass_of
from tests.random_graphs.case import draw


@pytest.mark.parametrize(("form", "case"), CASES)
def test_a_chain_applies_the_nearest_kernel(form: Form, case: str) -> None:
    cases, rank = FORMS[form]
    model = cases[case].model()
    ((name, linear),) = linears(model).items()
    before = model.SerializeToString()
    result = pass_of(form, {name: rank})(model)
    assert model.SerializeToString() == before
    assert len(result.notes) == 1
    assert_same_function(result.model, expected(form, model, {name: rank}))
    # The last node has the name and the output of the one that was there.
    made = linears(result.model)
    shapes = [link.matrix_shape for link in links(form, LinearShape.of(linear), rank)]
    assert [view.shape for view in made.values()] == shapes
    assert list(made)[-1] == name
    assert made[name].output.name == linear.output.name
    np.testing.assert_array_equal(made[name].bias, linear.bias)
    assert all(view.bias_constant is None for view in list(made.values())[:-1])
    assert "w" not in initializers(result.model)
    assert [*result.model.graph.input] == [*model.graph.input]
    assert [*result.model.graph.output] == [*model.graph.output]


@pytest.mark.parametrize(("form", "case"), CASES)
def test_in_double_precision_it_is_exact(form: Form, case: str) -> None:
    cases, rank = FORMS[form]
    model = cases[case].model("double")
    (name,) = linears(model)
    assert_same_function(
        pass_of(form, {name: rank})(model).model, expected(form, model, {name: rank})
    )


@pytest.mark.parametrize("form", Form)
def test_half_precision_stays(form: Form) -> None:
    model, rank = PLANES["3 x 3"].model("float16"), FORMS[form][1]
    result = pass_of(form, {"n": rank})(model).model
    assert {v.dtype for v in initializers(result).values()} == {np.dtype(np.float16)}
    assert_same_function(result, expected(form, model, {"n": rank}))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_weights_behind_a_cast_are_stored_as_before(kind: int) -> None:
    model = build("""g (float[N,5,9,8] x) => (float[N,6,A,B] z) <float[6,5,3,3] h> {
        [c] w = Cast <to = 1> (h)
        [n] z = Conv (x, w)
    }""")
    (stored,) = model.graph.initializer
    halves = onnx.helper.make_tensor(
        "h", kind, stored.dims, numpy_helper.to_array(stored).reshape(-1)
    )
    stored.CopyFrom(halves)
    check(model)
    result = SpatialSvd({"n": 4})(model).model
    assert [t.data_type for t in result.graph.initializer] == [kind] * 2
    assert ops(result) == {"Cast": 2, "Conv": 2}
    (before, after) = (run(m, random_feeds(model))["z"] for m in (expected_of(model), result))
    assert np.abs(before - after).max() < 0.03 * np.abs(before).max()


def expected_of(model: onnx.ModelProto) -> onnx.ModelProto:
    return expected(Form.SPATIAL_SVD, model, {"n": (4,)})


def test_two_neighbours_and_names_that_are_taken() -> None:
    # x ─▶ Conv ─▶ y ─▶ Conv ─▶ z
    model = build("""g (float[N,5,9,8] x) => (float[N,6,A,B] z, float[N,6,A,B] "y/factor1")
      <float[6,5,3,3] w, float[6,6,3,3] k, float[6] b> {
        ["n/factor1"] y = Conv (x, w, b)
        [n] z = Conv <pads = [2,2,2,2]> (y, k, b)
        "y/factor1" = Relu (y)
    }""")
    result = SpatialSvd({"n": 4, "n/factor1": 5})(model)
    assert len(result.notes) == 2
    assert list(linears(result.model)) == ["n/factor1/factor1", "n/factor1", "n/factor1_", "n"]
    one = SpatialSvd({"n": 4})(SpatialSvd({"n/factor1": 5})(model).model).model
    assert_same_function(result.model, one)


@pytest.mark.parametrize(("form", "case"), CASES)
def test_a_fit_sees_the_chain_as_one_node(form: Form, case: str) -> None:
    cases, rank = FORMS[form]
    model = cases[case].model()
    ((name, linear),) = linears(model).items()
    graph = gs.import_onnx(pass_of(form, {name: rank})(model).model)
    chain = chain_of([view for view in find_linear(graph) if isinstance(view, Linear)])
    window = Window.of(linear)
    assert (chain is None) == (window is None)  # padding that depends on the input's extent
    if chain is not None and window is not None:
        own = linears(expected(form, model, {name: rank}))[name]
        assert chain.window.begin == window.begin
        assert chain.window.end == window.end
        assert chain.window.strides == window.strides
        kernel = chain.kernel.weights.reshape(own.shape)
        np.testing.assert_allclose(kernel, own.matrix, atol=1e-5 * np.abs(own.matrix).max())


@pytest.mark.parametrize(
    ("form", "rank"),
    [
        (Form.SPATIAL_SVD, (0,)),
        (Form.SPATIAL_SVD, (15,)),
        (Form.CHANNEL_SVD, (6,)),
        (Form.TUCKER, (5, 3)),
        (Form.TUCKER, (2, 6)),
        (Form.DECOUPLE, (6,)),
    ],
)
def test_ranks_that_are_refused(form: Form, rank: tuple[int, ...]) -> None:
    model = PLANES["3 x 3"].model()
    with pytest.raises(PreconditionError, match=r"'n' cannot have a rank of .* takes 1 to"):
        pass_of(form, {"n": rank})(model)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<float[6,5,3,3] w> { [m] z = Conv (x, w) }", "no linear node 'n'"),
        ("<int8[6,5,3,3] w> { [n] z = ConvInteger (x, w) }", "it is quantized"),
        (
            "<float[6,5,3,3] w, float[6,6,1,1] k> "
            "{ [n] y = Conv (x, w) [m] v = Conv (x, w) s = Add (y, v) z = Conv (s, k) }",
            "its weights are also those of 'm'",
        ),
    ],
)
def test_nodes_that_are_refused(text: str, reason: str) -> None:
    kind = ("uint8", "int32") if "int8" in text else ("float", "float")
    model = build(f"g ({kind[0]}[N,5,9,8] x) => ({kind[1]}[N,6,A,B] z) {text}")
    before = model.SerializeToString()
    with pytest.raises(PreconditionError, match=reason):
        ChannelSvd({"n": 2})(model)
    assert model.SerializeToString() == before


def test_a_second_run_is_refused() -> None:
    model = PLANES["3 x 3"].model()
    for form in Form:
        rank = FORMS[form][1]
        once = pass_of(form, {"n": rank})(model).model
        with pytest.raises(PreconditionError, match="'n' cannot"):
            pass_of(form, {"n": rank})(once)


def test_the_same_call_gives_the_same_bytes() -> None:
    for form, (cases, rank) in FORMS.items():
        for case in cases.values():
            (name,) = linears(case.model())
            one, other = (pass_of(form, {name: rank})(case.model()).model for _ in range(2))
            assert one.SerializeToString() == other.SerializeToString()


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_low_rank_is_nearest_and_balanced(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    left, right = low_rank(matrix, 3)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(left @ right, (u[:, :3] * s[:3]) @ v[:3], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.sqrt(s[:3]), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), np.sqrt(s[:3]), atol=1e-12)


def test_a_kernel_of_zeros_has_finite_factors() -> None:
    left, right = low_rank(np.zeros((4, 5)), 2)
    assert np.isfinite(left).all()
    assert not right.any()


@pytest.mark.parametrize("seed", range(24))
def test_random_graphs(seed: int) -> None:
    model = Canonicalize()(draw(seed).teacher.model).model
    rng = np.random.default_rng(seed)
    for form in Form:
        ranks = {
            name: tuple(int(rng.integers(1, most)) for most in full_rank(form, LinearShape.of(v)))
            for name, v in linears(model).items()
            if not why_not(v, form)
        }
        result = pass_of(form, ranks)(model)
        assert len(result.notes) == len(ranks)
        assert_same_function(result.model, expected(form, model, ranks))


@pytest.mark.parametrize(
    "name",
    [
        "bvlc_alexnet",
        "densenet121",
        "inception_v1",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "squeezenet",
        "vgg19",
        "zfnet512",
    ],
)
def test_model_zoo(name: str) -> None:
    """Each node that can be factorized is, in one form or another, and the network still runs."""
    model = Canonicalize()(zoo_model(name, divisor=8)).model
    chosen: dict[Form, dict[str, tuple[int, ...]]] = {form: {} for form in Form}
    for number, (key, linear) in enumerate(linears(model).items()):
        forms = [form for form in Form if not why_not(linear, form)]
        if forms:
            form = forms[number % len(forms)]
            full = full_rank(form, LinearShape.of(linear))
            chosen[form][key] = tuple(max(1, f - 1) for f in full)
    result = model
    for form, ranks in chosen.items():
        result = pass_of(form, ranks)(result).model
    check(result)
    after = run(result, random_feeds(model))
    before = run(model, random_feeds(model))
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert all(np.isfinite(v).all() for v in after.values())
