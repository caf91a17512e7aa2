"""Channel spaces: which tensors must carry the same channels, and who is free to change them."""

from __future__ import annotations

import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis.coupled_channels import CoupledChannels, find_coupled_channels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from tests.helpers import build


def spaces_of(text: str, opset: int = 17, alone: str = "", **values: list[int]) -> CoupledChannels:
    """Find the spaces of a graph; the block ``alone`` is not refitted."""
    graph = gs.import_onnx(build(text, values, opset=opset))
    views = [view for view in find_linear(graph) if isinstance(view, Linear)]
    return find_coupled_channels(graph, {view.name: view for view in views if view.name != alone})


def single(spaces: CoupledChannels, tensor: str) -> int:
    layout = spaces.layout(tensor)
    assert layout is not None
    (space,) = layout
    return space


def test_a_chain_has_a_space_per_block() -> None:
    # x ─▶ Conv ─▶ y1 ─▶ Relu ─▶ r1 ─▶ Conv ─▶ y2 ─▶ MaxPool ─▶ p2 ─▶ Conv ─▶ z
    spaces = spaces_of("""g (float[N,3,4,4] x) => (float[N,6,1,1] z)
      <float[4,3,1,1] w1, float[5,4,3,3] w2, float[6,5,1,1] w3> {
        y1 = Conv (x, w1)
        r1 = Relu (y1)
        y2 = Conv (r1, w2)
        p2 = MaxPool <kernel_shape = [2,2]> (y2)
        z = Conv (p2, w3)
    }""")
    assert spaces.layout("x") is None
    first, second, last = (single(spaces, name) for name in ("y1", "y2", "z"))
    assert len({first, second, last}) == 3
    assert (single(spaces, "r1"), single(spaces, "p2")) == (first, second)
    assert spaces.free(first)
    assert spaces.free(second)
    assert not spaces.free(last)


def test_a_residual_stream_is_one_space() -> None:
    # x ─▶ Conv ─▶ y1 ─▶ Relu ─▶ Conv ─▶ y2 ─▶ + ─▶ Conv ─▶ y3 ─▶ + ─▶ s2 ─▶ Conv ─▶ z
    #              └──────────────────────────▶ ┘└──────────────▶ ┘
    spaces = spaces_of("""g (float[N,3,4,4] x) => (float[N,6,4,4] z)
      <float[4,3,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3, float[6,4,1,1] w4> {
        y1 = Conv (x, w1)
        r1 = Relu (y1)
        y2 = Conv (r1, w2)
        s1 = Add (y2, y1)
        y3 = Conv (s1, w3)
        s2 = Sum (s1, y3)
        z = Conv (s2, w4)
    }""")
    assert len({single(spaces, name) for name in ("y1", "r1", "y2", "s1", "y3", "s2")}) == 1
    assert single(spaces, "z") != single(spaces, "y1")
    assert spaces.free(single(spaces, "y3"))


def test_a_stream_with_one_bound_reader_is_bound_as_a_whole() -> None:
    # x ─┬▶ Conv ─▶ y1 ─▶ + ─▶ s ─▶ Conv ─▶ z
    #    └▶ Conv ─▶ y2 ─▶ ┘    and y1 ─▶ Softmax ─▶ u
    text = """g (float[N,3,4,4] x) => (float[N,6,4,4] z, float[N,4,4,4] u)
      <float[4,3,1,1] w1, float[4,3,1,1] w2, float[6,4,1,1] w3> {{
        y1 = Conv (x, w1)
        y2 = Conv (x, w2)
        s = Add (y1, y2)
        z = Conv (s, w3)
        u = {}
    }}"""
    for reader in ("Softmax <axis = 1> (y1)", "Identity (y1)", "Relu (s)"):
        spaces = spaces_of(text.format(reader))
        assert not spaces.free(single(spaces, "y2"))


