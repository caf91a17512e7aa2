"""Segments give what whole networks give, wherever the cut is kept; nothing stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.progress import observed_by
from fskd_onnx.runtime import segment_runner, session_run
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner, Stage
from fskd_onnx.runtime.tensor_store import TensorStore, download, upload
from fskd_onnx.samples.batches import Batch, default_batch_size, plan_batches
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
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


@dataclass
class Opened:
    """A network on its way, and what it was made of."""

    runner: SegmentRunner
    batches: list[Batch]
    samples: DecodedSamples
    store: TensorStore

    @property
    def indices(self) -> range:
        return range(len(self.batches))


@contextmanager
def opened(
    runtime: Runtime,
    model: onnx.ModelProto,
    samples: Samples,
    limit: int | None = None,
    stops: Sequence[Sequence[str]] = tuple((name,) for name in STOPS),
) -> Iterator[Opened]:
    folds = np.array_split(np.random.default_rng(2).permutation(COUNT), 3)
    batches = plan_batches(folds, 5, None)
    with TensorStore(limit) as store:
        decoded = DecodedSamples(samples, batches, store, runtime.device)
        runner = SegmentRunner(runtime, gs.import_onnx(model), stops, batches, decoded)
        yield Opened(runner, batches, decoded, store)


def whole(
    model: onnx.ModelProto, arrays: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    """All tensors that tests stop at, inputs included, of all samples."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in STOPS[:-1])
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return arrays | dict(zip(STOPS, session.run(list(STOPS), dict(arrays)), strict=True))


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


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
    expected = whole(model, arrays)
    with opened(runtime, model, samples, limit) as run:
        for name in STOPS:
            with run.runner.next_stage(name) as stage:
                for index, batch in enumerate(run.batches):
                    for _ in range(2):
                        found = download(stage.tensors(index)[name])
                        assert_close(found, expected[name][batch.samples])
                spilled |= set(tmp_path.rglob("*"))
    assert bool(spilled) == (limit is not None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("once", [False, True])
def test_a_stop_may_name_what_is_there_already(
    once: bool,
    limit: int | None,
    runtime: Runtime,
    model: onnx.ModelProto,
    arrays: dict[str, NDArray[np.float32]],
    samples: Samples,
) -> None:
    """Inputs, tensors of an earlier stop, and nothing new at all."""
    stops = [("x", "a"), ("a",), ("a", "sum"), ("y", "late", "sum")]
    expected = whole(model, arrays)
    with opened(runtime, model, samples, limit, stops) as run:
        for stop in stops:
            with run.runner.next_stage("") as stage:
                for index, batch in enumerate(run.batches):
                    ask = stage.tensors_once if once else stage.tensors
                    found = ask(index)
                    assert set(found) == set(stop)
                    for name, value in found.items():
                        assert_close(download(value), expected[name][batch.samples])


@pytest.mark.parametrize("once", [False, True])
def test_where_the_cut_is_kept_changes_no_bit(
    once: bool, runtime: Runtime, model: onnx.ModelProto, samples: Samples
) -> None:
    outputs = []
    for limit in LIMITS:
        found = []
        with opened(runtime, model, samples, limit) as run:
            for name in STOPS:
                with run.runner.next_stage(name) as stage:
                    ask = stage.tensors_once if once else stage.tensors
                    found += [download(ask(index)[name]) for index in run.indices]
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
    with opened(runtime, model, samples) as run:
        with run.runner.next_stage("first") as stage:
            assert read == []
            stage.tensors(0)
            assert read == list(run.batches[0].samples)
            stage.tensors(1)
        for name in STOPS[1:]:
            with run.runner.next_stage(name) as stage:
                stage.tensors(1)
        assert len(read) == sum(batch.count for batch in run.batches[:2])
        # Nor does another network on the same samples read any.
        stops = [(name,) for name in STOPS]
        other = SegmentRunner(runtime, gs.import_onnx(model), stops, run.batches, run.samples)
        for name in STOPS:
            with other.next_stage(name) as stage:
                for index in run.indices:
                    stage.tensors(index)
    assert sorted(read) == list(range(COUNT))


def test_batches_that_nobody_asked_for_run_what_they_missed_as_one(
    runtime: Runtime,
    model: onnx.ModelProto,
    arrays: dict[str, NDArray[np.float32]],
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[str] = []

    def counted(*arguments: Any) -> dict[str, OrtValue]:
        runs.append(",".join(arguments[2]))
        return plain_run(*arguments)

    plain_run = session_run.run
    monkeypatch.setattr(segment_runner, "run", counted)
    with opened(runtime, model, samples) as run:
        for number, name in enumerate(STOPS):
            with run.runner.next_stage(name) as stage:
                asked = run.indices if name == STOPS[-1] else run.indices[number : number + 1]
                for index in asked:
                    found = download(stage.tensors(index)[name])
                    assert_close(found, whole(model, arrays)[name][run.batches[index].samples])
    # One that stopped once ran twice, the others ran once.
    assert len(runs) == len(run.indices) + len(STOPS) - 1


def test_what_changes_behind_the_cut_takes_effect(
    runtime: Runtime,
    model: onnx.ModelProto,
    arrays: dict[str, NDArray[np.float32]],
    samples: Samples,
) -> None:
    graph = gs.import_onnx(model)
    stops = [(name,) for name in STOPS]
    with opened(runtime, model, samples) as run:
        network = SegmentRunner(runtime, graph, stops, run.batches, run.samples)
        for name in STOPS[:-1]:
            with network.next_stage(name) as stage:
                stage.tensors(0)
        weight = next(node for node in graph.nodes if node.op == "MatMul").inputs[1]
        weight.values = 2 * weight.values
        with network.next_stage("y") as stage:
            found = download(stage.tensors(0)["y"])
    assert_close(found, 2 * whole(model, arrays)["y"][run.batches[0].samples])


def test_what_is_asked_for_once_is_kept_only_for_later_stages(
    runtime: Runtime, model: onnx.ModelProto, samples: Samples
) -> None:
    # Bytes of one sample.
    sizes = {"a": 4 * 4 * 6 * 6, "sum": 4 * 4 * 6 * 6, "y": 4 * 3}

    def growth(run: Opened, stage: Stage, index: int, once: bool) -> float:
        before = run.store._used
        (stage.tensors_once if once else stage.tensors)(index)
        return (run.store._used - before) / len(run.batches[index].samples)

    with opened(runtime, model, samples, stops=[("a",), ("a", "sum"), ("y",)]) as run:
        for batch in run.batches:
            run.samples.feeds(batch)[0].value()
        read = run.store._used
        assert read == 4 * COUNT * (2 * 6 * 6 + 4)
        with run.runner.next_stage("") as stage:
            assert [growth(run, stage, index, once=index == 0) for index in range(2)] == [
                sizes["a"]
            ] * 2
            for index in run.indices[2:]:
                stage.tensors_once(index)
        assert run.store._used == read + COUNT * sizes["a"]
        with run.runner.next_stage("") as stage:
            # The first run on a is its last, but one who may ask again is still given it.
            assert growth(run, stage, 0, once=True) == sizes["sum"] - sizes["a"]
            assert growth(run, stage, 1, once=False) == sizes["sum"]
            for index in run.indices[2:]:
                stage.tensors_once(index)
        assert run.store._used == read + COUNT * sizes["sum"]
        with run.runner.next_stage("") as stage:
            assert growth(run, stage, 0, once=True) == -sizes["sum"]
            assert growth(run, stage, 1, once=False) == sizes["y"] - sizes["sum"]
        # What nobody has asked for is still where it was.
        waiting = sum(run.batches[index].count for index in run.indices[2:])
        assert run.store._used == read + waiting * sizes["sum"]


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
        opened(runtime, model, samples, limit=0) as run,
        run.runner.next_stage("first") as stage,
    ):
        stage.tensors(0)
        assert any(path.is_file() for path in tmp_path.rglob("*"))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_observer_hears_of_every_sample_that_a_stage_asks_for(
    runtime: Runtime, model: onnx.ModelProto, samples: Samples
) -> None:
    stages: list[tuple[str, int]] = []
    advanced: list[int] = []

    class Listener:
        def start(self, stage: str, samples: int) -> None:
            stages.append((stage, samples))

        def advance(self, samples: int) -> None:
            advanced.append(samples)

    with observed_by(Listener()), opened(runtime, model, samples) as run:
        for number, name in enumerate(STOPS):
            asked = run.indices[number:]
            with run.runner.next_stage(f"up to {name}", asked) as stage:
                for index in [*asked, asked[0]]:
                    stage.tensors(index)
    counts = [sum(batch.count for batch in run.batches[number:]) for number in range(3)]
    assert stages == list(zip(("up to a", "up to sum", "up to y"), counts, strict=True))
    assert sum(advanced) == sum(counts)


def test_a_kept_tensor_keeps_no_other_of_its_run_in_memory(runtime: Runtime) -> None:
    """Neither what the run gave besides, nor what it was fed."""
    first = runtime.session(build("net (float[N,4] x) => (float[N,4] h) { h = Exp(x) }"))
    second = runtime.session(
        build("net (float[N,4] h) => (float[N,4] y, float[N,4] z) { y = Relu(h) z = Neg(h) }")
    )
    rows, runs, store = 10_000, 8, TensorStore()
    fed, beside = set(), set()
    kept = []
    for number in range(runs):
        x = upload({"x": np.full((rows, 4), number, np.float32)}, runtime.device)
        made = session_run.run(first, x, ["h"], runtime.device)
        fed.add(made["h"].data_ptr())
        made = session_run.run(second, made, ["y", "z"], runtime.device)
        beside.add(made["z"].data_ptr())
        kept.append(store.keep(made["y"]))
        del made
    # Tensors that are alive at the same time lie apart; so these made room for one another.
    assert len(fed) < runs
    assert len(beside) < runs
    for number, stored in enumerate(kept):
        np.testing.assert_allclose(stored.value().numpy(), np.exp(np.float32(number)), rtol=1e-6)


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
@pytest.mark.parametrize("kind", ["BOOL", "UINT8", "INT64", "FLOAT16", "FLOAT", "DOUBLE", "STRING"])
def test_tensors_of_all_types_cross_a_cut(
    kind: str, shape: tuple[int, ...], limit: int | None, runtime: Runtime
) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    axes = f"[{','.join(map(str, shape))}]" if shape else ""
    result = f"{kind.lower()}{axes} y"
    model = build(f"net (float{axes} x) => ({result}) {{ y = Cast <to = {number}> (x) }}")
    values = np.arange(math.prod(shape)).reshape(shape)
    x = {"x": OrtValue.ortvalue_from_numpy(values.astype(np.float32))}
    with TensorStore(limit) as store:
        stored = store.keep(session_run.run(runtime.session(model), x, ["y"], runtime.device)["y"])
        assert (stored.shape, stored.element_type) == (shape, number)
        found = download(stored.value())
    dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    assert (found.shape, found.dtype) == (shape, dtype)
    expected = values.astype(str if kind == "STRING" else dtype)
    assert found.tolist() == expected.tolist()


# Samples on the second axis, in rows behind one another, and in rows that are interleaved.
LAYOUTS = """net (float[{n},5,6] x, float g) => (float[{n},5,6] y)
    <int64[2] flat = {{-1,6}}, int64[3] back = {{5,-1,6}}> {{
    z = Mul (x, g)
    second = Transpose <perm = [1,0,2]> (z)
    rows = Reshape (z, flat)
    interleaved = Reshape (second, flat)
    b = Reshape (interleaved, back)
    y = Transpose <perm = [1,0,2]> (b)
}}"""


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize(("n", "size"), [("N", None), ("N", 6), (3, 6), (2, 6), (6, 6), (1, 4)])
def test_tensors_come_with_the_samples_first(
    n: object, size: int | None, limit: int | None, runtime: Runtime
) -> None:
    model = build(LAYOUTS.format(n=n))
    x = np.random.default_rng(0).standard_normal((COUNT, 5, 6)).astype(np.float32)
    loaded = load_samples({"x": x, "g": np.array(2, np.float32)}, input_specs(model))
    folds = np.array_split(np.random.default_rng(2).permutation(COUNT), 3)
    batches = plan_batches(folds, 5, size)
    stops = [["z", "second"], ["rows", "x", "g"], ["interleaved", "second"], ["y"]]
    names = [name for stop in stops for name in stop if name != "g"]
    with TensorStore(limit) as store:
        decoded = DecodedSamples(loaded, batches, store, runtime.device)
        runner = SegmentRunner(runtime, gs.import_onnx(model), stops, batches, decoded)
        for _ in stops:
            with runner.next_stage("") as stage:
                for index, batch in enumerate(batches):
                    ask = stage.tensors if index % 2 else stage.tensors_once
                    for name, value in ask(index).items():
                        assert stage.has_samples(name) == (name in names)
                        scale = 1 if name in ("x", "g") else 2
                        expected = scale * x[batch.samples] if name in names else np.float32(2)
                        found = download(value).reshape(np.shape(expected))
                        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [None, 2])
