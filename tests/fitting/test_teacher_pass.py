"""The teacher leaves the columns that a plain run of it gives, however it is cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx.fitting import teacher_pass
from fskd_onnx.fitting.teacher_pass import TargetColumns, TeacherPass
from fskd_onnx.progress import observed_by
from fskd_onnx.runtime import collector, column_sampling
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch, plan_batches
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.fitting.four_blocks import OUTPUTS, network, plans

COUNT, FOLDS = 22, 3


@pytest.fixture(autouse=True)
def few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer positions than there are, and of the smallest block not all samples."""
    monkeypatch.setattr(column_sampling, "_LEAST_COLUMNS", 1)
    monkeypatch.setattr(column_sampling, "_COLUMNS_PER_UNKNOWN", 5)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(["cpu"])


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    return network("x")


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((COUNT, 2, 6, 6), np.float32)


@pytest.fixture
def samples(teacher: onnx.ModelProto, images: NDArray[np.float32]) -> Samples:
    return load_samples(images, input_specs(teacher))


@contextmanager
def opened(
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    fixed: int | None = None,
    batch: int = 5,
) -> Iterator[TeacherPass]:
    folds = np.array_split(np.random.default_rng(4).permutation(COUNT), FOLDS)
    batches = plan_batches(folds, batch, fixed)
    with TensorStore() as store:
        graph = gs.import_onnx(teacher)
        decoded = DecodedSamples(samples, batches, store, runtime.device)
        yield TeacherPass(runtime, graph, plans(teacher), decoded, batches)


def whole(
    runtime: Runtime, teacher: onnx.ModelProto, images: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(teacher)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in OUTPUTS if name != "y")
    values = runtime.session(shown).run(list(OUTPUTS), {"x": images})
    return dict(zip(OUTPUTS, values, strict=True))


def cut(tensor: NDArray[Any], last: bool, batch: Batch, found: TargetColumns) -> NDArray[Any]:
    """Cut columns out of a tensor of all samples."""
    first = np.moveaxis(tensor, -1, 1) if last else tensor
    flat = first[batch.samples[: found.count]].reshape(found.count, first.shape[1], -1)
    return np.moveaxis(flat[:, :, found.positions], 1, 0).reshape(first.shape[1], -1)


