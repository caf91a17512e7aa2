"""Sums of a block's columns, and fits to them, against NumPy on whole activations."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting import block_columns
from fskd_onnx.fitting.adapters import Kernel, Pointwise
from fskd_onnx.fitting.block_columns import BlockColumns
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_plan import BlockPlan, BlockUse
from fskd_onnx.fitting.block_sources import BlockRequest
from fskd_onnx.fitting.family import Family
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg import threads
from fskd_onnx.linalg.moments import CrossMoments, GramMoments, Moments, sum_moments
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.passes.analysis.linear import Linear
from fskd_onnx.runtime.column_sampling import RandomSampling
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, build, linears, random_feeds, run

Floats = NDArray[np.float64]

FOLDS, WIDTH = 3, 4
CHANNELS = np.array([3, 0, 5, 2])

# x ─▶ Conv ─▶ Relu ─▶ h ─▶ [n] ─▶ y ─▶ + ─▶ s        teacher: x ─▶ [n] ─▶ y ─▶ + ─▶ s
#                      └────────────────▶ ┘                    └──▶ Conv ─▶ k ─▶ ┘
STUDENT = """net (float[N,2,{size},{size}] x) => (float[N,4,{size},{size}] s)
    <float[{inner},2,1,1] v, float[4,{per},{kernel},{kernel}] w, float[4] b> {{
    first = Conv(x, v)
    h = Relu(first)
    [n] y = Conv<pads=[{pad},{pad},{pad},{pad}], group={groups}>(h, w, b)
    s = Add(y, h)
}}"""
TEACHER = """net (float[N,2,{size},{size}] x) => (float[N,6,{size},{size}] s)
    <float[6,2,3,3] w, float[6,2,1,1] v> {{
    [n] y = Conv<pads=[1,1,1,1]>(x, w)
    k = Conv(x, v)
    s = Add(y, k)
}}"""


@dataclass(frozen=True)
class Block:
    """A block under test.

    Attributes:
        samples: their number.
        size: extent of the image.
        kernel: extent of the kernel.
        groups: of the convolution.
        inner: channels that it reads.
        columns: how many are sampled.
        outputs: whether outputs are regressors.
        residual: whether the error is seen behind the sum.
        across_groups: whether outputs of all groups are regressors of all targets.
        whole_numbers: whether weights and samples are small whole numbers, whose sums and products
            are exact in float32, whatever their order.
        overflows: whether activations overflow for all samples of the first fold and one of the
            next.
    """

    samples: int = 30
    size: int = 5
    kernel: int = 3
    groups: int = 1
    inner: int = 4
    columns: int = 10**6
    outputs: bool = False
    residual: bool = False
    across_groups: bool = False
    whole_numbers: bool = False
    overflows: bool = False

    def models(self) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        values = {
            "size": self.size,
            "kernel": self.kernel,
            "pad": self.kernel // 2,
            "groups": self.groups,
            "inner": self.inner,
            "per": self.inner // self.groups,
        }
        student = STUDENT.format(**values)
        if self.inner != WIDTH:  # what it reads is no shortcut then
            student = student.replace("s = Add(y, h)", "s = Identity(y)")
        models = build(student), build(TEACHER.format(**values), seed=1)
        for tensor in (t for model in models for t in model.graph.initializer):
            if self.whole_numbers:
                value = np.round(2 * onnx.numpy_helper.to_array(tensor))
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
            if self.overflows and tensor.name == "v":
                value = onnx.numpy_helper.to_array(tensor) * np.float32(100)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return models


@dataclass
class Opened:
    """A block's columns and sums, and whole activations of both networks."""

    columns: BlockColumns
    data: BlockData
    teacher_pass: TeacherPass
    student: dict[str, Array]
    teacher: dict[str, Array]

    @property
    def linear(self) -> Linear:
        return self.columns.request.linear

    @property
    def rows(self) -> NDArray[np.intp]:
        return np.arange(self.data.regressors.block_map.shape[1])

    @property
    def own(self) -> AffineMap:
        """The block as it is, as a map of the regressors."""
        return AffineMap(self.data.regressors.block_map, self.bias)

    @property
    def bias(self) -> Floats:
        return self.linear.bias.reshape(self.linear.groups, -1)

    @property
    def targets(self) -> NDArray[np.intp]:
        """All targets of a group; across groups there is one group."""
        return np.arange(len(CHANNELS)) if self.columns.request.across_groups else self.rows

    def moments(self) -> list[Moments]:
        """The moments of each fold, with targets of the block output."""
        return self.data.moments(self.targets)

    def variants(self, rows: NDArray[np.intp] | None = None) -> list[list[Moments]]:
        """The same, and where the error is seen behind a sum, with targets of that."""
        rows = self.targets if rows is None else rows
        plain = self.data.moments(rows)
        if not self.data.residual:
            return [plain]
        return [plain, joined(plain, self.data.cross_moments(rows, residual=True))]

    def truth(self) -> list[Columns]:
        """The columns of each fold."""
        groups = self.linear.groups
        folds: dict[int, list[Columns]] = {}
        for index, found in self.teacher_pass.columns(0).items():
            batch = self.teacher_pass.batches[index]
            samples = batch.samples[: found.count]

            def cut(tensor: Array, samples: NDArray[np.intp], at: NDArray[np.intp]) -> Floats:
                flat = tensor[samples].reshape(len(samples), tensor.shape[1], -1)[:, :, at]
                columns = np.moveaxis(flat, 1, 0).reshape(tensor.shape[1], -1)
                return columns.reshape(groups, -1, columns.shape[1]).astype(np.float64)

            kernel = self.linear.kernel_shape[0] if self.linear.kernel_shape else 1
            x = cut(windows(self.student["h"], kernel), samples, found.positions)
            y = cut(self.teacher["y"][:, CHANNELS], samples, found.positions)
            s, shortcut = np.zeros_like(y), np.zeros_like(y)
            if self.data.residual:
                s = cut(self.teacher["s"][:, CHANNELS], samples, found.positions)
                shortcut = cut(self.student["h"], samples, found.positions)
            folds.setdefault(batch.fold, []).append(Columns(x, y, s, shortcut))
        return [join(parts) for parts in folds.values()]


