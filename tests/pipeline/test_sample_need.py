"""What more samples would do is said where it is so, and not where it is not known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx import FitOptions, RunOptions, fit
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.sample_need import Floats, SampleNeed, _ratio, sample_need
from tests.helpers import Array, build, run

SIZES = st.floats(0.1, 10.0)
# x ─▶ Gemm ─▶ Relu ─▶ Gemm ─▶ Relu ─▶ Gemm ─▶ y
TEXT = """g (float[N,20] x) => (float[N,6] y)
  <float[20,{a}] w1, float[{a},{b}] w2, float[{b},6] w3> {{
    [c1] h1 = MatMul (x, w1)
    r1 = Relu (h1)
    [c2] h2 = MatMul (r1, w2)
    r2 = Relu (h2)
    [c3] y = MatMul (r2, w3)
}}"""


def samples(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 20)).astype(np.float32)


def error(teacher: onnx.ModelProto, student: onnx.ModelProto) -> float:
    """Squared error on many samples that no fit has seen."""
    one, other = (run(model, {"x": samples(2000, 100)})["y"] for model in (teacher, student))
    return float(np.sum((one - other) ** 2))


@given(SIZES, SIZES, st.sampled_from([0.8, 1.0]), st.floats(1.0, 16.0))
def test_the_law_gives_back_what_follows_it(
    floor: float, share: float, part: float, times: float
) -> None:
    excess = floor * share / (1.0 + share)  # the error on seen samples is positive
    unseen, seen = floor + excess / part, floor - excess
    need = SampleNeed(unseen, (seen / unseen,) * 3, part)
    now, later = floor + excess, floor + excess / times
    assert need.gain(times) == pytest.approx(1 - later / now, abs=1e-9)
    assert need.seen == pytest.approx(seen)


def test_ratios_have_intervals_that_contain_the_truth() -> None:
    rng = np.random.default_rng(0)
    for paired in (True, False):
        found = []
        for _ in range(400):
            unseen = rng.gamma(2.0, size=12)
            sample = unseen if paired else rng.gamma(2.0, size=9)
            seen = 0.5 * sample * rng.gamma(8.0, size=len(sample)) / 8.0
            ratio = _ratio(seen, unseen, paired=paired)
            assert ratio is not None
            low, middle, high = ratio
            assert low < middle < high
            found.append(low < 0.5 < high)
        assert np.mean(found) > 0.82


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_not_finite_says_nothing(paired: bool) -> None:
    errors = np.array([0.1, 0.2, 0.3])
    assert _ratio(np.zeros(3), errors, paired=paired) is None
    assert _ratio(errors, np.array([0.1, np.inf, 0.2]), paired=paired) is None
    assert _ratio(errors[:1], errors[:1], paired=paired) is None


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> list[SampleNeed | None]:
    """What fits find of more samples."""
    found: list[SampleNeed | None] = []
    ask = sample_need

    def listening(
        problem: FitProblem, model: onnx.ModelProto, unseen: Floats, error: float
    ) -> SampleNeed | None:
        found.append(ask(problem, model, unseen, error))
        return found[-1]

    monkeypatch.setattr("fskd_onnx.pipeline.fit.sample_need", listening)
    return found


def test_what_is_said_comes_true(needs: list[SampleNeed | None]) -> None:
    """Fits with the samples that there are, and with four times as many."""
    teacher, student = build(TEXT.format(a=24, b=24)), build(TEXT.format(a=18, b=18), seed=1)
    options = FitOptions(RunOptions(("cpu",)))
    gains, errors = [], []
    for seed in range(4):
        few, more = (fit(teacher, student, samples(n, seed), options) for n in (24, 96))
        need = needs[0]
        assert need is not None
        said = any("96 independent samples would take off" in text for text in few.report.advice)
        assert said == need.helps
        assert not any("384 independent" in text for text in more.report.advice)
        if said:
            gains.append(need.gain(4))
            errors.append((error(teacher, few.model), error(teacher, more.model)))
        needs.clear()
    assert len(gains) > 2
    before, after = np.sum(errors, axis=0)
    assert 1 - after / before > 0.8 * np.mean(gains)


def test_good_fits_are_not_asked(needs: list[SampleNeed | None]) -> None:
    teacher = build(TEXT.format(a=24, b=24))
    student = build(TEXT.format(a=24, b=24), seed=1)
    report = fit(teacher, student, samples(300, 0), FitOptions(RunOptions(("cpu",)))).report
    assert report.after.relative_mse < 0.02
    assert needs == []
