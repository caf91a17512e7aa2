"""Segments give what whole networks give, wherever the cut is kept; nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.engine import (
    Lockstep,
    Store,
    default_batch_size,
    download,
    plan_batches,
)
from fskd_onnx.errors import FskdError
from fskd_onnx.model_io import input_specs
from fskd_onnx.progress import told_to
from fskd_onnx.providers import Runtime, open_runtime
from fskd_onnx.samples import Samples, load_samples
from tests.helpers import DEMO, build

COUNT = 23
STOPS = ("a", "sum", "y")  # the shortcut crosses two cuts
LIMITS = (None, 0, 3000)

# Two inputs, one of which is first read after the second cut.
TEXT = """net (float[N,2,6,6] x, float[N,4] late) => (float[N,3] y)
    <float[4,2,3,3] w1, float[4,4,3,3] w2, float[4,3] w3> {
    a = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2)
    sum = Add(b, r)
    p = GlobalAveragePool(sum)
    f = Flatten(p)
    both = Add(f, late)
    y = MatMul(both, w3)
}"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return build(TEXT)


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(1)
    shapes = {"x": (COUNT, 2, 6, 6), "late": (COUNT, 4)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(["cpu"])


@pytest.fixture
def samples(model: onnx.ModelProto, arrays: dict[str, NDArray[np.float32]]) -> Samples:
    return load_samples(arrays, input_specs(model))


def lockstep(
    runtime: Runtime, model: onnx.ModelProto, samples: Samples, limit: int | None = None
) -> Lockstep:
    folds = np.array_split(np.random.default_rng(2).permutation(COUNT), 3)
    student, teacher = gs.import_onnx(model), gs.import_onnx(model)
    stops = [([name], [name]) for name in STOPS]
    batches = plan_batches(folds, 5, None)
    return Lockstep(runtime, student, teacher, stops, samples, batches, limit)


def whole(model: onnx.ModelProto, arrays: dict[str, NDArray[np.float32]]) -> list[NDArray[Any]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in STOPS[:-1])
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(list(STOPS), dict(arrays))


@pytest.mark.parametrize("limit", LIMITS)
def test_segments_give_what_the_whole_network_gives(
    limit: int | None,
    runtime: Runtime,
    model: onnx.ModelProto,
    arrays: dict[str, NDArray[np.float32]],
    samples: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled = set()
    with lockstep(runtime, model, samples, limit) as pair:
        for name, expected in zip(STOPS, whole(model, arrays), strict=True):
            with pair.stage():
                for index, batch in enumerate(pair.batches):
                    for tensors in (*pair.tensors(index), *pair.tensors(index)):
                        found = download(tensors[name])
                        np.testing.assert_allclose(
                            found, expected[batch.samples], rtol=1e-5, atol=1e-5
                        )
                spilled |= set(tmp_path.rglob("*"))
    assert bool(spilled) == (limit is not None)
    assert not list(tmp_path.iterdir())


def test_where_the_cut_is_kept_changes_no_bit(
    runtime: Runtime, model: onnx.ModelProto, samples: Samples
) -> None:
    outputs = []
    for limit in LIMITS:
        found = []
        with lockstep(runtime, model, samples, limit) as pair:
            for name in STOPS:
                with pair.stage():
                    indices = range(len(pair.batches))
                    found += [download(pair.tensors(index)[0][name]) for index in indices]
        outputs.append(b"".join(array.tobytes() for array in found))
    assert len(set(outputs)) == 1


def test_samples_are_read_batch_by_batch_and_once(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    take = samples.take

    def counted(indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        read.extend(indices)
        return take(indices)

    monkeypatch.setattr(samples, "take", counted)
    with lockstep(runtime, model, samples) as pair:
        with pair.stage():
            assert read == []
            pair.tensors(0)
            assert read == list(pair.batches[0].samples)
            pair.tensors(1)
        for _ in STOPS[1:]:
            with pair.stage():
                pair.tensors(1)
    assert sorted(read) == list(range(COUNT))


def test_batches_that_nobody_asked_for_run_on(
    runtime: Runtime,
    model: onnx.ModelProto,
    arrays: dict[str, NDArray[np.float32]],
    samples: Samples,
) -> None:
    with lockstep(runtime, model, samples) as pair:
        for _ in STOPS[:-1]:
            with pair.stage():
                pass
        with pair.stage():
            found = download(pair.tensors(0)[0]["y"])
    expected = whole(model, arrays)[-1][pair.batches[0].samples]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_files_go_when_the_work_fails(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: Samples,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        pytest.raises(KeyboardInterrupt),
        lockstep(runtime, model, samples, limit=0) as pair,
        pair.stage(),
    ):
        pair.tensors(0)
        assert list(tmp_path.rglob("*"))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_observer_hears_of_every_sample_of_every_stage(
    runtime: Runtime, model: onnx.ModelProto, samples: Samples
) -> None:
    heard: list[tuple[int, ...]] = []

    class Listener:
        def start(self, block: int, blocks: int, samples: int) -> None:
            heard.append((block, blocks, samples))

        def advance(self, samples: int) -> None:
            heard.append((samples,))

    with told_to(Listener()), lockstep(runtime, model, samples) as pair:
        for _ in STOPS:
            with pair.stage():
                for index in [*range(len(pair.batches)), 0]:
                    pair.tensors(index)
    starts = [event for event in heard if len(event) == 3]
    assert starts == [(1, 3, COUNT), (2, 3, COUNT), (3, 3, COUNT)]
    assert sum(event[0] for event in heard if len(event) == 1) == 3 * COUNT


def tensor(size: int) -> OrtValue:
    return OrtValue.ortvalue_from_numpy(np.full(size, 7, np.uint8))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_dropped_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store("cpu", limit=100)
    first, second = store.keep(tensor(60)), store.keep(tensor(60))
    assert len(files(tmp_path)) == 1
    np.testing.assert_array_equal(download(second.value()), np.full(60, 7))
    del first, second
    assert not files(tmp_path)
    kept = store.keep(tensor(100))
    assert not files(tmp_path)
    empty = store.keep(tensor(0)), store.keep(tensor(1)), store.keep(tensor(0))
    assert [held.value().shape() for held in empty] == [[0], [1], [0]]
    assert kept.shape == (100,)
    store.close()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FskdError, match=r"memory limit cannot be written.*--memory-limit"):
        Store("cpu", limit=0).keep(tensor(1))


@pytest.mark.parametrize("fixed", [None, 4])
def test_batches_never_straddle_folds(fixed: int | None) -> None:
    folds = np.array_split(np.random.default_rng(0).permutation(50), 3)
    batches = plan_batches(folds, 7, fixed)
    for index, fold in enumerate(folds):
        mine = [batch for batch in batches if batch.fold == index]
        counted = np.concatenate([batch.samples[: batch.count] for batch in mine])
        np.testing.assert_array_equal(counted, fold)
    if fixed:
        assert {len(batch.samples) for batch in batches} == {fixed}
    else:
        assert all(batch.count == len(batch.samples) <= 7 for batch in batches)


def test_large_samples_go_in_small_batches() -> None:
    sizes = [default_batch_size({"x": np.zeros((1, 3, s, s), bool)}) for s in (8, 224, 2000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 1


def test_ctrl_c_ends_a_fit_cleanly(tmp_path: Path) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "out.onnx"
    scratch.mkdir()
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "fskd_onnx.cli", "fit"),
            *(DEMO / "teacher.onnx", DEMO / "student.onnx", DEMO / "samples"),
            *("--preprocess", "fashion-mnist", "--memory-limit", "0", "-o", output),
        ],
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # ONNX Runtime leaves a file of its own there.
    while started.poll() is None and not list(scratch.glob("fskd-onnx-*/*")):
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate()
    lines = [line for line in errors.splitlines() if "onnxruntime:" not in line]
    assert (started.returncode, lines) == (130, ["error: interrupted"])
    assert not list(scratch.glob("fskd-onnx-*"))
    assert not output.exists()