@pytest.mark.parametrize("window", [teacher_pass._WINDOW_BYTES, 10_000, 0])
@pytest.mark.parametrize("fixed", [None, 4])
@pytest.mark.parametrize("shown", [teacher_pass._SHOWN_BYTES, 0])
def test_columns_are_those_of_a_whole_run(
    shown: int,
    window: int,
    fixed: int | None,
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    images: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", window)
    monkeypatch.setattr(teacher_pass, "_SHOWN_BYTES", shown)
    expected = whole(runtime, teacher, images)
    with opened(runtime, teacher, samples, fixed) as teacher_run:
        assert [plan.uses[0].teacher_columns.tensors for plan in teacher_run.plans] == [
            ("c1",),
            ("c2", "s2"),
            ("c3", "s3"),
            ("y",),
        ]
        offsets = column_sampling.batch_offsets(teacher_run.batches)
        for plan in teacher_run.plans:
            found, [use] = teacher_run.columns(plan.index), plan.uses
            name, last = use.partner.output.name, use.teacher_columns.channels_last
            assert last == OUTPUTS[name]
            looked_at = 0
            for index, batch in enumerate(teacher_run.batches):
                shape = (len(batch.samples), *expected[name].shape[1:])
                positions = int(np.prod(shape[1:-1] if last else shape[2:]))
                count, chosen = use.sampling.choose(offsets[index], shape[0], positions)
                assert (index in found) == (count > 0)
                if not count:
                    continue
                mine = found[index]
                assert (mine.count, mine.shape) == (count, shape)
                np.testing.assert_array_equal(mine.positions, chosen)
                assert_close(mine.targets.value().numpy(), cut(expected[name], last, batch, mine))
                assert (mine.sums is not None) == (use.teacher_sum == "s2")
                if mine.sums is not None:
                    sums = cut(expected["s2"], last, batch, mine)
                    assert_close(mine.sums.value().numpy(), sums)
                looked_at += count * len(chosen)
            assert looked_at >= min(use.sampling.columns, COUNT * positions)
            assert looked_at < COUNT * 36


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_sums_that_broadcast_are_left_out(
    runtime: Runtime, teacher: onnx.ModelProto, samples: Samples
) -> None:
    with opened(runtime, teacher, samples) as teacher_run:
        assert teacher_run.plans[2].uses[0].teacher_sum == "s3"
        assert all(part.sums is None for part in teacher_run.columns(2).values())
        assert all(part.sums is not None for part in teacher_run.columns(1).values())


@pytest.mark.parametrize("windows", [1, 4])
def test_a_second_student_starts_from_the_front_and_sees_the_same(
    windows: int,
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    images: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if windows > 1:
        monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", 0)
    read: list[int] = []
    take = samples.take

    def counted(indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        read.extend(indices)
        return take(indices)

    monkeypatch.setattr(samples, "take", counted)
    stages: list[str] = []

    class Listener:
        def start(self, stage: str, samples: int) -> None:
            assert samples == COUNT
            stages.append(stage)

        def advance(self, samples: int) -> None:
            pass

    seen: list[list[bytes]] = []
    with observed_by(Listener()), opened(runtime, teacher, samples) as teacher_run:
        for noise in (0.1, 0.2):
            student = network("image", noise)
            runner = teacher_run.runner_of(gs.import_onnx(student))
            seen.append([])
            for plan in teacher_run.plans:
                columns = teacher_run.columns(plan.index)
                with runner.next_stage(plan.name) as stage:
                    assert set(stage.tensors(0)) == set(plan.student_tensors)
                    for part in columns.values():
                        stored = [part.targets, *([part.sums] if part.sums else [])]
                        seen[-1] += [one.value().numpy().tobytes() for one in stored]
            if noise == 0.1:
                assert sorted(read) == list(range(COUNT))
    assert seen[0] == seen[1]
    # Neither does a second student read any sample again.
    assert len(read) == COUNT
    of_teacher = [stage for stage in stages if stage.startswith("teacher")]
    if windows == 1:
        assert of_teacher == ["teacher, blocks 1 to 4 of 4"]
    else:
        assert of_teacher == [f"teacher, blocks {i} to {i} of 4" for i in (1, 2, 3, 4)] * 2


@pytest.mark.parametrize("windows", [1, 4])
def test_only_the_columns_at_hand_are_kept(
    windows: int,
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    images: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if windows > 1:
        monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", 0)
    with opened(runtime, teacher, samples) as teacher_run:
        teacher_run.columns(3)
        expected = images.nbytes
        for block in (3,) if windows > 1 else range(4):
            for part in teacher_run.columns(block).values():
                expected += part.targets.value().tensor_size_in_bytes()
                expected += part.sums.value().tensor_size_in_bytes() if part.sums else 0
        assert teacher_run._samples.store._used == expected


def test_windows_hold_as_many_blocks_as_fit(
    teacher: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plans(teacher)
    elements = {"c3": 3 * planned[2].uses[0].partner.width}
    sizes = [plan.bytes(elements) for plan in planned]
    assert sizes[1] == 4 * 4 * 5 * (4 * 9 + 1) * 2
    assert sizes[2] == 4 * 3 * planned[2].uses[0].partner.width * 2  # there are no more columns
    for room, expected in (
        (sum(sizes), [range(4)]),
        (sum(sizes) - 1, [range(3), range(3, 4)]),
        (sizes[0] + sizes[1], [range(2), range(2, 4)]),
        (sizes[1], [range(1), range(1, 2), range(2, 4)]),
        (0, [range(1), range(1, 2), range(2, 3), range(3, 4)]),
    ):
        monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", room)
        assert teacher_pass._windows(planned, elements) == expected


def test_batches_that_few_blocks_need_show_few_of_them(
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(column_sampling, "_POSITIONS_PER_SAMPLE", 36)
    shown: list[set[str]] = []
    whole_batch = Stage.tensors_once

    def spy(stage: Stage, batch: int, names: Collection[str]) -> dict[str, OrtValue]:
        found = whole_batch(stage, batch, names)
        assert set(names) == set(found)
        shown.append(set(found))
        return found

    def columns_of() -> list[dict[int, NDArray[Any]]]:
        with opened(runtime, teacher, samples, batch=1) as teacher_run:
            return [
                {
                    index: np.array(part.targets.value().numpy())
                    for index, part in teacher_run.columns(plan.index).items()
                }
                for plan in teacher_run.plans
            ]

    monkeypatch.setattr(Stage, "tensors_once", spy)
    found = columns_of()
    everything = {"c1", "c2", "s2", "c3", "s3", "y"}
    # Blocks of 36 positions take columns of a few samples, the one of a single position from all.
    assert shown[0] == everything
    assert shown.count({"c3", "s3"}) > COUNT / 2
    assert all(names in (everything, {"c3", "s3"}) for names in shown)
    monkeypatch.setattr(
        collector, "_needed", lambda requests, *_: [list(range(len(requests)))] * COUNT
    )
    for one, other in zip(columns_of(), found, strict=True):
        assert one.keys() == other.keys()
        for index, expected in one.items():
            np.testing.assert_allclose(other[index], expected, rtol=1e-5, atol=1e-5)
