"""One block: the fit sees what readers of the block see, and is taken only where it helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.adapt import BlockFit, fit_block
from fskd_onnx.clock import Clock
from fskd_onnx.engine import Batch, Lockstep
from fskd_onnx.moments import Affine
from fskd_onnx.passes import Columns
from fskd_onnx.passes.linear import Linear, find_linear
from fskd_onnx.preprocess import Preprocess
from fskd_onnx.providers import open_runtime
from fskd_onnx.readout import Readout
from fskd_onnx.samples import InputSpec, load_samples
from fskd_onnx.solve import Family
from fskd_onnx.stream import BlockStream, BlockTensors
from tests.helpers import Array, build

INPUTS, SEEN, WIDTH, LENGTH = 6, 3, 5, 16

# teacher   x ─▶ MatMul ─▶ Add ─▶ y ─▶ + ─▶ s         student   x ─▶ MatMul ─▶ u ─▶ MatMul ─▶ ...
#           └─▶ MatMul ──────────▶ k ─▶ ┘               of fewer columns: it misses half of x
TEACHER = """g (float[N,L,6] x) => (float[N,L,5] s) <float[6,5] w, float[5] b, float[6,5] v> {
    h = MatMul (x, w)
    y = Add (h, b)
    k = MatMul (x, v)
    s = Add (y, k)
}"""
STUDENT = """g (float[N,L,6] x) => (float[N,L,5] s)
  <float[6,3] p, float[3,5] w, float[5] b, float[6,5] v> {
    u = MatMul (x, p)
    [n] h = MatMul (u, w)
    y = Add (h, b)
    k = MatMul (x, v)
    s = Add (y, k)
}"""


@dataclass
class Block:
    """A block under test, its weights, and samples."""

    seed: int = 0
    samples: int = 40
    length: int = LENGTH

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.p = np.eye(INPUTS)[:, :SEEN]
        self.of_teacher = {
            "w": rng.standard_normal((INPUTS, WIDTH)),
            "b": np.zeros(WIDTH),
            "v": rng.standard_normal((INPUTS, WIDTH)),
        }
        self.of_student = {
            "p": self.p,
            "w": self.of_teacher["w"][:SEEN],
            "b": np.zeros(WIDTH),
            "v": self.of_teacher["v"],
        }

    def draw(self, count: int, seed: int) -> Array:
        rng = np.random.default_rng([self.seed, seed])
        return rng.standard_normal((count, self.length, INPUTS)).astype(np.float32)

    @contextmanager
    def stream(self, residual: bool = False) -> Iterator[tuple[BlockStream, list[Family]]]:
        """Open the columns of the block, cross-validated over five folds."""
        student, teacher = (
            gs.import_onnx(build(text, values))
            for text, values in ((STUDENT, self.of_student), (TEACHER, self.of_teacher))
        )
        linear = next(v for v in find_linear(student) if isinstance(v, Linear) and v.name == "n")
        names = BlockTensors("u", "y", *(("k", "s") if residual else ()))
        columns = Columns(linear, False, 1, np.arange(WIDTH), WIDTH, True, residual)
        spec = InputSpec("x", (None, None, INPUTS), np.dtype(np.float32))
        x = self.draw(self.samples, 1)
        loaded = load_samples({"x": x}, [spec], Preprocess(), None, 0)
        folds = np.array_split(np.arange(self.samples, dtype=np.intp), min(5, self.samples))
        batches = [Batch(fold, len(fold), index) for index, fold in enumerate(folds)]
        runtime = open_runtime(("cpu",))
        with (
            Lockstep(runtime, student, teacher, [names.stop], loaded, batches) as lockstep,
            lockstep.stage(),
        ):
            block = Affine(linear.matrix, linear.bias.reshape(1, -1))
            families = [Family("pointwise", block, True), Family("kernel", block, False)]
            yield BlockStream(runtime, lockstep, names, columns, (0, 0), Clock()), families

    def fit(self, readout: Readout) -> BlockFit:
        with self.stream(readout.total is not None) as (stream, families):
            return fit_block(stream, families, readout)

    def error(self, fit: BlockFit | None, low: float = -math.inf, summed: bool = False) -> float:
        """The mean squared error of a fit on new samples, or of the block as it is."""
        x = self.draw(400, 2).astype(np.float64)
        matrix, shift = self.of_student["w"].T, self.of_student["b"]
        if fit is not None:
            adapter = fit.family.lift(fit.adapter)
            matrix, shift = adapter.matrix[0], adapter.shift[0]
        mine = x @ self.p @ matrix.T + shift
        theirs = x @ self.of_teacher["w"] + self.of_teacher["b"]
        if summed:
            mine, theirs = mine + x @ self.of_student["v"], theirs + x @ self.of_teacher["v"]
        return float(np.mean((np.maximum(mine, low) - np.maximum(theirs, low)) ** 2))


PLAIN, RELU = Readout(), Readout(low=0.0)


@pytest.mark.parametrize("bias", [0.0, -2.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_an_activation_hides_is_not_fitted(seed: int, bias: float) -> None:
    """Half of the inputs are missing, and half or most of the targets are below zero."""
    block = Block(seed, samples=80)
    block.of_teacher["b"] += bias
    plain, aware = block.fit(PLAIN), block.fit(RELU)
    assert block.error(aware, low=0.0) < 0.99 * block.error(plain, low=0.0)
    assert block.error(aware, low=0.0) < 0.99 * block.error(None, low=0.0)
    assert block.error(plain) < block.error(aware)  # behind the activation nobody sees that
    assert aware.error_after < aware.error_before


def test_an_activation_that_hides_nothing_changes_little() -> None:
    block = Block()
    block.of_teacher["b"] += 30.0
    plain, aware = block.fit(PLAIN), block.fit(RELU)
    np.testing.assert_allclose(
        plain.family.lift(plain.adapter).matrix,
        aware.family.lift(aware.adapter).matrix,
        atol=0.05,
    )


@pytest.mark.parametrize("low", [-math.inf, 0.0])
def test_an_error_of_the_shortcut_is_repaired(low: float) -> None:
    """What the student's shortcut lost is a function of what the block sees."""
    block = Block()
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_student["v"] = block.of_teacher["v"] + block.p @ np.ones((SEEN, WIDTH))
    residual = Readout("k", "s", low)
    aware, plain = block.fit(residual), block.fit(PLAIN)
    assert block.error(None, low, summed=True) > 0.5
    assert block.error(plain, low, summed=True) > 0.5  # the block itself has nothing to repair
    assert block.error(aware, low, summed=True) < 1e-3 * block.error(None, low, summed=True)
    assert aware.error_after < 1e-3 * aware.error_before


