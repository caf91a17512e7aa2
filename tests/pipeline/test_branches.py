"""A fit where one network has sums of branches, and the other one node for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions, fit, match
from fskd_onnx.passes import MergeBranches
from fskd_onnx.reporting.json_format import matching_to_json
from tests.helpers import Array, build, initializers, ops, run
from tests.students import with_noise

# x ─▶ stem ─▶ Relu ─┬─▶ 3 x 3 ──────────────▶ + ─▶ + ─▶ Relu ─▶ last ─▶ pool ─▶ z
#                    ├─▶ 1 x 1 ──────────────▶ ┘    │
#                    └─▶ BatchNormalization ────────┘
BRANCHES = build("""g (float[N,3,8,8] x) => (float[N,6,1,1] z) <float[8,3,3,3] w0, float[8] b0,
  float[8,8,3,3] a, float[8] b, float[8,8,1,1] c, float[8] s, float[8] t, float[8] m, float[8] v,
  float[6,8,3,3] w3, float[6] b3> {
    [stem] y0 = Conv <pads = [1,1,1,1]> (x, w0, b0)
    r0 = Relu (y0)
    [big] p = Conv <pads = [1,1,1,1]> (r0, a, b)
    [small] q = Conv (r0, c)
    i = BatchNormalization (r0, s, t, m, v)
    y = Add (p, q)
    y1 = Add (y, i)
    r1 = Relu (y1)
    [last] y2 = Conv <pads = [1,1,1,1]> (r1, w3, b3)
    z = GlobalAveragePool (y2)
}""")
MERGED = MergeBranches()(BRANCHES).model
RUN = FitOptions(RunOptions(("cpu",)))


def images(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def error(model: onnx.ModelProto, target: onnx.ModelProto) -> float:
    """Give the relative error on samples that no fit has seen."""
    feeds = {"x": images(40, 5)}
    one, other = run(model, feeds)["z"], run(target, feeds)["z"]
    return float(((one - other) ** 2).sum() / ((other - other.mean(0)) ** 2).sum())


@pytest.mark.parametrize(
    ("teacher", "student"), [(BRANCHES, MERGED), (MERGED, BRANCHES), (BRANCHES, BRANCHES)]
)
def test_the_sum_is_what_is_fitted(teacher: onnx.ModelProto, student: onnx.ModelProto) -> None:
    noisy = with_noise(student, 0.3, seed=2)
    # Where both have branches, each is fitted to its own; else the same as with one node in both.
    alike = fit(MERGED, with_noise(MERGED, 0.3, seed=2), images(80, 1), RUN)
    result = fit(teacher, noisy, images(80, 1), RUN)
    before, after = error(noisy, teacher), error(result.model, teacher)
    assert after < 0.05 * before
    if student is MERGED:
        assert after == pytest.approx(error(alike.model, MERGED), rel=1e-2)
    assert ops(result.model).items() >= ops(student).items() - {("BatchNormalization", 1)}
    status = {block.student: (block.status, block.reason) for block in result.report.blocks}
    if teacher is MERGED:
        reason = "it is summed with 'big', which is fitted for both"
        assert status["small"] == ("kept", reason)
        old, new = initializers(noisy), initializers(result.model)
        np.testing.assert_array_equal(old["c"], new["c"])
        assert not np.array_equal(old["a"], new["a"])
    assert {status[name][0] for name in ("stem", "big", "last")} == {"fitted"}


def test_a_saved_map_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    student = with_noise(BRANCHES, 0.1)
    found = match(MERGED, student)
    assert [(pair.student, pair.teacher) for pair in found.pairs] == [
        ("stem", "y0"),
        ("big", "y1"),
        ("last", "y2"),
        ("small", None),
    ]
    path.write_text(matching_to_json(found), encoding="utf-8")
    again = match(MERGED, student, block_map=str(path))
    assert [(p.student, p.teacher) for p in again.pairs] == [
        (p.student, p.teacher) for p in found.pairs
    ]
    assert match(MERGED, student, images(40, 1)).pairs[-1].reason == found.pairs[-1].reason
