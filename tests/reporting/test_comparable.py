"""Two networks are compared by outputs that both give, for samples for which these are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fskd_onnx.errors import ModelError
from fskd_onnx.reporting.comparable import comparable
from fskd_onnx.runtime.forward import ForwardResult
from fskd_onnx.runtime.sample_axis import SampleAxis

MODELS = ("t.onnx", "s.onnx")
NAMES = [("y", "y"), ("k", "k")]


def result(*not_finite: tuple[int, float], **left_out: str) -> ForwardResult:
    values: dict[str, NDArray[Any]] = {
        "y": np.arange(12, dtype=np.float32).reshape(4, 3),
        "k": np.ones((4, 2), np.int64),
    }
    for sample, value in not_finite:
        values["y"][sample, 1] = value
    kept = {name: value for name, value in values.items() if name not in left_out}
    return ForwardResult(kept, dict.fromkeys(kept, SampleAxis(0)), left_out)


def test_samples_that_are_finite_in_both_are_judged() -> None:
    found = comparable((result((1, np.nan)), result((3, np.inf))), NAMES, MODELS, {})
    assert found.judged.tolist() == [True, False, True, False]
    assert found.agreement(found.student).relative_mse == 0.0
    np.testing.assert_array_equal(found.teacher[0], [[0, 1, 2], [6, 7, 8]])
    assert found.agreement([found.teacher[0] + 1, found.teacher[1]]).relative_mse > 0


def test_each_output_has_its_error_on_its_own_scale() -> None:
    found = comparable((result(), result()), NAMES, MODELS, {})
    y, k = found.teacher
    spread = np.sum((y - y.mean(axis=0)) ** 2)
    assert dict(found.output_errors([y + 1, k])) == pytest.approx({"y": 12 / spread, "k": 0})
    # Of its size: it is constant.
    assert dict(found.output_errors([y, 3 * k])) == pytest.approx({"y": 0, "k": 4})


def test_outputs_that_one_of_them_leaves_out_are_named() -> None:
    found = comparable((result(), result(k="a table")), NAMES, MODELS, {})
    assert (found.names, found.outputs_left_out) == ([("y", "y")], (("k", "a table"),))


def test_an_output_that_is_never_finite_is_named() -> None:
    never = result(*((sample, np.inf) for sample in range(4)))
    with pytest.raises(
        ModelError, match=r"t\.onnx: its output 'y' is NaN or infinite for each of 4"
    ):
        comparable((never, result()), NAMES, MODELS, {})
    with pytest.raises(
        ModelError, match=r"s\.onnx: its output 'y' is NaN or infinite for each of 4"
    ):
        comparable((result(), never), NAMES, MODELS, {})


def test_a_fit_may_bring_a_student_back() -> None:
    never = result(*((sample, np.inf) for sample in range(4)))
    found = comparable((result((1, np.nan)), never), NAMES, MODELS, {}, fitted_later=True)
    assert found.judged.tolist() == [True, False, True, True]
