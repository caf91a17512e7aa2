"""Students that another tool made: onnxsim's structured pruning keeps all names."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim
import pytest

from fskd_onnx import FitOptions, Preprocess, RunOptions, fit
from fskd_onnx.pipeline.compare import compare
from fskd_onnx.pipeline.match import match
from tests.helpers import DEMO

PIXELS = Preprocess(preset="fashion-mnist")


@pytest.fixture(params=["teacher.onnx", "vgg16_small.onnx"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    teacher = DEMO / request.param
    # It prunes convolutions only where nothing stands between them and their activation.
    simple, _ = onnxsim.simplify(onnx.load(teacher))
    student = tmp_path / "student.onnx"
    onnx.save_model(onnxsim.apply_structured_pruning(simple, sparsity=0.5), student)
    return teacher, student


def test_channels_are_found_in_the_weights(pair: tuple[Path, Path]) -> None:
    pairs = match(*pair).pairs
    assert [p for p in pairs if p.reason] == []
    assert {p.evidence for p in pairs} == {"weights"}
    assert any(len(p.channels or ()) < (p.teacher_width or 0) for p in pairs)


def test_the_fit_recovers_most_of_the_agreement(pair: tuple[Path, Path]) -> None:
    teacher, student = pair
    result = fit(
        teacher,
        student,
        DEMO / "samples",
        FitOptions(RunOptions(max_samples=150, preprocess=PIXELS)),
    )
    after = compare(
        teacher,
        result.model,
        DEMO / "test.npz",
        RunOptions(preprocess=PIXELS, max_samples=500, seed=1),
    )
    assert result.report.before.relative_mse > 0.5
    assert after.agreement.relative_mse < 0.25
