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
from fskd_onnx.fitting.teacher_pass import BlockPlan, TargetColumns, TeacherPass, plan_blocks
from fskd_onnx.matching.channels import match_models
from fskd_onnx.passes.analysis.epilogue import Epilogue
from fskd_onnx.progress import told_to
from fskd_onnx.runtime import column_sampling
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.segment_runner import SegmentRunner
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch, plan_batches
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build

COUNT, FOLDS = 22, 3

# x ─▶ 1 ─▶ r ─▶ 2 ─▶ + ─▶ pool ─▶ 3 ─▶ + (a product of one position, and a map) ─▶ 4
#           └─────────▶ ┘ └─────────────▶ ┘
TEXT = """net (float[N,2,6,6] {0}) => (float[N,36,5] y)
    <float[4,2,3,3] w1, float[4,4,3,3] w2, float[4] b2, float[4,4,1,1] w3, float[4,5] w4> {{
    [n1] c1 = Conv<pads=[1,1,1,1]>({0}, w1)
    r1 = Relu(c1)
    [n2] c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    s2 = Add(c2, r1)
    r2 = Relu(s2)
    pool = GlobalAveragePool(r2)
    [n3] c3 = Conv(pool, w3)
    s3 = Add(c3, r2)
    flat = Reshape(s3, shape)
    turned = Transpose<perm=[0,2,1]>(flat)
    [n4] y = MatMul(turned, w4)
}}"""
OUTPUTS = {"c1": False, "c2": False, "s2": False, "c3": False, "s3": False, "y": True}