def test_a_depthwise_block_follows_its_input() -> None:
    # x ─▶ Conv ─▶ y1 ─▶ Clip ─▶ r1 ─▶ depthwise ─▶ y2 ─▶ Conv ─▶ z
    text = """g (float[N,3,4,4] x) => (float[N,6,4,4] z)
      <float[4,3,1,1] w1, float[{wide},{deep},3,3] w2, float[6,{wide},1,1] w3> {{
        y1 = Conv (x, w1)
        r1 = Clip (y1)
        y2 = Conv <group = {groups}, pads = [1,1,1,1]> (r1, w2)
        z = Conv (y2, w3)
    }}"""
    spaces = spaces_of(text.format(wide=4, deep=1, groups=4))
    assert single(spaces, "y2") == single(spaces, "y1")
    assert spaces.free(single(spaces, "y1"))
    for wide, deep, groups in ((8, 1, 4), (4, 2, 2)):  # two outputs per input; two groups
        spaces = spaces_of(text.format(wide=wide, deep=deep, groups=groups))
        assert single(spaces, "y2") != single(spaces, "y1")
        assert not spaces.free(single(spaces, "y1"))
        assert not spaces.free(single(spaces, "y2"))


def test_a_depthwise_block_of_the_networks_input_is_bound() -> None:
    spaces = spaces_of("""g (float[N,4,3,3] x) => (float[N,6,3,3] z)
      <float[4,1,1,1] w1, float[6,4,1,1] w2> {
        y = Conv <group = 4> (x, w1)
        z = Conv (y, w2)
    }""")
    assert not spaces.free(single(spaces, "y"))


def concat(nodes: str, width: int = 8) -> CoupledChannels:
    """The spaces of two blocks y1 and y2 of four channels, and of what is behind them up to z."""
    return spaces_of(f"""g (float[1,3,4,4] x) => (float[1,6,A,B] z) <float[4,3,1,1] w1,
      float[4,3,1,1] w2, float[6,{width},1,1] w, float[1,4,4,4] c, float[8,3,1,1] w8> {{
        y1 = Conv (x, w1)
        y2 = Conv (x, w2)
        {nodes}
    }}""")


def test_a_concat_carries_its_spaces_in_order() -> None:
    # x ─┬▶ Conv ─▶ y1 ─▶ Concat ─▶ k ─▶ Relu ─▶ r ─▶ Conv ─▶ z
    #    └▶ Conv ─▶ y2 ─▶ ┘
    spaces = concat("k = Concat <axis = 1> (y2, y1) r = Relu (k) z = Conv (r, w)")
    one, two = single(spaces, "y1"), single(spaces, "y2")
    assert one != two
    assert spaces.layout("k") == spaces.layout("r") == (two, one)
    assert spaces.free(one)
    assert spaces.free(two)
    spaces = concat("k = Concat <axis = 1> (y1, y2, y1) z = Conv (k, w)", 12)
    one, two = single(spaces, "y1"), single(spaces, "y2")
    assert spaces.layout("k") == (one, two, one)


@pytest.mark.parametrize(
    ("nodes", "width"),
    [
        ("k = Concat <axis = 1> (y1, x) q = Neg (k) z = Conv (y1, w)", 4),
        ("k = Concat <axis = 1> (y1, c) z = Conv (k, w)", 8),
        ("k = Concat <axis = 1> (y1, y2) r = Softmax <axis = 1> (k) z = Conv (r, w)", 8),
        ("k = Concat <axis = 1> (y1, y2) e = Conv (x, w8) r = Add (k, e) z = Conv (r, w)", 8),
    ],
    ids=["the input", "a constant", "unknown reader", "one wide space"],
)
def test_a_concat_whose_parts_cannot_be_told_binds(nodes: str, width: int) -> None:
    spaces = concat(nodes, width)
    assert not spaces.free(single(spaces, "y1"))


def test_a_concat_of_positions_is_of_one_space() -> None:
    spaces = concat("k = Concat <axis = 2> (y1, y2) z = Conv (k, w)", 4)
    assert single(spaces, "k") == single(spaces, "y1") == single(spaces, "y2")
    assert spaces.free(single(spaces, "y1"))
    spaces = products("k = Concat <axis = 1> (y, u) z = MatMul (k, w)", 6, "N,8,5")
    assert single(spaces, "k") == single(spaces, "y") == single(spaces, "u")
    assert spaces.free(single(spaces, "y"))