def test_rows_of_a_sample_are_positions_where_channels_are_last(
    size: int | None, runtime: Runtime
) -> None:
    model = build(
        f"""net (float[{size or "N"},6,4] x) => (float[M,3,4] y)
        <int64[3] windows = {{-1,3,4}}> {{ y = Reshape (x, windows) }}"""
    )
    x = np.random.default_rng(0).standard_normal((COUNT, 6, 4)).astype(np.float32)
    loaded = load_samples({"x": x}, input_specs(model))
    batches = plan_batches([np.arange(COUNT)], 4, None)
    for last, rows in (((), 2), (("y",), 1)):
        with TensorStore() as store:
            decoded = DecodedSamples(loaded, batches, store, runtime.device)
            graph = gs.import_onnx(model)
            runner = SegmentRunner(runtime, graph, [["y"]], batches, decoded, last)
            with runner.next_stage("") as stage:
                for index, batch in enumerate(batches):
                    found = download(stage.tensors(index)["y"])
                    assert len(found) == rows * len(batch.samples)
                    expected = x[batch.samples].reshape(found.shape)
                    np.testing.assert_array_equal(found, expected)


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
    sizes = [default_batch_size({"x": (3, s, s)}) for s in (8, 224, 2000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 1


@pytest.fixture
def sigint_is_heard() -> Iterator[None]:
    """A process that is started ignores SIGINT if its parent does, as jobs in the background do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_is_heard")
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_fit_cleanly(
    tmp_path: Path, number: signal.Signals, status: int, word: str
) -> None:
    scratch, output = tmp_path / "scratch", tmp_path / "out.onnx"
    scratch.mkdir()
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "fskd_onnx", "fit"),
            *(DEMO / "teacher.onnx", DEMO / "student.onnx", DEMO / "samples"),
            *("--preprocess", "fashion-mnist", "--memory-limit", "0", "-o", output),
        ],
        env=os.environ | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # ONNX Runtime leaves a file of its own there.
    while started.poll() is None and not list(scratch.glob(".fskd-onnx-*/[0-9]*")):
        time.sleep(0.01)
    started.send_signal(number)
    _, errors = started.communicate()
    lines = [line for line in errors.splitlines() if "onnxruntime:" not in line]
    assert (started.returncode, lines) == (status, [f"error: {word}"])
    assert not list(scratch.glob(".fskd-onnx-*"))
    assert not output.exists()
