"""Fusing changes nothing: the fused graph equals the one with explicit adapters."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.passes import AffineMap, Canonicalize, FuseAdapter, InsertAdapter
from fskd_onnx.passes.errors import PostconditionError, PreconditionError
from tests.helpers import (
    DEMO,
    assert_close,
    assert_same_function,
    build,
    check,
    initializers,
    insert_and_fuse,
    linears,
    ops,
    random_adapters,
    random_feeds,
    run,
    zoo_model,
)

CONVS = [  # image, output, weight, attributes
    ("9", "A", "6,4,3", "strides = [2], pads = [1, 0]"),
    ("5,6", "A,B", "6,4,3,1", 'auto_pad = "SAME_LOWER"'),
    ("5,6", "A,B", "6,4,2,2", 'auto_pad = "VALID", strides = [2, 1]'),
    ("5,6", "A,B", "6,2,1,1", "group = 2"),
    ("5,6", "A,B", "4,1,3,3", "group = 4, pads = [1, 1, 1, 1]"),
    ("5,6", "A,B", "8,1,3,3", "group = 4"),
    ("7,7", "A,B", "6,4,2,3", "dilations = [2, 1], pads = [0, 1, 2, 0]"),
    ("3,4,5", "A,B,C", "6,4,2,2,2", "strides = [1, 2, 2]"),
]
GEMMS = [  # weight, C, attributes
    ("4,6", "[6]", "transA = 0"),
    ("6,4", "[6]", "transB = 1"),
    ("6,4", "[1,6]", "transB = 1, alpha: float = 0.5, beta: float = 2.0"),
    ("4,6", "", "alpha: float = -2.0"),
    ("4,6", "[1]", "beta: float = 0.0"),
    ("4,6", None, "alpha: float = 0.25, beta: float = 3.0"),
]


def assert_fuses(model: onnx.ModelProto, new_biases: int, nodes: dict[str, int]) -> None:
    """The template: fused == explicit, nothing more than a bias is new, Q = I is the identity."""
    before = model.SerializeToString()
    adapters = random_adapters(model)
    explicit, fused = insert_and_fuse(model, adapters)
    assert_same_function(fused, explicit)
    assert ops(fused) == nodes
    assert len(initializers(fused)) == len(initializers(model)) + new_biases
    feeds = random_feeds(model)
    assert any(
        np.abs(run(fused, feeds)[name] - value).max() > 0.01
        for name, value in run(model, feeds).items()
    )
    assert not FuseAdapter()(fused).changed
    assert insert_and_fuse(model, adapters)[1].SerializeToString() == fused.SerializeToString()

    identity = {name: AffineMap.identity(*v.shape[:2]) for name, v in linears(model).items()}
    assert insert_and_fuse(model, identity)[1].SerializeToString() == before
    assert model.SerializeToString() == before


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("image", "out", "weight", "attrs"), CONVS)
def test_convolutions(
    dtype: str, bias: bool, image: str, out: str, weight: str, attrs: str
) -> None:
    # x ─▶ Conv ─▶ y ─▶ Relu ─▶ z
    width = weight.split(",")[0]
    declared = f", {dtype}[{width}] b" if bias else ""
    model = build(f"""g ({dtype}[N,4,{image}] x) => ({dtype}[N,{width},{out}] z)
      <{dtype}[{weight}] w{declared}> {{
        [conv] y = Conv <{attrs}> (x, w{", b" if bias else ""})
        z = LeakyRelu (y)
    }}""")
    assert_fuses(model, not bias, {"Conv": 1, "LeakyRelu": 1})


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize(("weight", "c", "attrs"), GEMMS)
def test_gemms(dtype: str, weight: str, c: str | None, attrs: str) -> None:
    # x ─▶ Gemm ─▶ z
    declared = "" if c is None else f", {dtype}{c} c"
    model = build(f"""g ({dtype}[N,4] x) => ({dtype}[N,6] z) <{dtype}[{weight}] w{declared}> {{
        z = Gemm <{attrs}> (x, w{"" if c is None else ", c"})
    }}""")
    assert_fuses(model, c is None, {"Gemm": 1})


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("shape", ["N", "N,3", "N,2,3"])
@pytest.mark.parametrize("bias", ["none", "right", "left"])
def test_products(dtype: str, shape: str, bias: str) -> None:
    # x ─▶ MatMul ─▶ h ─▶ Add ─▶ z, on matrices and on stacks of them
    add = {"none": "Identity (h)", "right": "Add (h, b)", "left": "Add (b, h)"}[bias]
    declared = "" if bias == "none" else f", {dtype}[6] b"
    model = build(f"""g ({dtype}[{shape},4] x) => ({dtype}[{shape},6] z)
      <{dtype}[4,6] w{declared}> {{
        [product] h = MatMul (x, w)
        z = {add}
    }}""")
    nodes = {"MatMul": 1, "Add": 1} | ({"Identity": 1} if bias == "none" else {})
    assert_fuses(model, bias == "none", nodes)


def test_float16() -> None:
    # x ─▶ MatMul ─▶ Add ─▶ z
    model = build("""g (float16[N,4] x) => (float16[N,6] z) <float16[4,6] w, float16[6] b> {
        h = MatMul (x, w)
        z = Add (h, b)
    }""")
    assert_fuses(model, False, {"MatMul": 1, "Add": 1})


def test_a_block_output_with_several_readers_that_is_an_output_and_read_in_bodies() -> None:
    #          ┌──▶ Relu ─▶ r ─┐
    # x ─▶ Conv ─▶ y ──────────▶ Add ─▶ z      y is an output, and If reads it too
    model = build("""g (float[N,4,5,5] x, bool c)
      => (float[N,4,3,3] y, float[N,4,3,3] z, float[N,4,3,3] k)
      <float[4,4,3,3] w, float[4] b> {
        y = Conv (x, w, b)
        r = Relu (y)
        z = Add (r, y)
        k = If (c) <then_branch = t () => (float[N,4,3,3] p) { p = Neg (y) },
                    else_branch = e () => (float[N,4,3,3] q) { q = Abs (y) }>
    }""")
    assert_fuses(model, False, {"Conv": 1, "Relu": 1, "Add": 1, "If": 1})


def test_parameters_that_others_read_are_copied_written_for_all_uses_or_refused() -> None:
    # x ─▶ Conv(w, b) ─▶ Conv(k, b) ─▶ Conv(k, b) ─▶ z + If (w | b)
    model = build("""g (float[N,4,5,5] x, bool c) => (float[N,4,5,5] z, float[A,B,C,D] p)
      <float[4,4,1,1] w, float[4,4,1,1] k, float[4,4,1,1] i, float[4] b> {
        [a] f = Conv (x, w, b)
        [b] h = Conv (f, k, b)
        [c] j = Conv (h, k, b)
        [d] z = Conv (j, i, b)
        p = If (c) <then_branch = t () => (float[4,4,1,1] q) { q = Neg (w) },
                    else_branch = e () => (float[4,4,1,1] r) { r = Abs (w) }>
    }""")
    adapters = random_adapters(model)
    assert sorted(adapters) == ["b", "c", "d"]
    explicit, fused = insert_and_fuse(model, adapters)
    assert_same_function(fused, explicit)
    # The two uses of k read one bias of theirs, as they did before.
    assert [list(node.input[1:]) for node in fused.graph.node[:4]] == [
        ["w", "b"],
        ["k", "h/bias"],
        ["k", "h/bias"],
        ["i", "z/bias"],
    ]
    for name, other in (("a", "q"), ("b", "c"), ("c", "b")):
        explicit = InsertAdapter({name: AffineMap.identity(1, 4)})(model).model
        with pytest.raises(PreconditionError, match=f"of '{name}' are also those of '{other}'"):
            FuseAdapter()(explicit)


def test_uses_of_the_same_weights_need_the_same_adapter() -> None:
    # x1 ─▶ Conv(w, b) ─▶ y1        x2 ─▶ Conv(w, b) (stride 2) ─▶ y2
    model = build("""g (float[N,4,5,5] x1, float[N,4,7,7] x2)
      => (float[N,6,A,B] y1, float[N,6,C,D] y2)
      <float[6,4,3,3] w, float[6] b> {
        [one] y1 = Conv (x1, w, b)
        [two] y2 = Conv <strides = [2,2]> (x2, w, b)
    }""")
    assert_fuses(model, 0, {"Conv": 2})
    adapters = random_adapters(model)
    other = AffineMap(adapters["one"].matrix, adapters["one"].shift + 1)
    explicit = InsertAdapter({**adapters, "two": other})(model).model
    with pytest.raises(PreconditionError, match="of 'one' are also those of 'two', which has not"):
        FuseAdapter()(explicit)


def test_nodes_of_one_name_and_of_none_are_told_apart() -> None:
    # x ─▶ twin ─▶ a ─▶ twin (stride 2) ─▶ b ─▶ nameless ─▶ z
    model = build("""g (double[N,4,6,6] x) => (double[N,4,2,2] z)
      <double[4,4,1,1] w, double[4,4,2,2] k, double[4,4,2,2] i> {
        [twin] a = Conv (x, w)
        [twin] b = Conv <strides = [2, 2]> (a, k)
        z = Conv (b, i)
    }""")
    assert list(random_adapters(model)) == ["a", "b", "z"]
    assert_fuses(model, 3, {"Conv": 3})


def test_names_that_adapters_would_take_are_left_to_their_owners() -> None:
    # x ─▶ Conv ─▶ y ─▶ Mul ─▶ z, whose tensors have the names that a new bias would take
    model = build("""g (float[N,4] x) => (float[N,4] z) <float[4,4] w, float[4] other> {
        y = MatMul (x, w)
        u = Mul (y, other)
        z = Relu (u)
    }""")
    model.graph.initializer[1].name = model.graph.node[1].input[1] = "y/bias"
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "y/unadapted"
    assert_fuses(model, True, {"MatMul": 1, "Add": 1, "Mul": 1, "Relu": 1})


def test_a_layer_that_is_called_adapter_is_no_adapter() -> None:
    # x ─▶ Conv ─▶ y ─▶ Conv "/adapter" ─▶ z
    model = build(
        """g (float[N,4,5,5] x) => (float[N,6,3,3] z)
      <float[4,4,1,1] w, float[6,4,3,3] k> {
        [block] y = Conv (x, w)
        ["block/adapter"] z = Conv (y, k)
    }""".replace('["block/adapter"]', "[adapter]")
    )
    model.graph.node[1].name = "block/adapter"
    assert not FuseAdapter()(model).changed


def with_adapter_name(text: str) -> onnx.ModelProto:
    model = build(text)
    next(n for n in model.graph.node if n.name == "adapter").name = "n/fskd_adapter"
    return model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (  # x ─▶ adapter ─▶ z
            "g (float[N,4] x) => (float[N,4] z) <float[4,4] q> { [adapter] z = MatMul (x, q) }",
            "has no linear node in front of it",
        ),
        (  # y is an output
            "g (float[N,4] x) => (float[N,4] y, float[N,4] z) <float[4,4] w, float[4,4] q>"
            "{ y = MatMul (x, w) [adapter] z = MatMul (y, q) }",
            "is read by more than its adapter",
        ),
        (  # y has another reader
            "g (float[N,4] x) => (float[N,4] z) <float[4,4] w, float[4,4] q>"
            "{ y = MatMul (x, w) [adapter] h = MatMul (y, q) z = Add (y, h) }",
            "is read by more than its adapter",
        ),
        (  # not square
            "g (float[N,4] x) => (float[N,6] z) <float[4,4] w, float[4,6] q>"
            "{ y = MatMul (x, w) [adapter] z = MatMul (y, q) }",
            "has the shape",
        ),
        (  # not 1x1
            "g (float[N,4,5] x) => (float[N,4,3] z) <float[4,4,1] w, float[4,4,3] q>"
            "{ y = Conv (x, w) [adapter] z = Conv (y, q) }",
            "is not a 1x1 layer",
        ),
        (  # 1x1, but it skips positions
            "g (float[N,4,5] x) => (float[N,4,3] z) <float[4,4,1] w, float[4,4,1] q>"
            "{ y = Conv (x, w) [adapter] z = Conv <strides = [2]> (y, q) }",
            "is not a 1x1 layer",
        ),
        (  # along another axis
            "g (float[N,4,4] x) => (float[N,4,4] z) <float[4,4,1] w, float[4,4] q>"
            "{ y = Conv (x, w) [adapter] z = MatMul (y, q) }",
            "is not a 1x1 layer",
        ),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(text: str, reason: str) -> None:
    with pytest.raises(PreconditionError, match=reason):
        FuseAdapter()(with_adapter_name(text))


def test_an_adapter_that_was_left_is_caught() -> None:
    model = with_adapter_name(
        "g (float[N,4] x) => (float[N,4] z) <float[4,4] w, float[4,4] q>"
        "{ y = MatMul (x, w) [adapter] z = MatMul (y, q) }"
    )
    with pytest.raises(PostconditionError, match="was left in the graph"):
        FuseAdapter().ensures(gs.import_onnx(model))


@pytest.mark.parametrize("name", ["teacher", "student", "vgg16_small", "vgg16_small_D"])
def test_demo_networks(name: str) -> None:
    model = onnx.load(DEMO / f"{name}.onnx")
    canonical = Canonicalize()(model).model
    assert "BatchNormalization" not in ops(canonical)
    assert_same_function(canonical, model)
    assert not Canonicalize()(canonical).changed
    explicit, fused = insert_and_fuse(canonical, random_adapters(canonical))
    assert_same_function(fused, explicit)
    assert ops(fused) == ops(canonical)


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
    model = zoo_model(name)
    canonical = Canonicalize()(model).model
    explicit, fused = insert_and_fuse(canonical, random_adapters(canonical, widest=64))
    check(fused)
    feeds = random_feeds(model)
    assert_close(run(canonical, feeds), run(model, feeds))
    assert_close(run(fused, feeds), run(explicit, feeds))
    assert ops(fused) == ops(canonical)
    # What has a default stays one: nothing becomes an input that has to be fed.
    required = {i.name for i in fused.graph.input} - set(initializers(fused))
    assert required == {i.name for i in model.graph.input} - set(initializers(model))


@st.composite
def networks(draw: st.DrawFn) -> str:
    """A chain of convolutions with residuals, then a classifier.

    x ─▶ (Conv ─▶ [BN] ─▶ [Relu | + shortcut])* ─▶ GlobalAveragePool ─▶ Flatten ─▶ Gemm ─▶ z
    """
    lines, weights, last, width = [], [], "x", 4
    for index in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([1, 2, width]))
        out = width if groups == width else draw(st.sampled_from([4, 6, 8]))
        kernel = draw(st.sampled_from([1, 3]))
        weights.append(f"float[{out},{width // groups},{kernel},{kernel}] w{index}")
        bias = draw(st.booleans())
        if bias:
            weights.append(f"float[{out}] b{index}")
        lines.append(
            f"c{index} = Conv <group = {groups}, pads = [{', '.join('01'[kernel > 1] * 4)}]> "
            f"({last}, w{index}{f', b{index}' if bias else ''})"
        )
        now = f"c{index}"
        if draw(st.booleans()):
            weights.append(f"float[{out}] s{index}")
            lines.append(
                f"n{index} = BatchNormalization ({now}" + f", s{index}" * 4 + ")",
            )
            now = f"n{index}"
        if out == width and draw(st.booleans()):
            lines.append(f"a{index} = Add ({now}, {last})")
            now = f"a{index}"
        elif draw(st.booleans()):
            lines.append(f"r{index} = Relu ({now})")
            now = f"r{index}"
        last, width = now, out
    transposed = draw(st.booleans())
    weights.append(f"float[{'5,' if transposed else ''}{width}{'' if transposed else ',5'}] w")
    lines += [
        f"p = GlobalAveragePool ({last})",
        "f = Flatten (p)",
        f"z = Gemm <transB = {int(transposed)}> (f, w)",
    ]
    head = f"g (float[N,4,4,4] x) => (float[N,5] z) <{', '.join(weights)}>"
    return head + "{" + "\n".join(lines) + "}"


@settings(derandomize=True, max_examples=40, database=None)
@given(text=networks(), seed=st.integers(0, 99))
def test_random_networks(text: str, seed: int) -> None:
    model = build(text, seed=seed)
    before = model.SerializeToString()
    canonical = Canonicalize()(model).model
    assert_same_function(canonical, model)
    assert "BatchNormalization" not in ops(canonical)
    assert not Canonicalize()(canonical).changed
    explicit, fused = insert_and_fuse(canonical, random_adapters(canonical, seed))
    assert_same_function(fused, explicit)
    assert ops(fused) == ops(canonical)
    identity = {n: AffineMap.identity(*v.shape[:2]) for n, v in linears(canonical).items()}
    assert insert_and_fuse(canonical, identity)[1] == canonical
    assert model.SerializeToString() == before


def test_an_adapter_of_an_adapter_is_fused_as_well() -> None:
    model = build(
        "g (double[N,4,5] x) => (double[N,6,A] y) <double[6,4,3] w, double[6] b>"
        "{ [n] y = Conv (x, w, b) }"
    )
    rng = np.random.default_rng(4)
    adapters = [
        AffineMap(np.eye(6) + 0.2 * rng.standard_normal((1, 6, 6)), rng.standard_normal((1, 6)))
        for _ in range(2)
    ]
    once = InsertAdapter({"n": adapters[0]})(model).model
    explicit = InsertAdapter({"n/fskd_adapter": adapters[1]})(once).model
    assert len(explicit.graph.node) == 3
    fused = FuseAdapter()(explicit)
    assert len(fused.notes) == 2
    assert ops(fused.model) == {"Conv": 1}
    assert_same_function(fused.model, explicit)
