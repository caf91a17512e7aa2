"""Moments of a block as the runtime sums them, against NumPy on whole activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray

from fskd_onnx import stream
from fskd_onnx.clock import Clock
from fskd_onnx.engine import Lockstep, download, plan_batches
from fskd_onnx.errors import MatchError
from fskd_onnx.model_io import input_specs
from fskd_onnx.moments import Affine, Moments, total
from fskd_onnx.passes.capture import Columns
from fskd_onnx.providers import open_runtime
from fskd_onnx.samples import load_samples
from fskd_onnx.stream import BlockStream, BlockTensors
from tests.helpers import build, linears

Floats = NDArray[np.float64]

COUNT, CHANNELS = 30, np.array([3, 0, 5])
STUDENT = """net (float[N,2,5,5] x) => (float[N,3,5,5] y)
    <float[2,2,1,1] v, float[3,2,3,3] w, float[3] b> {
    first = Conv(x, v)
    h = Relu(first)
    y = Conv<pads=[1,1,1,1]>(h, w, b)
}"""
TEACHER = """net (float[N,2,5,5] x) => (float[N,6,5,5] y)
    <float[6,2,3,3] w> { y = Conv<pads=[1,1,1,1]>(x, w) }"""


@contextmanager
def opened(
    outputs: bool, teacher: str = TEACHER, model: str = STUDENT
) -> Iterator[tuple[BlockStream, Lockstep]]:
    runtime = open_runtime(["cpu"])
    networks = [build(model), build(teacher, seed=1)]
    rng = np.random.default_rng(2)
    images = rng.standard_normal((COUNT, 2, 5, 5), np.float32)
    samples = load_samples(images, input_specs(networks[1]))
    batches = plan_batches(np.array_split(rng.permutation(COUNT), 3), 4, None)
    graphs = [gs.import_onnx(network) for network in networks]
    linear = list(linears(networks[0]).values())[-1]
    names = BlockTensors(linear.input.name, "y")
    columns = Columns(
        linear=linear,
        outputs=outputs,
        groups=1,
        channels=CHANNELS,
        targets_width=6,
        targets_last=False,
        residual=False,
    )
    student, theirs = graphs
    with Lockstep(runtime, student, theirs, [names.stop], samples, batches) as pair, pair.stage():
        yield BlockStream(runtime, pair, names, columns, (0,), Clock()), pair


def patches(h: NDArray[np.float32]) -> Floats:
    """Windows of 3 x 3 of zero-padded images: (patch, columns)."""
    padded = np.pad(h.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(1, 4, 5, 0, 2, 3).reshape(h.shape[1] * 9, -1)


def expected(pair: Lockstep, block: Affine | None) -> list[tuple[Floats, Floats]]:
    """Regressors and targets of each fold, all positions."""
    folds: dict[int, list[tuple[Floats, Floats]]] = {}
    for index, batch in enumerate(pair.batches):
        student, teacher = pair.tensors(index)
        x = patches(download(student["h"]))
        if block is not None:
            x = block.matrix[0] @ x + block.shift[0][:, np.newaxis]
        y = download(teacher["y"])[:, CHANNELS].astype(np.float64)
        folds.setdefault(batch.fold, []).append((x, y.transpose(1, 0, 2, 3).reshape(3, -1)))
    return [
        (np.hstack([x for x, _ in parts]), np.hstack([y for _, y in parts]))
        for parts in folds.values()
    ]


def assert_sums(found: Moments, x: Floats, y: Floats) -> None:
    assert found.count == x.shape[1]
    for value, sums in (
        (found.gram, x @ x.T),
        (found.cross, y @ x.T),
        (found.first_x, x.sum(axis=1)),
        (found.first_y, y.sum(axis=1)),
        (found.square_y, (y * y).sum(axis=1)),
    ):
        np.testing.assert_allclose(value[0], sums, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("outputs", [False, True])
def test_sums_over_all_positions_are_those_of_whole_activations(outputs: bool) -> None:
    with opened(outputs) as (block, pair):
        linear = block.columns.linear
        own = Affine(linear.matrix, linear.bias[np.newaxis]) if outputs else None
        (folds,) = block.sums()
        truth = expected(pair, own)
        assert len(folds) == len(truth) == 3
        for found, (x, y) in zip(folds, truth, strict=True):
            assert_sums(found, x, y)


def test_what_the_activation_hides_is_no_error() -> None:
    with opened(outputs=False) as (block, pair):
        linear = block.columns.linear
        fitted = Affine(linear.matrix, linear.bias[np.newaxis])
        (folds,) = block.sums()
        seen, errors = block.activated(folds, fitted, 0.0, np.inf)
        for found, error, (x, t) in zip(seen, errors, expected(pair, None), strict=True):
            u = fitted.matrix[0] @ x + fitted.shift[0][:, np.newaxis]
            assert_sums(found, x, np.where(t <= 0, np.minimum(u, 0), t))
            assert error == pytest.approx(
                ((np.maximum(u, 0) - np.maximum(t, 0)) ** 2).sum(), rel=1e-5
            )


@pytest.mark.parametrize(("chunk", "kept"), [(1, 2**28), (2**26, 0), (1, 0), (20_000, 2**28)])
def test_chunks_and_what_is_kept_change_nothing(
    chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summed() -> list[Moments]:
        with opened(outputs=False) as (block, _):
            (folds,) = block.sums()
            linear = block.columns.linear
            fitted = Affine(linear.matrix, linear.bias[np.newaxis])
            return [*folds, *block.activated(folds, fitted, 0.0, np.inf)[0]]

    whole = summed()
    monkeypatch.setattr(stream, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(stream, "_KEPT_BYTES", kept)
    for found, truth in zip(summed(), whole, strict=True):
        assert found.count == truth.count
        for name in ("gram", "cross", "first_x", "first_y", "square_y"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(truth, name), rtol=1e-9, atol=1e-9
            )


def test_few_columns_are_a_sample_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(stream, "_COLUMNS_PER_UNKNOWN", 12)
    with opened(outputs=False) as (block, pair):
        (folds,) = block.sums()
        every = total(folds)
        wanted = 12 * (2 * 9 + 1)
        assert wanted <= every.count < wanted + COUNT < COUNT * 25
        x = np.hstack([x for x, _ in expected(pair, None)])
    means = every.first_x[0] / every.count
    spread = x.std(axis=1) / np.sqrt(every.count)
    assert (np.abs(means - x.mean(axis=1)) < 5 * spread).all()


def test_other_positions_are_refused() -> None:
    strided = TEACHER.replace("<pads=[1,1,1,1]>", "").replace("[N,6,5,5]", "[N,6,3,3]")
    expected_error = pytest.raises(MatchError, match="its output has")
    with opened(outputs=False, teacher=strided) as (block, _), expected_error:
        block.sums()
