"""Gram matrices are those of what blocks read, however the teacher's pass is cut."""

from __future__ import annotations

import gc

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from fskd_onnx.fitting import input_grams, teacher_pass
from fskd_onnx.fitting.input_grams import InputGrams
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import Array
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.runtime.collector import Columns
from fskd_onnx.runtime.column_sampling import batch_offsets
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.fitting.four_blocks import network, plans

COUNT = 22
READ = {"x": 1, "r1": 1, "pool": 1, "transposed": -1}  # by the four blocks, and their channel axes


def readers() -> list[Linear]:
    views = find_linear(gs.import_onnx(network("x")))
    return [view for view in views if isinstance(view, Linear)]


def expected(images: NDArray[np.float32]) -> dict[str, Array]:
    model = network("x")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in READ if name != "x")
    names = [name for name in READ if name != "x"]
    found = open_runtime(["cpu"]).session(model).run(names, {"x": images})
    tensors = {"x": images, **dict(zip(names, found, strict=True))}
    rows = {
        name: np.moveaxis(tensor, READ[name], 0).reshape(tensor.shape[READ[name]], -1)
        for name, tensor in tensors.items()
    }
    return {name: np.cov(values.astype(float), bias=True) for name, values in rows.items()}


@pytest.mark.parametrize("window", [teacher_pass._WINDOW_BYTES, 0])
@pytest.mark.parametrize("shown", [teacher_pass._SHOWN_BYTES, 0])
def test_grams_are_summed_once_while_columns_are_collected(
    shown: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", window)
    monkeypatch.setattr(teacher_pass, "_SHOWN_BYTES", shown)
    images = np.random.default_rng(2).standard_normal((COUNT, 2, 6, 6), np.float32)
    teacher, runtime = network("x"), open_runtime(["cpu"])
    folds = np.array_split(np.random.default_rng(4).permutation(COUNT), 3)
    batches = plan_batches(folds, 5, None)
    grams = InputGrams(readers(), batches)
    with TensorStore() as store:
        decoded = DecodedSamples(
            load_samples(images, input_specs(teacher)), batches, store, runtime.device
        )
        graph, planned = gs.import_onnx(teacher), plans(teacher)
        teacher_run = TeacherPass(runtime, graph, planned, decoded, batches, grams)
        for _ in range(2):  # the second time from the front, where there are several windows
            for plan in planned:
                teacher_run.columns(plan.index)
        teacher_run.sum_grams()
        del teacher_run
        gc.collect()
    for name, covariance in expected(images).items():
        positions = COUNT * {"pool": 1}.get(name, 36)
        np.testing.assert_allclose(
            grams.centered()[name] / positions, covariance, rtol=1e-5, atol=1e-6
        )


def test_first_batches_are_looked_at_as_if_there_were_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(input_grams, "_SAMPLES", 8)
    folds = np.array_split(np.arange(COUNT), 2)
    few, all_batches = (plan_batches(f, 4, None) for f in (folds[:1], folds))
    first = InputGrams(readers(), few[:2]).requests["r1"].sampling
    of_all = InputGrams(readers(), all_batches)
    offsets = batch_offsets(all_batches)
    for index, offset in enumerate(offsets):
        count, positions = of_all.requests["r1"].sampling.choose(offset, 4, 2000)
        assert of_all.requests["r1"].sampling.reaches(offset, 4, 2000) == (count > 0)
        if index >= 2:
            assert count == 0
            continue
        same, others = first.choose(batch_offsets(few[:2])[index], 4, 2000)
        assert count == same > 0
        np.testing.assert_array_equal(positions, others)


def test_what_is_not_finite_is_left_out() -> None:
    grams = InputGrams(readers(), plan_batches([np.arange(4)], 4, None))
    values = np.random.default_rng(0).standard_normal((2, 5))
    broken = values.copy()
    broken[1, 3] = np.nan
    for name, array in (("r1", broken), ("x", np.full((2, 5), np.inf)), ("pool", values * 1e200)):
        grams.add((name, Columns(1, np.arange(5), (1, 2, 5), (array,))))
    grams.add(("transposed", None))
    assert list(grams.centered()) == ["r1"]
    np.testing.assert_allclose(
        grams.centered()["r1"] / 4, np.cov(values[:, [0, 1, 2, 4]], bias=True)
    )