def network(name: str, noise: float = 0.0) -> onnx.ModelProto:
    text = TEXT.format(name).replace("> {", ", int64[3] shape> {", 1)
    model = build(text, {"shape": np.array([0, 4, -1])})
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            value = onnx.numpy_helper.to_array(tensor)
            changed = value + noise * rng.standard_normal(value.shape).astype(value.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
    return model


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


def plans(teacher: onnx.ModelProto, outputs: bool = False, seed: int = 3) -> list[BlockPlan]:
    graphs = gs.import_onnx(teacher), gs.import_onnx(network("image", noise=0.05))
    matching = match_models(*graphs)
    assert [pair.reason for pair in matching.pairs] == [""] * 4
    return plan_blocks(matching, graphs[1], graphs[0], outputs, seed)


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
        yield TeacherPass(runtime, graph, plans(teacher), samples, batches, store)


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
    turned = np.moveaxis(tensor, -1, 1) if last else tensor
    flat = turned[batch.samples[: found.count]].reshape(found.count, turned.shape[1], -1)
    return np.moveaxis(flat[:, :, found.chosen], 1, 0).reshape(turned.shape[1], -1)


@pytest.mark.parametrize("ahead", [teacher_pass._AHEAD_BYTES, 10_000, 0])
@pytest.mark.parametrize("fixed", [None, 4])
def test_columns_are_those_of_a_whole_run(
    ahead: int,
    fixed: int | None,
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    images: NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_pass, "_AHEAD_BYTES", ahead)
    expected = whole(runtime, teacher, images)
    with opened(runtime, teacher, samples, fixed) as ahead_of_us:
        assert [plan.of_teacher for plan in ahead_of_us.plans] == [
            ["c1"],
            ["c2", "s2"],
            ["c3", "s3"],
            ["y"],
        ]
        places = column_sampling.batch_offsets(ahead_of_us.batches)
        for plan in ahead_of_us.plans:
            ahead_of_us.advance(plan.index)
            found = ahead_of_us.columns(plan.index)
            name, last = plan.partner.output.name, plan.channels_last
            assert last == OUTPUTS[name]
            looked_at = 0
            for index, batch in enumerate(ahead_of_us.batches):
                shape = (len(batch.samples), *expected[name].shape[1:])
                positions = int(np.prod(shape[1:-1] if last else shape[2:]))
                count, chosen = plan.draw.choose(places[index], shape[0], positions)
                assert (index in found) == (count > 0)
                if not count:
                    continue
                mine = found[index]
                assert (mine.count, mine.shape) == (count, shape)
                np.testing.assert_array_equal(mine.chosen, chosen)
                assert_close(mine.targets.value().numpy(), cut(expected[name], last, batch, mine))
                assert (mine.totals is not None) == (plan.totals == "s2")
                if mine.totals is not None:
                    totals = cut(expected["s2"], last, batch, mine)
                    assert_close(mine.totals.value().numpy(), totals)
                looked_at += count * len(chosen)
            assert looked_at >= min(plan.draw.wanted, COUNT * positions)
            assert looked_at < COUNT * 36


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_totals_that_broadcast_are_left_out(
    runtime: Runtime, teacher: onnx.ModelProto, samples: Samples
) -> None:
    with opened(runtime, teacher, samples) as ahead:
        ahead.advance(2)
        assert ahead.plans[2].totals == "s3"
        assert all(part.totals is None for part in ahead.columns(2).values())
        assert all(part.totals is not None for part in ahead.columns(1).values())


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
        monkeypatch.setattr(teacher_pass, "_AHEAD_BYTES", 0)
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
    with told_to(Listener()), opened(runtime, teacher, samples) as ahead:
        for noise in (0.1, 0.2):
            student = network("image", noise)
            following = ahead.follow(gs.import_onnx(student))
            seen.append([])
            for plan in ahead.plans:
                ahead.advance(plan.index)
                following.enter(plan.name)
                assert set(following.tensors(0)) == set(plan.of_student)
                for part in ahead.columns(plan.index).values():
                    held = [part.targets, *([part.totals] if part.totals else [])]
                    seen[-1] += [one.value().numpy().tobytes() for one in held]
                following.leave()
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
        monkeypatch.setattr(teacher_pass, "_AHEAD_BYTES", 0)
    with opened(runtime, teacher, samples) as ahead:
        ahead.advance(3)
        held = images.nbytes
        for block in (3,) if windows > 1 else range(4):
            for part in ahead.columns(block).values():
                held += part.targets.value().tensor_size_in_bytes()
                held += part.totals.value().tensor_size_in_bytes() if part.totals else 0
        assert ahead.store._used == held


def test_windows_hold_as_many_blocks_as_fit(
    teacher: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plans(teacher)
    sizes = [plan.bytes for plan in planned]
    assert sizes[1] == 4 * 4 * 5 * (4 * 9 + 1) * 2
    for room, expected in (
        (sum(sizes), [range(4)]),
        (sum(sizes) - 1, [range(3), range(3, 4)]),
        (sizes[0] + sizes[1], [range(2), range(2, 4)]),
        (sizes[1], [range(1), range(1, 2), range(2, 4)]),
        (0, [range(1), range(1, 2), range(2, 3), range(3, 4)]),
    ):
        monkeypatch.setattr(teacher_pass, "_AHEAD_BYTES", room)
        assert teacher_pass._windows(planned) == expected


def test_plans_name_what_each_block_needs(teacher: onnx.ModelProto) -> None:
    planned = plans(teacher)
    assert [plan.name for plan in planned] == ["n1", "n2", "n3", "n4"]
    assert [plan.index for plan in planned] == [0, 1, 2, 3]
    assert [plan.of_student for plan in planned] == [
        ["image"],
        ["r1", "r1"],
        ["pool", "r2"],
        ["turned"],
    ]
    assert [plan.readout for plan in planned] == [
        Epilogue(low=0.0),
        Epilogue("r1", "s2", 0.0),
        Epilogue("r2", "s3"),
        Epilogue(),
    ]
    assert len({plan.draw.seed for plan in planned}) == 4
    assert plans(teacher) == planned
    assert [plan.draw for plan in plans(teacher, seed=5)] != [plan.draw for plan in planned]


@pytest.mark.parametrize("outputs", [False, True])
def test_draws_follow_from_the_unknowns(teacher: onnx.ModelProto, outputs: bool) -> None:
    unknowns = [4, 4, 4, 4] if outputs else [18, 36, 4, 4]
    wanted = [plan.draw.wanted for plan in plans(teacher, outputs)]
    assert wanted == [5 * (count + 1) for count in unknowns]


SHORTCUT = """net (float[N,2,6,6] x) => (float[N,4,6,6] y)
    <float[4,2,3,3] w1, float[4,2,1,1] w2> {
    %s
    s = Add(c, k)
    y = Relu(s)
}"""
BLOCK, PROJECTION = "[n] c = Conv<pads=[1,1,1,1]>(x, w1)", "[m] k = Conv(x, w2)"


@pytest.mark.parametrize(
    ("nodes", "readouts"),
    [
        ((PROJECTION, BLOCK), {"n": Epilogue("k", "s", 0.0), "m": Epilogue()}),
        ((BLOCK, PROJECTION), {"m": Epilogue("c", "s", 0.0), "n": Epilogue()}),
    ],
)
def test_a_shortcut_that_is_corrected_later_is_not_repaired_twice(
    nodes: tuple[str, ...], readouts: dict[str, Epilogue]
) -> None:
    graph = gs.import_onnx(build(SHORTCUT % "\n".join(nodes)))
    planned = plan_blocks(match_models(graph, graph), graph, graph, False, 0)
    assert {plan.name: plan.readout for plan in planned} == readouts
    assert {plan.name: plan.totals for plan in planned} == {
        name: readout.sum_output for name, readout in readouts.items()
    }


def test_a_sum_that_the_teacher_does_not_have_is_not_looked_behind() -> None:
    student = gs.import_onnx(build(SHORTCUT % f"{PROJECTION}\n{BLOCK}"))
    text = SHORTCUT.replace("y = Relu(s)", "z = Relu(c)\ny = Add(z, s)")
    teacher = gs.import_onnx(build(text % f"{PROJECTION}\n{BLOCK}"))
    planned = plan_blocks(match_models(teacher, student), student, teacher, False, 0)
    block = next(plan for plan in planned if plan.name == "n")
    assert (block.readout, block.totals) == (Epilogue(), None)
    assert block.of_student == ["x"]
    assert block.of_teacher == ["c"]


def test_batches_that_few_blocks_draw_from_show_few_of_them(
    runtime: Runtime,
    teacher: onnx.ModelProto,
    samples: Samples,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(column_sampling, "_POSITIONS_PER_SAMPLE", 36)
    shown: list[set[str]] = []
    whole_batch = SegmentRunner.tensors_once

    def spy(network: SegmentRunner, batch: int, wanted: Collection[str]) -> dict[str, OrtValue]:
        found = whole_batch(network, batch, wanted)
        assert set(wanted) == set(found)
        shown.append(set(found))
        return found

    def columns_of() -> list[dict[int, NDArray[Any]]]:
        with opened(runtime, teacher, samples, batch=1) as ahead_of_us:
            ahead_of_us.advance(0)
            return [
                {
                    index: np.array(part.targets.value().numpy())
                    for index, part in ahead_of_us.columns(plan.index).items()
                }
                for plan in ahead_of_us.plans
            ]

    monkeypatch.setattr(SegmentRunner, "tensors_once", spy)
    found = columns_of()
    everything = {"c1", "c2", "s2", "c3", "s3", "y"}
    # Blocks of 36 positions draw from a few of the samples, the one of a single position from all.
    assert shown[0] == everything
    assert shown.count({"c3", "s3"}) > COUNT / 2
    assert all(names in (everything, {"c3", "s3"}) for names in shown)
    monkeypatch.setattr(TeacherPass, "_wanted", lambda ahead, plans: [plans] * COUNT)
    for one, other in zip(columns_of(), found, strict=True):
        assert one.keys() == other.keys()
        for index, expected in one.items():
            np.testing.assert_allclose(other[index], expected, rtol=1e-5, atol=1e-5)
