"""Sums of a block's columns: what ONNX Runtime adds up is what NumPy adds up in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Columns
from fskd_onnx.passes.base import Pass, PreconditionError
from fskd_onnx.passes.capture import (
    CROSS,
    CUT,
    ERROR,
    FIRST_X,
    FIRST_Y,
    GRAM,
    MATRIX,
    PATCHES,
    REGRESSORS,
    SHIFT,
    SHORTCUT,
    SQUARE_Y,
    TARGETS,
    TOTALS,
    Capture,
    CaptureActivated,
    CaptureChannels,
    CutColumns,
    JoinColumns,
    channel_inputs,
    index_inputs,
)
from fskd_onnx.passes.geometry import Geometry
from fskd_onnx.passes.linear import Linear
from tests.helpers import Array, build, linears, run

# x ─▶ [one linear node] ─▶ y
CONVS = [  # input, weight, attributes
    ("9", "6,4,3", "strides = [2], pads = [1, 0]"),
    ("9", "6,4,3", "dilations = [3], pads = [2, 4]"),
    ("5,6", "6,4,3,2", "pads = [0, 1, 2, 1], strides = [2, 1]"),
    ("7,7", "6,4,2,3", "dilations = [2, 1], pads = [0, 1, 2, 0]"),
    ("5,6", "6,4,3,2", 'auto_pad = "SAME_UPPER"'),
    ("5,6", "6,4,2,3", 'auto_pad = "SAME_LOWER"'),
    ("6,7", "6,4,4,3", 'auto_pad = "SAME_UPPER", strides = [2, 3]'),
    ("6,7", "6,4,4,2", 'auto_pad = "SAME_LOWER", strides = [3, 2]'),
    ("3,9", "6,4,1,2", 'auto_pad = "SAME_UPPER", strides = [4, 4]'),
    ("5,6", "6,4,2,2", 'auto_pad = "VALID", strides = [2, 1]'),
    ("5,6", "6,4,1,1", "strides = [2, 2]"),
    ("2,3", "6,4,2,3", "group = 1"),
    ("5,6", "6,2,3,3", "group = 2, pads = [1, 1, 1, 1]"),
    ("5,6", "4,1,3,3", "group = 4, pads = [1, 1, 1, 1], strides = [2, 2]"),
    ("5,6", "8,1,3,3", "group = 4"),
    ("3,4,5", "6,4,2,2,2", "strides = [1, 2, 2], pads = [1, 0, 0, 0, 1, 2]"),
    ("3,4,5", "6,2,2,1,3", 'auto_pad = "SAME_LOWER", strides = [2, 1, 2], group = 2'),
]
FORMS = {
    **{
        f"{weight} {attrs}": f"g (float[N,4,{image}] x) => (float[{out}] y) <float[{weight}] w,"
        f" float[{weight[0]}] b> {{ [n] y = Conv <{attrs}> (x, w, b) }}"
        for image, weight, attrs in CONVS
        for out in [",".join("NCHWD"[: weight.count(",") + 1])]
    },
    "Gemm": "g (float[N,4] x) => (float[N,6] y) <float[4,6] w, float[6] b>"
    "{ [n] y = Gemm (x, w, b) }",
    "transB": "g (float[N,4] x) => (float[N,6] y) <float[6,4] w> "
    "{ [n] y = Gemm <transB = 1, alpha: float = 0.5> (x, w) }",
    "MatMul": "g (float[N,4] x) => (float[N,6] y) <float[4,6] w> { [n] y = MatMul (x, w) }",
    "MatMul 3": "g (float[N,7,4] x) => (float[N,7,6] y) <float[4,6] w, float[6] b>"
    "{ [n] h = MatMul (x, w) y = Add (b, h) }",
    "MatMul 4": "g (float[N,2,5,4] x) => (float[N,2,5,6] y) <float[4,6] w>"
    "{ [n] y = MatMul (x, w) }",
}
SAMPLES, COUNT = 5, 3


def patches_of(linear: Linear, x: Array) -> Array:
    """Cut all patches with loops over the kernel: (samples, groups, p, positions)."""
    if linear.op != "Conv":
        return np.moveaxis(x, -1, 1).reshape(len(x), 1, x.shape[-1], -1)
    spatial, kernel = x.shape[2:], linear.kernel_shape
    rank, attrs = len(kernel), linear.node.attrs
    strides = attrs.get("strides", [1] * rank)
    dilations = attrs.get("dilations", [1] * rank)
    auto_pad = attrs.get("auto_pad", "NOTSET")
    pads = np.reshape(attrs.get("pads", [0] * 2 * rank), (2, rank)).T
    if auto_pad.startswith("SAME"):
        sizes = zip(spatial, kernel, strides, dilations, strict=True)
        need = np.array(
            [max((math.ceil(i / s) - 1) * s + (k - 1) * d + 1 - i, 0) for i, k, s, d in sizes]
        )
        less, more = need // 2, need - need // 2
        pads = np.stack([less, more] if auto_pad == "SAME_UPPER" else [more, less], axis=1)
    padded = np.pad(x, [(0, 0), (0, 0), *map(tuple, pads)])
    taps = []
    for tap in np.ndindex(*kernel):
        slices = [slice(None), slice(None)]
        for at, size, k, s, d in zip(
            tap, padded.shape[2:], kernel, strides, dilations, strict=True
        ):
            count = (size - ((k - 1) * d + 1)) // s + 1
            slices.append(slice(at * d, at * d + (count - 1) * s + 1, s))
        taps.append(padded[tuple(slices)].reshape(len(x), linear.groups, -1, 1, count_of(slices)))
    return np.concatenate(taps, axis=3).reshape(len(x), linear.groups, -1, taps[0].shape[-1])


def count_of(slices: list[slice]) -> int:
    return math.prod(len(range(s.start, s.stop, s.step)) for s in slices[2:])


def positions_first(tensor: Array, last: bool) -> Array:
    """Bring a block output into (samples, channels, positions)."""
    turned = np.moveaxis(tensor, -1, 1) if last else tensor
    return turned.reshape(*turned.shape[:2], -1)


def side_by_side(parts: Array, groups: int) -> Array:
    """Bring (samples, channels, positions) into (groups, channels of one, columns) in float64."""
    split = parts.reshape(len(parts), groups, -1, parts.shape[-1]).astype(np.float64)
    return split.transpose(1, 2, 0, 3).reshape(groups, split.shape[2], -1)


@pytest.mark.parametrize("form", FORMS)
def test_geometry_and_indices_cut_the_patches_that_the_node_sees(form: str) -> None:
    model = build(FORMS[form])
    linear = linears(model)["n"]
    x = example_input(model)
    y = run(model, {"x": x})["y"]
    geometry = Geometry.of(linear, x.shape)
    expected = patches_of(linear, x)
    assert geometry.positions == expected.shape[-1]
    assert geometry.output_shape == (y.shape[1:-1] if linear.op == "MatMul" else y.shape[2:])

    cut = run_pass(
        CutColumns(columns(linear, 6)),
        {PATCHES: x, TARGETS: targets_like(y, 6, linear)},
        index_inputs(geometry, SAMPLES, np.arange(geometry.positions)),
    )
    regressors = cut[REGRESSORS].reshape(linear.groups, expected.shape[2], SAMPLES, -1)
    np.testing.assert_array_equal(regressors, expected.transpose(1, 2, 0, 3))
    # And so they are what ONNX Runtime's own convolution sees.
    again = linear.matrix @ cut[REGRESSORS] + linear.bias.reshape(linear.groups, -1, 1)
    out = side_by_side(positions_first(y, linear.op == "MatMul"), linear.groups)
    np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-5)


TRANSPOSED = [  # input, weight, attributes
    ("5", "4,3,3", "strides = [2]"),
    ("5", "4,3,2", "strides = [3], output_padding = [1], pads = [0, 1]"),
    ("3,4", "4,3,3,2", "pads = [1, 0, 0, 1], strides = [1, 2], dilations = [2, 1]"),
    ("3,4", "4,3,2,2", "strides = [2, 2], group = 2"),
    ("3,4", "4,1,3,3", "strides = [2, 2], group = 4, pads = [1, 1, 1, 1]"),
    ("3,4", "4,3,3,3", 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    ("3,4", "4,3,3,4", 'auto_pad = "SAME_LOWER", strides = [2, 3]'),
    ("2,3,2", "4,3,2,1,2", "strides = [2, 1, 2]"),
]


@pytest.mark.parametrize(("image", "weight", "attrs"), TRANSPOSED)
def test_patches_of_transposed_convolutions(image: str, weight: str, attrs: str) -> None:
    groups = int(attrs.partition("group = ")[2][:1] or 1)
    width = int(weight[2]) * groups
    out = ",".join("NCHWD"[: weight.count(",") + 1])
    model = build(
        f"g (float[N,4,{image}] x) => (float[{out}] y) <float[{weight}] w, float[{width}] b>"
        f"{{ [n] y = ConvTranspose <{attrs}> (x, w, b) }}"
    )
    linear = linears(model)["n"]
    x = example_input(model)
    y = run(model, {"x": x})["y"]
    geometry = Geometry.of(linear, x.shape)
    assert geometry.output_shape == y.shape[2:]
    cut = run_pass(
        CutColumns(columns(linear, width)),
        {PATCHES: x, TARGETS: y},
        index_inputs(geometry, SAMPLES, np.arange(geometry.positions)),
    )
    again = linear.matrix @ cut[REGRESSORS] + linear.bias.reshape(groups, -1, 1)
    np.testing.assert_allclose(
        again, side_by_side(positions_first(y, False), groups), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_sums(form: str, outputs: bool) -> None:
    """All variants of targets, over some positions of the first samples of a padded batch."""
    case = Example(FORMS[form], residual=True, outputs=outputs)
    x, variants = case.expected()
    expected = {
        GRAM: x @ x.transpose(0, 2, 1),
        FIRST_X: x.sum(2),
        CROSS: variants @ x.transpose(0, 2, 1),
        FIRST_Y: variants.sum(3),
        SQUARE_Y: (variants**2).sum(3),
    }
    sums = run_pass(Capture(case.columns), case.tensors, case.indices)
    assert_sums(sums, expected, 1e-5 if outputs else 1e-6)

    plain = replace(case.columns, residual=False)
    tensors = {name: case.tensors[name] for name in (PATCHES, TARGETS)}
    expected |= {name: expected[name][:1] for name in (CROSS, FIRST_Y, SQUARE_Y)}
    assert_sums(
        run_pass(Capture(plain), tensors, case.indices), expected, 1e-5 if outputs else 1e-6
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (-0.5, 0.5), (-math.inf, 0.3)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("form", ["MatMul 3", "6,2,3,3 group = 2, pads = [1, 1, 1, 1]"])
def test_sums_of_what_an_activation_shows(
    form: str, residual: bool, low: float, high: float
) -> None:
    case = Example(FORMS[form], residual=residual)
    x, variants = case.expected()
    rng = np.random.default_rng(4)
    matrix = rng.standard_normal(case.linear.matrix.shape)
    shift = rng.standard_normal((*matrix.shape[:2], 1))
    shortcut = case.group(case.tensors[SHORTCUT], None) if residual else np.zeros(1)
    u = matrix @ x + shift + shortcut
    t = variants[-1] + shortcut
    hidden = np.where(t <= low, np.minimum(u, low), np.where(t >= high, np.maximum(u, high), t))
    y = hidden - shortcut
    expected = {
        CROSS: (y @ x.transpose(0, 2, 1))[np.newaxis],
        FIRST_Y: y.sum(2)[np.newaxis],
        SQUARE_Y: (y**2).sum(2)[np.newaxis],
        ERROR: ((np.clip(u, low, high) - np.clip(t, low, high)) ** 2).sum(),
    }
    prediction = {MATRIX: matrix.astype(np.float32), SHIFT: shift.astype(np.float32)}
    capture = CaptureActivated(case.columns, low, high)
    assert_sums(run_pass(capture, case.tensors, case.indices | prediction), expected, 1e-5)


def test_an_exact_prediction_leaves_targets_and_no_error() -> None:
    case = Example(FORMS["MatMul 3"], residual=False, own_targets=True)
    exact = {
        MATRIX: case.linear.matrix.astype(np.float32),
        SHIFT: case.linear.bias.reshape(1, -1, 1).astype(np.float32),
    }
    sums = run_pass(
        CaptureActivated(case.columns, 0.0, math.inf), case.tensors, case.indices | exact
    )
    plain = run_pass(Capture(case.columns), case.tensors, case.indices)
    assert_sums(sums, {name: plain[name] for name in (CROSS, FIRST_Y, SQUARE_Y)}, 1e-6)
    assert sums[ERROR] < 1e-9


@pytest.mark.parametrize("residual", [False, True])
def test_columns_cut_apart_and_joined_are_summed_as_one(residual: bool) -> None:
    case = Example(FORMS["6,2,3,3 group = 2, pads = [1, 1, 1, 1]"], residual=residual)
    whole = case.columns
    cuts = [
        run_pass(CutColumns(whole), case.tensors, index_inputs(case.geometry, count, chosen))
        for count, chosen in ((2, np.array([0, 7])), (4, np.array([3, 4, 29])), (1, np.array([5])))
    ]
    names = (REGRESSORS, *CUT.values()) if residual else (REGRESSORS, CUT[TARGETS])
    assert whole.names == names
    assert [list(cut) for cut in cuts] == [list(names)] * 3
    joined = run_pass(
        JoinColumns(whole, 3), {}, {f"{n}/{i}": cut[n] for i, cut in enumerate(cuts) for n in cut}
    )
    for name in names:
        np.testing.assert_array_equal(joined[name], np.concatenate([c[name] for c in cuts], axis=2))
    assert joined[REGRESSORS].shape[2] == 2 * 2 + 4 * 3 + 1

    apart = [run_pass(Capture(whole), cut, {}) for cut in cuts]
    expected = {name: np.sum([part[name] for part in apart], axis=0) for name in apart[0]}
    assert_sums(run_pass(Capture(whole), joined, {}), expected, 1e-12)
    direct = run_pass(
        Capture(whole), case.tensors, index_inputs(case.geometry, 2, np.array([0, 7]))
    )
    assert_sums(direct, apart[0], 1e-12)


def test_float64_networks_are_summed_in_float64() -> None:
    case = Example(FORMS["MatMul 3"].replace("float", "double"), residual=True)
    x, variants = case.expected()
    sums = run_pass(Capture(case.columns), case.tensors, case.indices)
    assert_sums(sums, {GRAM: x @ x.transpose(0, 2, 1), FIRST_Y: variants.sum(3)}, 1e-13)


def test_float16_networks_are_summed_without_overflow() -> None:
    case = Example(FORMS["MatMul 3"].replace("float", "float16"), residual=False, scale=200.0)
    x, variants = case.expected()
    sums = run_pass(Capture(case.columns), case.tensors, case.indices)
    expected = {GRAM: x @ x.transpose(0, 2, 1), SQUARE_Y: (variants**2).sum(3)}
    assert expected[GRAM].max() > np.finfo(np.float16).max
    assert_sums(sums, expected, 1e-6)


def test_the_teacher_may_be_another_operator_with_channels_elsewhere() -> None:
    # A student's 1x1 convolution aims at a teacher's MatMul, whose channels are on the last axis.
    text = "g (float[N,4,7] x) => (float[N,6,7] y) <float[6,4,1] w> { [n] y = Conv (x, w) }"
    case = Example(text, residual=False)
    x, variants = case.expected()
    turned = case.tensors | {TARGETS: np.moveaxis(case.tensors[TARGETS], 1, -1)}
    sums = run_pass(Capture(replace(case.columns, targets_last=True)), turned, case.indices)
    assert_sums(sums, {CROSS: variants @ x.transpose(0, 2, 1)}, 1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_sums_of_channels(last: bool) -> None:
    tensor = np.random.default_rng(0).standard_normal((5, 4, 3, 6)).astype(np.float32)
    chosen = np.array([1, 2, 11])
    width = 6 if last else 4
    step = CaptureChannels("tensor", width, last)
    sums = run_pass(step, {"tensor": tensor}, channel_inputs(COUNT, chosen))
    x = side_by_side(positions_first(tensor, last)[:COUNT, :, chosen], 1)
    assert_sums(sums, {GRAM: x @ x.transpose(0, 2, 1), FIRST_X: x.sum(2)}, 1e-6)


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize(
    "make",
    [
        CutColumns,
        Capture,
        lambda columns: JoinColumns(columns, 2),
        lambda columns: CaptureActivated(columns, 0.0, 6.0),
        lambda columns: CaptureChannels(PATCHES, 4, True),
    ],
    ids=["CutColumns", "Capture", "JoinColumns", "CaptureActivated", "CaptureChannels"],
)
def test_opsets_that_write_the_sums_otherwise_are_refused(
    make: Callable[[Columns], Pass], opset: int
) -> None:
    case = Example(FORMS["MatMul"], residual=False)
    graph = gs.Graph(opset=opset, name="capture")
    with pytest.raises(PreconditionError, match=f"opset 13 to 17; the graph 'capture' has {opset}"):
        make(case.columns).run(graph)
    assert not graph.nodes


def test_each_pass_says_what_it_did() -> None:
    case = Example(FORMS["MatMul"], residual=False)
    inputs = [gs.Variable(name, np.float32) for name in case.tensors]
    for step, note in (
        (CutColumns(case.columns), "columns of 'n' cut"),
        (JoinColumns(case.columns, 2), "columns of 'n' joined"),
        (Capture(case.columns), "moments of 'n' appended"),
        (CaptureActivated(case.columns, 0.0, 6.0), "activated moments of 'n' appended"),
        (CaptureChannels(PATCHES, 4, True), f"moments of '{PATCHES}' appended"),
    ):
        assert step.run(gs.Graph(inputs=list(inputs), opset=17)) == [note]


@dataclass
class Example:
    """A block with random tensors around it, and a choice of their columns.

    The teacher has 7 channels (or those of a grouped block), the student aims at some of them, in
    another order.
    """

    text: str
    residual: bool
    outputs: bool = False
    own_targets: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        model = build(self.text)
        self.linear = linears(model)["n"]
        rng = np.random.default_rng(3)
        x = (self.scale * example_input(model)).astype(example_input(model).dtype)
        y = run(model, {"x": x})["y"]
        width = self.linear.width
        self.teacher_width = width if self.own_targets else width + 1
        self.columns = columns(self.linear, self.teacher_width, self.residual, self.outputs)
        if self.own_targets:
            self.columns = replace(self.columns, channels=np.arange(width))
        self.tensors = {
            PATCHES: x,
            TARGETS: y if self.own_targets else targets_like(y, width + 1, self.linear),
        }
        if self.residual:
            self.tensors[TOTALS] = targets_like(y, width + 1, self.linear, seed=8)
            self.tensors[SHORTCUT] = rng.standard_normal(y.shape).astype(y.dtype)
        self.geometry = Geometry.of(self.linear, x.shape)
        count = self.geometry.positions
        self.chosen = np.sort(rng.choice(count, (count + 1) // 2, replace=False))
        self.indices = index_inputs(self.geometry, COUNT, self.chosen)

    def expected(self) -> tuple[Array, Array]:
        """Regressors (groups, m, columns) and targets (variants, groups, n, columns)."""
        patches = patches_of(self.linear, self.tensors[PATCHES])[:COUNT, ..., self.chosen]
        x = patches.transpose(1, 2, 0, 3).reshape(*patches.shape[1:3], -1).astype(np.float64)
        if self.outputs:
            x = self.linear.matrix @ x + self.linear.bias.reshape(len(x), -1, 1)
        chosen = self.columns.channels
        variants = [self.group(self.tensors[TARGETS], chosen)]
        if self.residual:
            shortcut = self.group(self.tensors[SHORTCUT], None)
            variants.append(self.group(self.tensors[TOTALS], chosen) - shortcut)
        return x, np.stack(variants)

    def group(self, tensor: Array, channels: Array | None) -> Array:
        parts = positions_first(tensor, self.linear.op == "MatMul")[:COUNT, :, self.chosen]
        return side_by_side(parts if channels is None else parts[:, channels], self.linear.groups)


def example_input(model: onnx.ModelProto) -> Array:
    tensor = model.graph.input[0].type.tensor_type
    shape = [SAMPLES, *(dim.dim_value for dim in tensor.shape.dim[1:])]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return np.random.default_rng(2).standard_normal(shape).astype(dtype)


def targets_like(y: Array, width: int, linear: Linear, seed: int = 7) -> Array:
    shape = [len(y), *y.shape[1:-1], width] if linear.op == "MatMul" else [len(y), width]
    shape += [] if linear.op == "MatMul" else y.shape[2:]
    return np.random.default_rng(seed).standard_normal(shape).astype(y.dtype)


def columns(linear: Linear, width: int, residual: bool = False, outputs: bool = False) -> Columns:
    return Columns(
        linear=linear,
        outputs=outputs,
        groups=linear.groups,
        channels=np.random.default_rng(6).permutation(width)[: linear.width],
        targets_width=width,
        targets_last=linear.op == "MatMul",
        residual=residual,
    )


def run_pass(
    step: Pass, tensors: Mapping[str, Array], others: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a pass on a graph that has some tensors as inputs; the pass makes inputs of the others.

    The result is what its graph gives, in order.
    """
    inputs = [gs.Variable(name, v.dtype, [None] * v.ndim) for name, v in tensors.items()]
    graph = gs.Graph(inputs=inputs, opset=17)
    step.run(graph)
    return run(gs.export_onnx(graph, ir_version=8), {**tensors, **others})


def assert_sums(sums: Mapping[str, Array], expected: Mapping[str, Array], rtol: float) -> None:
    """Compare relative to the largest value of each."""
    for name, value in expected.items():
        assert sums[name].dtype == np.float64
        assert sums[name].shape == np.shape(value), name
        largest = float(np.abs(value).max())
        np.testing.assert_allclose(sums[name], value, rtol=0, atol=rtol * largest, err_msg=name)
