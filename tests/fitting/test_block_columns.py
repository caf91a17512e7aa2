"""The columns of a block of several uses are those of each, side by side."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.fitting import block_columns
from fskd_onnx.fitting.block_columns import BlockColumns
from fskd_onnx.fitting.block_data import BlockData
from fskd_onnx.fitting.block_plan import plan_blocks
from fskd_onnx.fitting.block_sources import BlockRequest
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.moments import sum_moments
from fskd_onnx.matching.channels import match_models
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from fskd_onnx.timing import StageTimer
from tests.helpers import Array, build, linears, random_feeds, run

COUNT = 12

# Of one kernel of 3 x 3 on images of two sizes: one sees all of it, the other only its centre, or
# pixels far apart.
TEXT = """g (float[N,2,5,5] x1, float[N,2,{size},{size}] x2)
  => (float[N,3,A,B] y1, float[N,3,C,D] y2) <float[3,2,3,3] w, float[3] b> {{
    [one] y1 = Conv <pads = [1,1,1,1]> (x1, w, b)
    [two] y2 = Conv <pads = [2,2,2,2], dilations = [2,2]> (x2, w, b)
}}"""


def patches(image: Array, step: int) -> Array:
    """(unknowns, samples x positions) of a kernel of 3 x 3, padded to the size of the image."""
    padded = np.pad(image, [(0, 0), (0, 0), (step, step), (step, step)])
    size = image.shape[2]
    taps = [
        padded[:, :, i * step : i * step + size, j * step : j * step + size]
        for i in range(3)
        for j in range(3)
    ]
    stacked = np.stack(taps, axis=2).reshape(len(image), -1, size, size)
    return np.asarray(np.moveaxis(stacked, 1, 0).reshape(stacked.shape[1], -1), np.float64)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_moments_are_those_of_all_uses_together(
    size: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_columns, "_KEPT_BYTES", 2**29 if kept else 0)
    teacher, student = (build(TEXT.format(size=size), seed=seed) for seed in (1, 2))
    feeds = random_feeds(teacher, batch=COUNT)
    targets = run(teacher, feeds)
    graphs = gs.import_onnx(student), gs.import_onnx(teacher)
    [plan] = plan_blocks(match_models(graphs[1], graphs[0]), *graphs, True, 0)
    runtime = open_runtime(["cpu"])
    samples = load_samples(feeds, input_specs(teacher))
    batches = plan_batches(np.array_split(np.arange(COUNT), 3), 2, None)
    linear, other = linears(student).values()
    with TensorStore() as store:
        decoded = DecodedSamples(samples, batches, store, runtime.device)
        teacher_pass = TeacherPass(runtime, graphs[1], [plan], decoded, batches)
        assert teacher_pass.batches_of(0) == list(range(len(batches)))
        runner = teacher_pass.runner_of(graphs[0])
        request = BlockRequest(plan, linear, np.arange(3), others=(other,))
        with runner.next_stage("block") as stage:
            columns = BlockColumns(stage, teacher_pass, request, StageTimer())
            folds = BlockData(columns, StageTimer()).moments(np.arange(3))
            every = [(chunk.fold, len(chunk)) for chunk in columns.chunks()]
            first, others = (
                [(chunk.fold, len(chunk)) for chunk in columns.chunks(first_fold)]
                for first_fold in (True, False)
            )
    assert {fold for fold, _ in first} == {batches[0].fold}
    assert first + others == every
    x = np.concatenate([patches(feeds["x1"], 1), patches(feeds["x2"], 2)], axis=1)
    y = np.concatenate(
        [np.moveaxis(targets[name], 1, 0).reshape(3, -1) for name in ("y1", "y2")], axis=1
    )
    found = sum_moments(folds)
    assert len(folds) == 3
    assert found.count == COUNT * (25 + size**2)
    np.testing.assert_allclose(found.of_x.gram[0], x @ x.T, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.of_y.cross[0], y @ x.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.of_y.sum_y[0], y.sum(axis=1), rtol=1e-4, atol=1e-4)
