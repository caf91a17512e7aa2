"""Collected columns are those of whole tensors, of as many batches as the samplings take."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from fskd_onnx.runtime import collector
from fskd_onnx.runtime.collector import ColumnRequest, collect
from fskd_onnx.runtime.column_sampling import EvenSampling, RandomSampling, batch_offsets
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.gather import Gatherer
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner, Stage
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch, plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import Array, build, run

COUNT = 30
# x ─▶ a ─▶ + ─▶ sum        the product of a mean has one position, and broadcasts
# └─▶ mean ─▶ k ─▶ ┘        turned: channels on the last axis
MODEL = build("""net (float[N,2,5,4] x)
    => (float[N,3,5,4] sum, float[N,3,1,1] k, float[N,5,4,2] turned) <
    float[3,2,1,1] w, float[3,2,1,1] v> {
    a = Conv(x, w)
    mean = GlobalAveragePool(x)
    k = Conv(mean, v)
    sum = Add(a, k)
    turned = Transpose<perm=[0,2,3,1]>(x)
}""")
REQUESTS = (
    ColumnRequest(("sum", "k"), False, RandomSampling(40, (3,))),
    ColumnRequest(("k", "x"), False, RandomSampling(10**6, (4,))),
    ColumnRequest(("turned",), True, EvenSampling(6)),
    ColumnRequest(("x",), False, RandomSampling(10**6, (5,))),
)
X: Array = np.random.default_rng(0).standard_normal((COUNT, 2, 5, 4)).astype(np.float32)


@contextmanager
def opened(requests: Collection[ColumnRequest]) -> Iterator[tuple[Stage, list[Batch], Gatherer]]:
    runtime = open_runtime(["cpu"])
    folds = np.array_split(np.random.default_rng(1).permutation(COUNT), 3)
    batches = plan_batches(folds, 2, None)
    names = list(dict.fromkeys(name for request in requests for name in request.tensors))
    with TensorStore() as store:
        decoded = DecodedSamples(
            load_samples(X, input_specs(MODEL)), batches, store, runtime.device
        )
        runner = SegmentRunner(runtime, gs.import_onnx(MODEL), [names], batches, decoded)
        with runner.next_stage("") as stage:
            yield stage, batches, Gatherer(runtime)


def test_columns_are_those_of_whole_tensors() -> None:
    whole: dict[str, NDArray[Any]] = {"x": X} | run(MODEL, {"x": X})
    with opened(REQUESTS) as (stage, batches, gather):
        found = dict(collect(stage, batches, REQUESTS, gather))
    assert list(found) == list(range(len(batches)))
    for offset in batch_offsets(batches):
        for request, columns in zip(REQUESTS, found[offset.index], strict=True):
            tensors = [whole[name][offset.batch.samples] for name in request.tensors]
            first = np.moveaxis(tensors[0], -1, 1) if request.channels_last else tensors[0]
            positions = first[0, 0].size
            count, chosen = request.sampling.choose(offset, len(first), positions)
            if count == 0:
                assert columns is None
                continue
            assert columns is not None
            assert (columns.count, columns.shape) == (count, tensors[0].shape)
            np.testing.assert_array_equal(columns.positions, chosen)
            # What has other positions than the first tensor is left out.
            assert len(columns.values) == 1
            flat = first[:count].reshape(count, first.shape[1], -1)[:, :, chosen]
            expected = np.moveaxis(flat, 1, 0).reshape(first.shape[1], -1)
            np.testing.assert_allclose(columns.values[0], expected, rtol=1e-5, atol=1e-6)


def test_batches_that_few_requests_take_show_few_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[set[str]] = []
    tensors_once = Stage.tensors_once

    def watched(stage: Stage, batch: int, names: Collection[str]) -> dict[str, Any]:
        shown.append(set(names))
        return tensors_once(stage, batch, names)

    monkeypatch.setattr(Stage, "tensors_once", watched)
    requests = REQUESTS[0], REQUESTS[2]
    with opened(requests) as (stage, batches, gather):
        few = dict(collect(stage, batches, requests, gather))
    everything = {"sum", "k", "turned"}
    # The first batch tells the shapes; most do without the request for a few columns.
    assert shown[0] == everything
    assert shown.count({"turned"}) > len(batches) / 2
    assert all(names in (everything, {"turned"}) for names in shown)
    monkeypatch.setattr(collector, "_needed", lambda *_: [[0, 1]] * len(batches))
    with opened(requests) as (stage, batches, gather):
        for index, columns in collect(stage, batches, requests, gather):
            for one, other in zip(columns, few[index], strict=True):
                assert (one is None) == (other is None)
                if one is not None and other is not None:
                    np.testing.assert_allclose(one.values[0], other.values[0], rtol=1e-5)


def test_columns_are_alike_whatever_axes_positions_have() -> None:
    tokens = ColumnRequest(("a",), True, RandomSampling(9, (0,)))
    assert tokens.alike((2, 6, 4), (2, 6, 4))
    assert tokens.alike((2, 6, 4), (2, 2, 3, 4))
    assert not tokens.alike((2, 6, 4), (2, 4, 6))
    assert not tokens.alike((2, 6, 4), (4, 3, 4))
    assert not tokens.alike((2, 1, 6, 4), (2, 6, 1, 4))
    images = ColumnRequest(("a",), False, RandomSampling(9, (0,)))
    assert images.alike((2, 4, 6), (2, 4, 6))
    assert not images.alike((2, 4, 6), (2, 4, 2, 3))


def test_tensors_without_samples_give_no_columns() -> None:
    model = build(
        "g (float[N,3] x, float[3,4] c) => (float[N,4] y) { d = Neg (c) y = MatMul (x, d) }"
    )
    x, c = np.ones((9, 3), np.float32), np.ones((3, 4), np.float32)
    samples, runtime = load_samples({"x": x, "c": c}, input_specs(model)), open_runtime(["cpu"])
    batches = plan_batches([np.arange(9)], 2, None)
    requests = [ColumnRequest((name,), True, RandomSampling(9, (0,))) for name in ("d", "y")]
    decoded = DecodedSamples(samples, batches, TensorStore(), runtime.device)
    runner = SegmentRunner(runtime, gs.import_onnx(model), [["d", "y"]], batches, decoded)
    with runner.next_stage("") as stage:
        found = [columns for _, columns in collect(stage, batches, requests, Gatherer(runtime))]
    assert {one for one, _ in found} == {None}
    assert all(other is not None for _, other in found)