def test_a_concat_that_is_split_again_gives_back_its_spaces() -> None:
    spaces = concat("""k = Concat <axis = 1> (y1, y2) r = Relu (k) a, b = Split <axis = 1> (r)
        s = Concat <axis = 1> (b, a) z = Conv (s, w)""")
    one, two = single(spaces, "y1"), single(spaces, "y2")
    assert (single(spaces, "a"), single(spaces, "b")) == (one, two)
    assert spaces.layout("s") == (two, one)
    assert spaces.free(one)
    assert spaces.free(two)


@pytest.mark.parametrize(
    "nodes",
    [
        "a, b = Split <axis = 1> (y1) z = Conv (a, w)",
        "a, b = Split <axis = 1> (y1) s = Concat <axis = 1> (b, a) z = Conv (s, w)",
        "a, b = Split <axis = 1> (y1) r = Concat <axis = 1> (b, a) s = Add (r, y2) z = Conv (s, w)",
    ],
    ids=["a half", "halves in another order", "halves that are added"],
)
def test_a_block_that_reads_a_space_in_parts_binds_it(nodes: str) -> None:
    spaces = concat(nodes, 2 if "(a, w)" in nodes else 4)
    assert not spaces.free(single(spaces, "y1"))


def test_a_gate_of_one_channel_leaves_what_it_scales_free() -> None:
    # x ─┬▶ Conv ─▶ y ─▶ * ─▶ m ─▶ Conv ─▶ z
    #    └▶ Conv ─▶ g ─▶ ┘
    spaces = spaces_of("""g (float[N,3,4,4] x) => (float[N,6,4,4] z)
      <float[5,3,1,1] w, float[1,3,1,1] v, float[6,5,1,1] k> {
        y = Conv (x, w)
        g = Conv (x, v)
        m = Mul (g, y)
        z = Conv (m, k)
    }""")
    assert single(spaces, "m") == single(spaces, "y") != single(spaces, "g")
    assert spaces.free(single(spaces, "y"))
    assert not spaces.free(single(spaces, "g"))


def test_concats_that_are_added_are_merged_part_by_part() -> None:
    spaces = concat("""k = Concat <axis = 1> (y1, y2) j = Concat <axis = 1> (y2, y2)
        s = Add (k, j) z = Conv (s, w)""")
    assert single(spaces, "y1") == single(spaces, "y2")
    assert spaces.free(single(spaces, "y1"))


@pytest.mark.parametrize("flat", ["Flatten (p)", "Flatten <axis = 1> (p)", "Reshape (p, s)"])
def test_a_flattened_tensor_stays_in_its_space(flat: str) -> None:
    # x ─▶ Conv ─▶ y ─▶ AveragePool ─▶ p ─▶ Flatten ─▶ f ─▶ Gemm ─▶ z
    spaces = spaces_of(
        f"""g (float[2,3,4,4] x) => (float[2,6] z)
          <float[5,3,1,1] w, float[6,20] k, int64[2] s> {{
            y = Conv (x, w)
            p = AveragePool <kernel_shape = [3,3]> (y)
            f = {flat}
            z = Gemm <transB = 1> (f, k)
        }}""",
        s=[0, -1],
    )
    assert single(spaces, "f") == single(spaces, "y")
    assert spaces.free(single(spaces, "y"))


def test_a_gate_of_squeeze_and_excitation_is_of_the_space_that_it_scales() -> None:
    # x ─▶ Conv ─▶ y ──────────────────────────────────────────────▶ * ─▶ m ─▶ Conv ─▶ z
    #              └▶ ReduceMean ─▶ Conv ─▶ q ─▶ Relu ─▶ Conv ─▶ Sigmoid ─▶ ┘
    spaces = spaces_of("""g (float[N,3,4,4] x) => (float[N,6,4,4] z)
      <float[4,3,1,1] w1, float[2,4,1,1] w2, float[4,2,1,1] w3, float[6,4,1,1] w4> {
        y = Conv (x, w1)
        p = ReduceMean <axes = [2,3]> (y)
        q = Conv (p, w2)
        r = Relu (q)
        e = Conv (r, w3)
        g = Sigmoid (e)
        m = Mul (y, g)
        z = Conv (m, w4)
    }""")
    assert len({single(spaces, name) for name in ("y", "p", "e", "g", "m")}) == 1
    assert single(spaces, "q") != single(spaces, "y")
    assert spaces.free(single(spaces, "y"))
    assert spaces.free(single(spaces, "q"))