def joined(folds: list[Moments], targets: list[CrossMoments]) -> list[Moments]:
    """The moments of the same columns with other targets."""
    return [Moments(fold.of_x, of_y) for fold, of_y in zip(folds, targets, strict=True)]


@dataclass
class Columns:
    """Patches, targets, the teacher's sums and the student's shortcut: (groups, rows, columns)."""

    x: Floats
    y: Floats
    s: Floats
    shortcut: Floats


def join(parts: list[Columns]) -> Columns:
    names = ("x", "y", "s", "shortcut")
    return Columns(*(np.concatenate([getattr(p, name) for p in parts], axis=2) for name in names))


def windows(h: Array, kernel: int) -> Array:
    """Patches of zero-padded images: (samples, patch, height, width)."""
    if kernel == 1:
        return h
    pad = kernel // 2
    padded = np.pad(h, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return seen.transpose(0, 1, 4, 5, 2, 3).reshape(len(h), -1, *h.shape[2:])


def activations(model: onnx.ModelProto, images: Array) -> dict[str, Array]:
    """All that a network computes, channels first."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name not in known]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    found = run(shown, {"x": images})
    last = linears(model)["n"].op == "MatMul"
    return {name: np.moveaxis(value, -1, 1) if last else value for name, value in found.items()}


@contextmanager
def opened(
    block: Block,
    limit: int | None = None,
    models: tuple[onnx.ModelProto, onnx.ModelProto] | None = None,
    in_span: bool = False,
) -> Iterator[Opened]:
    runtime = open_runtime(["cpu"])
    student, teacher = models or block.models()
    images = random_feeds(teacher, seed=2, batch=block.samples)["x"]
    if block.whole_numbers:
        images = np.round(2 * images)
    order = np.random.default_rng(3).permutation(block.samples)
    if block.overflows:
        images[order[: block.samples // FOLDS + 1]] = 3e38
    samples = load_samples(images, input_specs(teacher))
    batches = plan_batches(np.array_split(order, FOLDS), 4, None)
    linear = linears(student)["n"]
    use = BlockUse(
        name="n",
        block_input=linear.input.name,
        columns_last=False,
        partner=linears(teacher)["n"],
        epilogue=behind(block.residual),
        teacher_sum="s" if block.residual else None,
        sampling=RandomSampling(block.columns, (5,)),
    )
    plan = BlockPlan(0, linear.matrix.shape[2], (use,))
    request = BlockRequest(
        plan,
        linear,
        CHANNELS,
        block.residual,
        needs_patches=not block.outputs,
        across_groups=block.across_groups,
    )
    with TensorStore(limit) as store:
        decoded = DecodedSamples(samples, batches, store, runtime.device)
        teacher_pass = TeacherPass(runtime, gs.import_onnx(teacher), [plan], decoded, batches)
        runner = teacher_pass.runner_of(gs.import_onnx(student))
        with runner.next_stage("block") as stage:
            columns = BlockColumns(stage, teacher_pass, request, StageTimer())
            if in_span:
                columns = columns.in_span()
            yield Opened(
                columns,
                BlockData(columns, StageTimer()),
                teacher_pass,
                activations(student, images),
                activations(teacher, images),
            )


def behind(residual: bool, low: float = -math.inf, high: float = math.inf) -> Epilogue:
    """Where the error of a block is seen."""
    return Epilogue("h", "s", low, high) if residual else Epilogue(low=low, high=high)


def sums_of(x: Floats, y: Floats) -> Moments:
    return Moments(GramMoments(x.shape[2], x @ x.transpose(0, 2, 1), x.sum(axis=2)), cross_of(x, y))


def cross_of(x: Floats, y: Floats) -> CrossMoments:
    return CrossMoments(y @ x.transpose(0, 2, 1), y.sum(axis=2), (y * y).sum(axis=2))


def assert_sums(found: Moments, expected: Moments, rtol: float = 1e-6) -> None:
    """Compare relative to the largest value of each."""
    assert found.count == expected.count
    assert_close(found.of_x, expected.of_x, ("gram", "sum_x"), rtol)
    assert_cross(found.of_y, expected.of_y, rtol)


def assert_cross(found: CrossMoments, expected: CrossMoments, rtol: float = 1e-6) -> None:
    assert_close(found, expected, ("cross", "sum_y", "square_y"), rtol)


def assert_close(found: object, expected: object, names: Sequence[str], rtol: float) -> None:
    for name in names:
        value, truth = getattr(found, name), getattr(expected, name)
        assert value.dtype == np.float64
        assert value.shape == truth.shape, name
        largest = float(np.abs(truth).max())
        np.testing.assert_allclose(value, truth, rtol=0, atol=rtol * largest, err_msg=name)


BLOCKS = [
    Block(),
    Block(groups=2),
    Block(groups=4),
    Block(kernel=1),
    Block(size=2, samples=40),
    Block(outputs=True),
    Block(outputs=True, groups=2),
    Block(across_groups=True),
    Block(across_groups=True, groups=2),
    Block(columns=300),
    Block(columns=300, groups=2, outputs=True),
]


@pytest.mark.parametrize("kept", [block_columns._KEPT_BYTES, 0])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("block", [Block(), Block(columns=300), Block(outputs=True)], ids=str)
def test_columns_that_are_not_finite_are_in_no_sum(
    block: Block, residual: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_columns, "_KEPT_BYTES", kept)
    block = replace(block, residual=residual, overflows=True)
    with warnings.catch_warnings(), opened(block) as case:
        warnings.simplefilter("error")
        found = case.variants()[0]
        error = case.data.error(case.own, behind(residual), case.rows)
        truth = [some for columns in case.truth() if (some := finite(columns)) is not None]
        assert len(truth) == len(found) == FOLDS - 1
        assert 0 < len(case.data.left_out) <= block.samples // FOLDS + 1
        w, b = case.linear.matrix, case.bias[..., np.newaxis]
        for fold, columns in zip(found, truth, strict=True):
            assert fold.count == columns.x.shape[2]
            np.testing.assert_allclose(fold.of_y.sum_y, columns.y.sum(axis=2), rtol=1e-5, atol=1e-4)
        first = truth[0]
        target = first.s if residual else first.y
        expected = np.sum((w @ first.x + b + first.shortcut - target) ** 2)
        assert error == pytest.approx(expected, rel=1e-4)


def finite(columns: Columns) -> Columns | None:
    """The columns without a value that is not finite; None where none is left."""
    parts = (columns.x, columns.y, columns.s, columns.shortcut)
    kept = np.logical_and.reduce([np.isfinite(part).all(axis=(0, 1)) for part in parts])
    return Columns(*(part[..., kept] for part in parts)) if kept.any() else None


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_moments_are_those_of_whole_activations(block: Block, residual: bool) -> None:
    with opened(replace(block, residual=residual)) as case:
        variants = case.variants()
        assert len(variants) == 1 + residual
        columns = case.truth()
        assert [len(folds) for folds in variants] == [len(columns)] * len(variants)
        for index, truth in enumerate(columns):
            x = truth.x
            if block.across_groups or block.outputs:
                x = case.linear.matrix @ x
            targets = [truth.y, truth.s - truth.shortcut]
            for folds, y in zip(variants, targets, strict=False):
                if block.across_groups:
                    x, y = (part.reshape(1, -1, part.shape[2]) for part in (x, y))
                assert_sums(folds[index], sums_of(x, y))
        count = sum(fold.count for fold in variants[0])
        everything = block.samples * block.size**2
        assert count == everything or block.columns <= count < everything


@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_of_few_inputs_are_read_as_coordinates(groups: int) -> None:
    """Four outputs of two inputs lie in a plane: z with W p = V z."""
    with opened(Block(kernel=1, inner=groups, groups=groups, outputs=True)) as case:
        v = case.data.regressors.block_map
        np.testing.assert_allclose(v.transpose(0, 2, 1) @ v, np.tile(np.eye(1), (groups, 1, 1)))
        assert v.shape == (groups, WIDTH // groups, 1)
        assert case.data.regressors.basis is None
        folds = case.moments()
        for found, truth in zip(folds, case.truth(), strict=True):
            expected = sums_of(case.linear.matrix @ truth.x, truth.y)
            np.testing.assert_allclose(
                v @ found.of_x.gram @ v.transpose(0, 2, 1), expected.of_x.gram, 1e-5
            )
            np.testing.assert_allclose(found.of_y.sum_y, expected.of_y.sum_y, rtol=1e-5, atol=1e-5)


def test_few_columns_are_a_sample_of_all() -> None:
    columns = 12 * (4 * 9 + 1)
    with opened(Block(columns=columns)) as case, opened(Block()) as everything:
        few, every = (sum_moments(one.moments()) for one in (case, everything))
    assert columns <= few.count < columns + 3 * 25 < every.count == 30 * 25
    spread = np.sqrt(np.einsum("gii->gi", every.centered_gram) / every.count / few.count)
    assert (np.abs(few.of_x.mean_x - every.of_x.mean_x) < 5 * spread).all()


def test_some_targets_have_the_sums_that_they_have_among_all() -> None:
    rows = np.array([0, 3])
    with opened(Block(residual=True)) as case:
        for one, other in zip(case.variants(rows), case.variants(), strict=True):
            for found, whole in zip(one, other, strict=True):
                assert_sums(found, whole.of_targets(rows), 1e-12)


@pytest.mark.parametrize("columns", [10**6, 300])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (-0.5, 0.5), (-math.inf, 0.3)])
@pytest.mark.parametrize("rows", [[0, 1], [1]])
def test_what_the_activation_hides_is_no_error(
    rows: list[int], low: float, high: float, residual: bool, columns: int
) -> None:
    some = np.array(rows)
    epilogue = behind(residual, low, high)
    with opened(Block(residual=residual, groups=2, columns=columns)) as case:
        fitted = case.own.of_targets(some)
        folds = case.truth()
        found = case.data.relu_aware_moments(fitted, epilogue, some)
        first, others = (
            case.data.relu_aware_moments(fitted, epilogue, some, first_fold=of_first)
            for of_first in (True, False)
        )
        for part, of_y in zip([*first, *others], found, strict=True):
            np.testing.assert_array_equal(part.cross, of_y.cross)
        for of_y, truth in zip(found, folds, strict=True):
            u, t, shortcut = seen(truth, fitted, some, residual)
            expected = np.where(t >= high, np.maximum(u, high), t)
            expected = np.where(t <= low, np.minimum(u, low), expected)
            assert_cross(of_y, cross_of(truth.x, expected - shortcut), 2e-6)
        u, t, _ = seen(folds[0], fitted, some, residual)
        error = ((np.clip(u, low, high) - np.clip(t, low, high)) ** 2).sum()
        assert case.data.error(fitted, epilogue, some) == pytest.approx(error, rel=1e-5)


def seen(
    truth: Columns, fitted: AffineMap, rows: NDArray[np.intp], residual: bool
) -> tuple[Floats, Floats, Floats]:
    """Prediction and target where the error is seen, and the shortcut."""
    u = fitted.matrix @ truth.x + fitted.shift[..., np.newaxis]
    if not residual:
        return u, truth.y[:, rows], np.zeros_like(u)
    shortcut = truth.shortcut[:, rows]
    return u + shortcut, truth.s[:, rows], shortcut


@pytest.mark.parametrize("residual", [False, True])
def test_without_an_activation_the_error_is_that_of_the_sums(residual: bool) -> None:
    epilogue = behind(residual)
    with opened(Block(residual=residual)) as case:
        found = case.data.error(case.own, epilogue, case.rows)
        first = case.variants()[-1][0]
        assert found == pytest.approx(first.error(case.own), rel=1e-7)  # predicted in float32


def test_an_exact_prediction_leaves_targets_and_no_error() -> None:
    student, _ = Block().models()
    alike = replace_channels(student)
    with opened(Block(), None, (student, alike)) as case:
        folds = case.moments()
        epilogue = Epilogue(low=0.0)
        aligned = case.own.of_targets(CHANNELS % WIDTH)
        targets = case.data.relu_aware_moments(aligned, epilogue, case.rows)
        for found, plain in zip(targets, folds, strict=True):
            assert_cross(found, plain.of_y, 1e-6)
        scale = float(folds[0].of_y.square_y.sum())
        assert case.data.error(aligned, epilogue, case.rows) < 1e-11 * scale


def replace_channels(student: onnx.ModelProto) -> onnx.ModelProto:
    """Make a teacher of a student: channels 4 and 5 are its 0 and 1 once more."""
    order = np.arange(6) % WIDTH
    wide = onnx.ModelProto()
    wide.CopyFrom(student)
    for tensor in wide.graph.initializer:
        if tensor.name in ("w", "b"):
            value = onnx.numpy_helper.to_array(tensor)[order]
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for node in wide.graph.node:
        if node.op_type == "Add":
            node.op_type = "Identity"
            del node.input[1:]
    wide.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    return wide


@pytest.mark.parametrize(
    ("chunk", "kept"), [(1, 2**28), (2**26, 0), (1, 0), (20_000, 2**28), (20_000, 0)]
)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "block",
    [Block(residual=True, whole_numbers=True), Block(groups=2, outputs=True, whole_numbers=True)],
    ids=str,
)
def test_chunks_and_what_is_kept_change_nothing(
    block: Block, count: int, chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does working on several chunks at the same time.

    Predictions are products in float32, and BLAS rounds those by how many columns are multiplied at
    once: on some processors differently for each width of a chunk. Of whole numbers they are exact.
    """
    epilogue = behind(block.residual, low=0.0)

    def summed() -> tuple[list[Moments], float]:
        with opened(block) as case:
            variants = case.variants()
            aware = case.data.relu_aware_moments(case.own, epilogue, case.rows)
            error = case.data.error(case.own, epilogue, case.rows)
            variants.append(joined(variants[0], aware))
            return [fold for folds in variants for fold in folds], error

    whole, expected = summed()
    monkeypatch.setattr(block_columns, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(block_columns, "_KEPT_BYTES", kept)
    controller, _ = threads._blas()
    monkeypatch.setattr(threads, "_blas", lambda: (controller, count))
    with threads.threads_for(1):
        apart, found = summed()
    assert found == pytest.approx(expected, rel=1e-12)
    for one, other in zip(apart, whole, strict=True):
        assert_sums(one, other, 1e-12)


@pytest.mark.parametrize("block", [Block(), Block(residual=True)])
def test_columns_in_files_are_the_same(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sums = []
    for limit in (None, 0):
        with opened(block, limit) as case:
            sums.append([fold for folds in case.variants() for fold in folds])
            assert bool(list(tmp_path.rglob("*"))) == (limit == 0)
    for one, other in zip(*sums, strict=True):
        assert one.of_x.gram.tobytes() == other.of_x.gram.tobytes()
        assert one.of_y.cross.tobytes() == other.of_y.cross.tobytes()


# Where columns are fewer than unknowns, where taps see padding only, and where both is so.
NARROW = [
    Block(size=2, samples=6),
    Block(size=2, samples=4, groups=2),
    Block(size=1, samples=30),
    Block(size=1, samples=30, groups=2),
    Block(size=1, samples=3),
    Block(size=1, samples=3, inner=8, groups=2),
    Block(size=1, samples=3, kernel=1, inner=5),
]


@pytest.mark.parametrize("in_span", [False, True])
@pytest.mark.parametrize("name", ["kernel", "pointwise", "outputs"])
@pytest.mark.parametrize("block", NARROW, ids=str)
def test_fits_in_a_subspace_are_those_in_the_whole_space(
    block: Block, name: str, in_span: bool
) -> None:
    strength = 0.3
    block = replace(block, outputs=name == "outputs")
    with opened(block) as case:
        unknowns = case.data.regressors.block_map.shape[2]
    with opened(block, in_span=in_span) as case:
        columns = sum(truth.x.shape[2] for truth in case.truth())
        regressors = case.data.regressors
        assert regressors.block_map.shape[2] == (min(columns, unknowns) if in_span else unknowns)
        kind = Kernel if name == "kernel" else Pointwise
        family: Family = kind.of(regressors)
        moments = family.moments(sum_moments(case.moments()))
        # Strengths are relative to the mean diagonal, whose sum is that of the whole space.
        groups, m, _ = moments.of_x.gram.shape
        relative = strength * groups * m / np.einsum("gii->", moments.centered_gram)
        adapter = family.solver(moments.of_x, relative)(moments)

        whole = join(case.truth())
        matrix = case.linear.matrix
        if name == "kernel":
            before, found = matrix, family.fused(adapter, matrix).matrix
            expected, shift = ridge(whole.x, whole.y, matrix, strength)
        else:
            before = np.tile(np.eye(matrix.shape[1]), (groups, 1, 1))
            found = family.fused(adapter, before).matrix
            expected, shift = ridge(matrix @ whole.x, whole.y, before, strength)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(adapter.shift, shift, rtol=0, atol=1e-5)
        assert np.abs(found - before).max() > 0.02

        if name == "kernel" and block.size == 1 and block.kernel == 3:
            taps = np.arange(matrix.shape[2]) % 9
            assert np.array_equal(found[..., taps != 4], matrix[..., taps != 4])


def ridge(x: Floats, y: Floats, prior: Floats, strength: float) -> tuple[Floats, Floats]:
    """Solve by least squares with rows for the prior."""
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    m = x.shape[1]
    root = np.sqrt(strength) * np.eye(m)
    matrix = np.stack(
        [
            np.linalg.lstsq(np.vstack([a.T, root]), np.vstack([b.T, root @ p.T]), rcond=None)[0].T
            for a, b, p in zip(dx, dy, prior, strict=True)
        ]
    )
    return matrix, y.mean(axis=2) - np.einsum("gnm,gm->gn", matrix, x.mean(axis=2))


@pytest.mark.parametrize("outputs", [False, True])
def test_predictions_in_a_subspace_are_those_in_the_whole_space(outputs: bool) -> None:
    block = Block(size=1, samples=3, residual=True, outputs=outputs)
    epilogue = behind(True, low=0.0)
    results = []
    for in_span in (False, True):
        with opened(block, in_span=in_span) as case:
            aware = case.data.relu_aware_moments(case.own, epilogue, case.rows)
            error = case.data.error(case.own, epilogue, case.rows)
            results.append((error, [part.square_y for part in aware]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-6)


def test_many_columns_are_not_reduced() -> None:
    with opened(Block()) as case:
        assert case.columns.in_span() is case.columns
        assert case.data.regressors.basis is None


def test_where_zeros_have_to_stay_patches_stay_the_regressors() -> None:
    with opened(Block(size=1, samples=3)) as case:
        columns = case.columns
        assert columns.in_span() is not columns
        columns.request = replace(columns.request, keep_zeros=True)
        assert columns.in_span() is columns


MATMUL = """net ({kind}[N,7,3] x) => ({kind}[N,7,{out}] y)
    <{kind}[3,4] v, {kind}[4,{out}] w> {{
    h = MatMul(x, v)
    [n] y = MatMul(h, w)
}}"""
CONV = """net (float[N,7,3] x) => (float[N,{out},7] y)
    <float[3,4] v, float[{out},4,1] w> {{
    p = MatMul(x, v)
    h = Transpose<perm=[0,2,1]>(p)
    [n] y = Conv(h, w)
}}"""


@pytest.mark.parametrize(("kind", "rtol"), [("float16", 1e-3), ("float", 1e-6), ("double", 1e-13)])
def test_types_are_summed_in_float64(kind: str, rtol: float) -> None:
    # Large enough for sums of squares that float16 does not hold.
    models = (build(MATMUL.format(kind=kind, out=4)), build(MATMUL.format(kind=kind, out=6)))
    for model in models:
        for tensor in model.graph.initializer:
            if tensor.name == "w":
                value = onnx.numpy_helper.to_array(tensor)
                large = (60 * value).astype(value.dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(large, "w"))
    with opened(Block(), None, models) as case:
        folds = case.moments()
        for found, truth in zip(folds, case.truth(), strict=True):
            assert_sums(found, sums_of(truth.x, truth.y), rtol)
        assert sum_moments(folds).of_y.square_y.max() > np.finfo(np.float16).max


@pytest.mark.parametrize("swapped", [False, True])
def test_the_teacher_may_be_another_operator_with_channels_elsewhere(swapped: bool) -> None:
    texts = (CONV, MATMUL)[:: -1 if swapped else 1]
    student, teacher = (
        build(text.format(kind="float", out=out)) for text, out in zip(texts, (4, 6), strict=True)
    )
    with opened(Block(), None, (student, teacher)) as case:
        folds = case.moments()
        for found, truth in zip(folds, case.truth(), strict=True):
            assert_sums(found, sums_of(truth.x, truth.y))


def test_other_positions_are_refused() -> None:
    student, _ = Block().models()
    strided = TEACHER.format(size=5).replace("<pads=[1,1,1,1]>", "").replace("k = Conv(x, v)", "")
    strided = strided.replace("s = Add(y, k)", "s = Identity(y)").replace("6,5,5] s", "6,3,3] s")
    with (
        pytest.raises(MatchError, match=r"its output has \(5, 5\) positions.*\(3, 3\)"),
        opened(Block(), None, (student, build(strided))),
    ):
        pass


def test_a_partner_whose_samples_cannot_be_told_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TeacherPass, "columns", lambda *_: {})
    with pytest.raises(MatchError, match="cannot be told from other rows"), opened(Block()):
        pass


FOLDED = """net (float[N,7,3] x) => (float[{axes}] y)
    <float[3,4] v, float[{inner},4] w, int64[{rank}] s> {{
    p = MatMul(x, v)
    h = Reshape(p, s)
    [n] y = {op}(h, w)
}}"""


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_positions_that_are_rows_of_a_matrix_stay_those_of_their_samples(op: str) -> None:
    teacher, plain = (build(MATMUL.format(kind="float", out=out)) for out in (6, 4))
    folded = build(FOLDED.format(axes="M,4", inner=4, rank=2, op=op), {"s": np.array((-1, 4))})
    found = []
    for student in (plain, folded):
        with opened(Block(), None, (student, teacher)) as case:
            found.append(case.moments())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.centered_gram, other.centered_gram, rtol=1e-5)
        np.testing.assert_allclose(one.centered_cross, other.centered_cross, rtol=1e-5, atol=1e-4)


def test_channels_that_one_of_them_folds_into_the_samples_are_refused() -> None:
    """Also where each of the samples then has as many positions as before."""
    teacher = build(MATMUL.format(kind="float", out=6))
    text = FOLDED.format(axes="M,7,4", inner=2, rank=3, op="MatMul")
    student = build(text, {"s": np.array((-1, 7, 2))})
    with (
        pytest.raises(MatchError, match="its output has"),
        opened(Block(), None, (student, teacher)),
    ):
        pass
