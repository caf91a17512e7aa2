"""One block: the fit sees what readers of the block see, and is taken only where it helps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.fitting import family
from fskd_onnx.fitting.adapters import families_for, families_of
from fskd_onnx.fitting.block_columns import BlockColumns
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_fit import BlockFit, fit_block
from fskd_onnx.fitting.block_plan import BlockPlan, BlockUse
from fskd_onnx.fitting.block_sources import BlockRequest
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg import ridge
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.passes.analysis.epilogue import NO_EPILOGUE, Epilogue
from fskd_onnx.runtime.column_sampling import RandomSampling
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, build, linears

INPUTS, SEEN, WIDTH, LENGTH = 6, 3, 5, 16

# teacher   x ─▶ MatMul ─▶ Add ─▶ y ─▶ + ─▶ s         student   x ─▶ MatMul ─▶ u ─▶ MatMul ─▶ ...
#           └─▶ MatMul ──────────▶ k ─▶ ┘               of fewer columns: it misses half of x
TEACHER = """g (float[N,L,6] x) => (float[N,L,5] s) <float[6,5] w, float[5] b, float[6,5] v> {
    [n] h = MatMul (x, w)
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
    def opened(self, residual: bool = False) -> Iterator[BlockData]:
        """Give the columns of the block, in five folds."""
        student, teacher = (
            build(text, values)
            for text, values in ((STUDENT, self.of_student), (TEACHER, self.of_teacher))
        )
        linear, partner = linears(student)["n"], linears(teacher)["n"]
        use = BlockUse(
            name="n",
            block_input="u",
            columns_last=False,
            partner=partner,
            epilogue=Epilogue("k", "s") if residual else NO_EPILOGUE,
            teacher_sum="s" if residual else None,
            sampling=RandomSampling.of_unknowns(SEEN, (0, 0)),
        )
        plan = BlockPlan(0, SEEN, (use,))
        request = BlockRequest(plan, linear, np.arange(WIDTH), residual)
        loaded = load_samples({"x": self.draw(self.samples, 1)}, input_specs(teacher))
        folds = np.array_split(np.arange(self.samples, dtype=np.intp), min(5, self.samples))
        batches = [Batch(fold, len(fold), index) for index, fold in enumerate(folds)]
        runtime = open_runtime(("cpu",))
        with TensorStore() as store:
            decoded = DecodedSamples(loaded, batches, store, runtime.device)
            teacher_pass = TeacherPass(runtime, gs.import_onnx(teacher), [plan], decoded, batches)
            runner, timer = teacher_pass.runner_of(gs.import_onnx(student)), StageTimer()
            with runner.next_stage("block") as stage:
                columns = BlockColumns(stage, teacher_pass, request, timer)
                yield BlockData(columns.in_span(), timer)

    def fit(self, epilogue: Epilogue, adapter: str = "auto") -> BlockFit:
        with self.opened(epilogue.sum_output is not None) as data:
            return fit_block(data, families_for(data.linear, families_of(adapter))[0], epilogue)

    def fused(self, fit: BlockFit) -> tuple[Array, Array]:
        """The weights of the block once a fit is fused into it."""
        matrix = self.of_student["w"].T[np.newaxis]
        fused = fit.family.fused(fit.adapter, matrix)
        return fused.matrix[0], fused.shift[0]

    def error(self, fit: BlockFit | None, low: float = -math.inf, summed: bool = False) -> float:
        """The mean squared error of a fit on new samples, or of the block as it is."""
        x = self.draw(400, 2).astype(np.float64)
        matrix, shift = self.of_student["w"].T, self.of_student["b"]
        if fit is not None:
            matrix, shift = self.fused(fit)
        mine = x @ self.p @ matrix.T + shift
        theirs = x @ self.of_teacher["w"] + self.of_teacher["b"]
        if summed:
            mine, theirs = mine + x @ self.of_student["v"], theirs + x @ self.of_teacher["v"]
        return float(np.mean((np.maximum(mine, low) - np.maximum(theirs, low)) ** 2))


RELU = Epilogue(low=0.0)


@pytest.mark.parametrize("bias", [0.0, -2.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_an_activation_hides_is_not_fitted(seed: int, bias: float) -> None:
    """Half of the inputs are missing, and half or most of the targets are below zero."""
    block = Block(seed, samples=80)
    block.of_teacher["b"] += bias
    plain, aware = block.fit(NO_EPILOGUE), block.fit(RELU)
    assert block.error(aware, low=0.0) < 0.99 * block.error(plain, low=0.0)
    assert block.error(aware, low=0.0) < 0.99 * block.error(None, low=0.0)
    assert block.error(plain) < block.error(aware)  # behind the activation nobody sees that
    assert aware.error_after < aware.error_before


def test_an_activation_that_hides_nothing_changes_little() -> None:
    block = Block()
    block.of_teacher["b"] += 30.0
    plain, aware = block.fit(NO_EPILOGUE), block.fit(RELU)
    np.testing.assert_allclose(block.fused(plain)[0], block.fused(aware)[0], atol=0.05)


@pytest.mark.parametrize("low", [-math.inf, 0.0])
def test_an_error_of_the_shortcut_is_repaired(low: float) -> None:
    """What the student's shortcut lost is a function of what the block sees."""
    block = Block()
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_student["v"] = block.of_teacher["v"] + block.p @ np.ones((SEEN, WIDTH))
    residual = Epilogue("k", "s", low)
    aware, plain = block.fit(residual), block.fit(NO_EPILOGUE)
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
    fit = block.fit(Epilogue("k", "s"))
    assert block.error(fit) < 0.02 * block.error(None)


@pytest.mark.parametrize("epilogue", [NO_EPILOGUE, RELU, Epilogue("k", "s", 0.0)])
def test_exact_counterparts_are_found(epilogue: Epilogue) -> None:
    block = Block()
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_teacher["b"] += np.linspace(-1, 1, WIDTH)
    block.of_student["w"] = np.random.default_rng(5).standard_normal((SEEN, WIDTH))
    fit = block.fit(epilogue)
    assert fit.improves
    assert fit.error_after < 1e-6 * fit.error_before
    assert block.error(fit) < 1e-6 * block.error(None)


def test_a_block_that_is_as_good_as_can_be_is_kept() -> None:
    """What is missing is independent of what is seen; folds of two columns notice it mostly."""
    fits = [(Block(seed, samples=10, length=1), NO_EPILOGUE) for seed in range(10)]
    assert sum(not block.fit(epilogue).improves for block, epilogue in fits) >= 5


@pytest.mark.parametrize("epilogue", [NO_EPILOGUE, RELU])
@pytest.mark.parametrize("length", [1, LENGTH])
def test_a_fit_to_ten_samples_does_no_harm(length: int, epilogue: Epilogue) -> None:
    ratios = []
    for seed in range(10):
        block = Block(seed, samples=10, length=length)
        fit = block.fit(epilogue)
        before = block.error(None, epilogue.low)
        ratios.append(block.error(fit, epilogue.low) / before if fit.improves else 1.0)
    assert np.mean(ratios) < 1.05
    assert max(ratios) < 1.5


@pytest.mark.parametrize("samples", [2, 5])
def test_one_column_per_fold_is_enough(samples: int) -> None:
    # A single column has no energy about its own mean.
    block = Block(samples=samples, length=1)
    block.of_teacher["w"][SEEN:] = 0.0
    block.of_student["b"] += 3.0
    for epilogue in (NO_EPILOGUE, RELU):
        fit = block.fit(epilogue)
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
    for epilogue in (NO_EPILOGUE, RELU):
        fit = block.fit(epilogue)
        assert fit.improves
        assert block.error(fit) < 1e-9


def test_zero_targets_are_met() -> None:
    block = Block()
    block.of_teacher["w"] *= 0.0
    for epilogue in (NO_EPILOGUE, RELU):
        fit = block.fit(epilogue)
        assert fit.improves == (fit.error_after < fit.error_before)
        assert block.error(fit) <= block.error(None)


def test_errors_are_relative_to_the_teachers_block() -> None:
    block = Block(samples=200)
    fit = block.fit(NO_EPILOGUE)
    # The inputs have unit variance, and half of them are missing.
    w = block.of_teacher["w"]
    assert fit.error_before == pytest.approx((w[SEEN:] ** 2).sum() / (w**2).sum(), rel=0.1)


@pytest.mark.parametrize(
    "epilogue", [NO_EPILOGUE, RELU, Epilogue("k", "s"), Epilogue("k", "s", 0.0)]
)
@pytest.mark.parametrize("name", ["pointwise", "kernel"])
def test_a_few_targets_decide_for_all(
    name: str, epilogue: Epilogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices may be made on two of five targets here; all of them are fitted."""
    block = Block()
    block.of_teacher["w"][SEEN:] *= 0.1
    block.of_student["w"] = block.of_teacher["w"][:SEEN] * np.linspace(0.5, 1.5, WIDTH)
    block.of_student["v"] = block.of_teacher["v"] + block.p @ np.ones((SEEN, WIDTH))
    # What is left to choose is clear, so that both choose the same.
    monkeypatch.setattr(ridge, "RIDGES", (1e-3,))
    monkeypatch.setattr(family.Family, "most_repeats", 1)
    whole = block.fit(epilogue, name)
    monkeypatch.setattr(family, "_TESTED_TARGETS", 2)
    few = block.fit(epilogue, name)
    for one, other in zip(block.fused(few), block.fused(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    assert few.error_after < 0.5 * few.error_before


@pytest.mark.parametrize("epilogue", [NO_EPILOGUE, RELU])
def test_a_fit_to_fewer_columns_than_unknowns_leaves_what_they_do_not_span(
    epilogue: Epilogue,
) -> None:
    block = Block(samples=2, length=1)
    block.of_student["b"] += 3.0
    fit = block.fit(epilogue, "kernel")
    seen = block.draw(2, 1)[:, 0] @ block.p
    unseen = np.linalg.svd(seen)[2][2]
    change = block.fused(fit)[0] - block.of_student["w"].T
    np.testing.assert_allclose(change @ unseen, 0, atol=1e-6)


@pytest.mark.parametrize("name", ["pointwise", "kernel"])
def test_the_ridge_that_is_chosen_is_the_one_that_all_columns_are_fitted_with(name: str) -> None:
    block = Block(samples=7, length=2)
    fit = block.fit(NO_EPILOGUE, name)
    with block.opened() as data:
        (family,) = (family.of(data.regressors) for family in families_of(name))
        own = family.moments(sum_moments(data.moments(np.arange(WIDTH))))
        expected = family.solver(own.of_x, fit.ridge)(own)
    np.testing.assert_allclose(fit.adapter.matrix, expected.matrix, rtol=1e-9)
    np.testing.assert_allclose(fit.adapter.shift, expected.shift, rtol=1e-9, atol=1e-12)