FOLLOWS = [  # channel j of r depends on channel j of y alone
    "r = LeakyRelu (y)",
    "r = Mul (y, one)",
    "r = Div (one, y)",
    "t = Sigmoid (y) r = Mul (y, t)",
    "r = Max (y, y)",
    "r = AveragePool <kernel_shape = [2,2]> (y)",
    "r = ReduceMean <axes = [2,3]> (y)",
    "r = ReduceMean <axes = [-1,-2]> (y)",
    "r = GlobalMaxPool (y)",
    "r = Transpose <perm = [0,1,3,2]> (y)",
    "t = Transpose <perm = [0,2,3,1]> (y) u = Relu (t) r = Transpose <perm = [0,3,1,2]> (u)",
    "r = Mul (y, place)",
    "r = Add (y, mask)",
    "r = Slice (y, at0, at2, at2, at1)",
    'r = Pad <mode = "reflect"> (y, pads)',
    "t, u = Split <axis = 2> (y) r = Concat <axis = 2> (u, t)",
    "t = Shape (y) r = Relu (y)",
]
BINDS = [  # it depends on others, or constants tell channels apart
    "r = Softmax <axis = 1> (y)",
    "r = PRelu (y, slope)",
    "r = Add (y, slope)",
    "r = Mul (slope, y)",
    "r = Add (y, i)",
    "t = ReduceMean <axes = [1]> (y) r = Sub (y, t)",
    "t = ReduceMean <axes = [-3]> (y) r = Sub (y, t)",
    "t = ReduceMean (y) r = Sub (y, t)",
    "t = Flatten <axis = 2> (y) r = Relu (y)",
    "t = Transpose <perm = [0,3,2,1]> (y) r = GlobalAveragePool (t)",
    "t = Gather <axis = 1> (y, order) r = Relu (y) u = Conv (t, k)",
    "r = Where (yes, y, slope)",
    "r = own.Relu (y)",
    "r = If (yes) <then_branch = a () => (float[N,5,4,4] p) { p = Neg (y) },"
    " else_branch = b () => (float[N,5,4,4] q) { q = Abs (y) }>",
]