def test_an_error_that_the_block_cannot_repair_is_not_taken_from_the_shortcut() -> None:
    # The shortcut is wrong by what the block does not see, so only the block's own part counts.
    block = Block(samples=200)
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_student["w"] = 0.5 * block.of_teacher["w"][:SEEN]
    wrong = np.zeros((INPUTS, WIDTH))
    wrong[SEEN:] = 1.0
    block.of_student["v"] = block.of_teacher["v"] + wrong
    fit = block.fit(Readout("k", "s"))
    assert block.error(fit) < 0.02 * block.error(None)


@pytest.mark.parametrize("readout", [PLAIN, RELU, Readout("k", "s", 0.0)])
def test_exact_counterparts_are_found(readout: Readout) -> None:
    block = Block()
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_teacher["b"] += np.linspace(-1, 1, WIDTH)
    block.of_student["w"] = np.random.default_rng(5).standard_normal((SEEN, WIDTH))
    fit = block.fit(readout)
    assert fit.improves
    assert fit.error_after < 1e-6 * fit.error_before
    assert block.error(fit) < 1e-6 * block.error(None)


def test_a_block_that_is_as_good_as_can_be_is_kept() -> None:
    """What is missing is independent of what is seen; folds of two columns notice it mostly."""
    fits = [(Block(seed, samples=10, length=1), PLAIN) for seed in range(10)]
    assert sum(not block.fit(readout).improves for block, readout in fits) >= 5


@pytest.mark.parametrize("readout", [PLAIN, RELU])
@pytest.mark.parametrize("length", [1, LENGTH])
def test_a_fit_to_ten_samples_does_no_harm(length: int, readout: Readout) -> None:
    ratios = []
    for seed in range(10):
        block = Block(seed, samples=10, length=length)
        fit = block.fit(readout)
        before = block.error(None, readout.low)
        ratios.append(block.error(fit, readout.low) / before if fit.improves else 1.0)
    assert np.mean(ratios) < 1.05
    assert max(ratios) < 1.5


@pytest.mark.parametrize("samples", [2, 5])
def test_one_column_per_fold_is_enough(samples: int) -> None:
    # A single column has no energy about its own mean.
    block = Block(samples=samples, length=1)
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_student["b"] += 3.0
    for readout in (PLAIN, RELU):
        fit = block.fit(readout)
        assert fit.error_before > 0.1
        assert fit.improves
        assert block.error(fit) < 0.3 * block.error(None)


def test_constant_targets_are_met() -> None:
    # Dead filters of the teacher: the student's bias is wrong, and its inputs say nothing.
    block = Block()
    block.of_teacher["w"] *= 0.0
    block.of_teacher["b"] += 2.0
    block.of_student["w"] = block.of_teacher["w"][:SEEN]
    block.of_student["b"] -= 1.0
    for readout in (PLAIN, RELU):
        fit = block.fit(readout)
        assert fit.improves
        assert block.error(fit) < 1e-9


def test_zero_targets_are_met() -> None:
    block = Block()
    block.of_teacher["w"] *= 0.0
    for readout in (PLAIN, RELU):
        fit = block.fit(readout)
        assert fit.improves == (fit.error_after < fit.error_before)
        assert block.error(fit) <= block.error(None)


def test_errors_are_relative_to_the_teachers_block() -> None:
    block = Block(samples=200)
    fit = block.fit(PLAIN)
    # The inputs have unit variance, and half of them are missing.
    w = block.of_teacher["w"]
    assert fit.error_before == pytest.approx((w[SEEN:] ** 2).sum() / (w**2).sum(), rel=0.1)
