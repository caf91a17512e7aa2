"""What a student is trained towards: tensors of the teacher, each on its own scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fskd_onnx.gradient.targets import Target, TeacherRunner
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import Array, build

MODEL = build(
    """m (float[n,2,4,4] x) => (float[n,3] y, int64[n,1] z) <float[5,2,1,1] w, float[5,3] v>
    { h = Conv(x, w) p = GlobalAveragePool(h) f = Flatten(p) y = MatMul(f, v)
      z = ArgMax <axis = 1> (y) }"""
)
CHANNELS = np.array([4, 1])
TARGETS = [
    Target("y", "y", is_output=True),
    Target("z", "z", is_output=True),
    Target("s", "h", CHANNELS, 1),
]


def runner() -> TeacherRunner:
    return TeacherRunner(open_runtime(["cpu"]), MODEL, "m", input_specs(MODEL), TARGETS)


def batches() -> list[dict[str, Array]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, 2, 4, 4)).astype(np.float32) + 3} for n in (3, 5)]


def test_tensors_inside_of_the_teacher_are_given() -> None:
    found = runner().run(batches()[0])
    assert {name: value.shape for name, value in found.items()} == {
        "y": (3, 3),
        "z": (3, 1),
        "h": (3, 5, 4, 4),
    }


def test_energies_are_variances_over_all_batches_and_whole_numbers_are_left_out() -> None:
    teacher = runner()
    found = {target.student: target.energy for target in teacher.measured(TARGETS, batches())}
    both = [teacher.run(batch) for batch in batches()]
    y, h = (np.concatenate([one[name] for one in both]).astype(float) for name in ("y", "h"))
    own = h[:, CHANNELS]
    expected = {
        "y": np.mean((y - y.mean(0)) ** 2),
        "s": np.mean((own - own.mean((0, 2, 3), keepdims=True)) ** 2),
    }
    assert found == pytest.approx(expected)


def test_what_does_not_vary_is_measured_against_its_size() -> None:
    one = [{"x": np.ones((1, 2, 4, 4), np.float32)}]
    target = runner().measured(TARGETS[:1], one)[0]
    assert target.energy == pytest.approx(np.mean(runner().run(one[0])["y"].astype(float) ** 2))
    assert runner().measured(TARGETS[:1], [{"x": np.zeros((2, 2, 4, 4), np.float32)}]) == []


def test_an_error_is_relative() -> None:
    target = Target("s", "h", CHANNELS, 1, energy=4.0)
    teacher = target.of_teacher(np.arange(12.0).reshape(2, 6))
    np.testing.assert_array_equal(teacher, [[4, 1], [10, 7]])
    student = torch.tensor(teacher + 2)
    assert float(target.error(student, torch.tensor(teacher))) == 1


def test_parts_of_an_output_are_targets_of_their_own() -> None:
    target = Target("z", "y", is_output=True, part=np.array([1, 2]), energy=4.0)
    output = np.arange(12.0).reshape(2, 3, 2)
    teacher = target.of_teacher(output)
    np.testing.assert_array_equal(teacher, [[1, 2], [7, 8]])
    student = torch.tensor(output)
    student[:, 0, 1] += 4  # of number 1, and of no other that is meant
    student[:, 2] += 100
    assert float(target.error(student, torch.tensor(teacher))) == 2