@pytest.mark.parametrize("nodes", FOLLOWS + BINDS)
def test_operators(nodes: str) -> None:
    # x ─▶ Conv ─▶ y ─▶ [nodes] ─▶ r ─▶ Conv ─▶ z
    spaces = spaces_of(
        f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
          g (float[N,3,4,4] x, float[N,5,4,4] i, float[N,1,4,4] mask, bool yes)
          => (float[N,6,A,B] z) <float[5,3,1,1] w, float[6,5,1,1] k, float one, float[5,1,1] slope,
          float[4,4] place, int64[1] at0, int64[1] at1, int64[1] at2, int64[5] order,
          int64[8] pads> {{
            [c] y = Conv (x, w)
            {nodes}
            z = Conv (r, k)
        }}""",
        at0=[0],
        at1=[1],
        at2=[2],
        order=[4, 3, 2, 1, 0],
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
    )
    assert spaces.free(single(spaces, "y")) == (nodes in FOLLOWS)
    assert nodes in BINDS or single(spaces, "r") == single(spaces, "y")


@pytest.mark.parametrize(("axes", "free"), [([2, 3], True), ([-1, -2], True), ([0, 1], False)])
def test_axes_that_are_inputs(axes: list[int], free: bool) -> None:
    spaces = spaces_of(
        """g (float[N,3,4,4] x) => (float[A,6,C,D] z)
          <float[5,3,1,1] w, float[6,5,1,1] k, int64[2] axes> {
            y = Conv (x, w)
            m = ReduceMean (y, axes)
            r = Sub (y, m)
            z = Conv (r, k)
        }""",
        opset=18,
        axes=axes,
    )
    assert spaces.free(single(spaces, "y")) == free


def test_a_block_that_is_not_refitted_binds_what_it_reads() -> None:
    # x ─▶ Conv ─▶ y ─▶ Conv ─▶ z
    text = """g (float[N,3,4,4] x) => (float[N,6,4,4] z) <float[5,3,1,1] w, float[6,5,1,1] k> {
        [first] y = Conv (x, w)
        [second] z = Conv (y, k)
    }"""
    assert spaces_of(text).free(0)
    spaces = spaces_of(text, alone="second")
    assert not spaces.free(single(spaces, "y"))
    assert spaces.layout("z") is None
    spaces = spaces_of(text, alone="first")
    assert spaces.layout("y") is None


def products(nodes: str, width: int = 6, out: str = "N,A,5") -> CoupledChannels:
    """The spaces of x ─▶ MatMul ─▶ Add ─▶ y, x ─▶ MatMul ─▶ u, and what is behind them up to z."""
    return spaces_of(f"""g (float[N,4,3] x) => (float[{out}] z) <float[3,6] w1, float[6] b1,
      float[3,6] w2, float[{width},5] w> {{
        h = MatMul (x, w1)
        y = Add (h, b1)
        u = MatMul (x, w2)
        {nodes}
    }}""")


@pytest.mark.parametrize(
    ("nodes", "width"),
    [
        ("r = Relu (y) z = MatMul (r, w)", 6),
        ("r = Add (y, u) z = MatMul (r, w)", 6),
        ("k = Concat <axis = -1> (y, u) z = MatMul (k, w)", 12),
    ],
)
def test_channels_on_the_last_axis_are_followed(nodes: str, width: int) -> None:
    spaces = products(nodes, width)
    assert spaces.free(single(spaces, "y"))
    assert (single(spaces, "y") == single(spaces, "u")) == ("Add" in nodes)


@pytest.mark.parametrize(
    ("nodes", "width", "out"),
    [
        ("f = Flatten (y) z = MatMul (f, w)", 24, "N,5"),
        ("p = GlobalAveragePool (y) q = Neg (p) z = MatMul (y, w)", 6, "N,4,5"),
        ("m = ReduceMean <axes = [2]> (y) r = Sub (y, m) z = MatMul (r, w)", 6, "N,4,5"),
        ("m = ReduceMean <axes = [-1]> (y) r = Sub (y, m) z = MatMul (r, w)", 6, "N,4,5"),
    ],
    ids=["flatten", "pool", "mean", "last mean"],
)
def test_what_takes_the_last_axis_for_positions_binds(nodes: str, width: int, out: str) -> None:
    spaces = products(nodes, width, out)
    assert not spaces.free(single(spaces, "y"))


SHARED = """g (float[N,3,4,4] x1, float[N,3,4,4] x2) => (float[N,2,4,4] z1, float[N,2,4,4] z2)
  <float[4,3,1,1] v1, float[4,3,1,1] v2, float[5,4,1,1] w, float[2,5,1,1] k1, float[2,5,1,1] k2> {{
    [in1] y1 = Conv (x1, v1)
    [in2] y2 = {second}
    [one] h1 = Conv (y1, w)
    [two] h2 = Conv (y2, w)
    [out1] z1 = Conv (h1, k1)
    [out2] z2 = Conv (h2, k2)
}}"""


def test_nodes_of_the_same_weights_read_the_same_channels_and_give_the_same() -> None:
    spaces = spaces_of(SHARED.format(second="Conv (x2, v2)"))
    inner, outer = single(spaces, "y1"), single(spaces, "h1")
    assert (single(spaces, "y2"), single(spaces, "h2")) == (inner, outer)
    assert spaces.free(inner)
    assert spaces.free(outer)


@pytest.mark.parametrize("alone", ["one", "two"])
def test_a_use_that_is_not_refitted_fixes_what_the_others_read(alone: str) -> None:
    spaces = spaces_of(SHARED.format(second="Conv (x2, v2)"), alone=alone)
    assert not any(spaces.free(single(spaces, name)) for name in ("y1", "y2"))


def test_a_use_of_the_networks_input_fixes_what_the_others_read() -> None:
    text = SHARED.format(second="Identity (x2)").replace("float[N,3,4,4] x2", "float[N,4,4,4] x2")
    spaces = spaces_of(text)
    assert not spaces.free(single(spaces, "y1"))
    assert spaces.free(single(spaces, "h1"))
