"""What a fit starts from: folds that share no sample, samples that no block is fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx import FitOptions, RunOptions
from fskd_onnx.errors import MatchError, ModelError, SamplesError
from fskd_onnx.pipeline.problem import FitProblem, LoadedModel, prepare
from fskd_onnx.pipeline.splits import SampleSplit
from fskd_onnx.runtime.tensor_store import TensorStore
from tests.helpers import Array, assert_close, build, run

# x ─▶ Conv ─▶ BatchNormalization ─▶ Relu ─▶ Conv ─▶ z
TEXT = """g (float[{n},3,4] {x}) => (float[{n},2,4] z)
  <float[{a},3,1] w1, float[{a}] s, float[{a}] t,
  float[{a}] m, float[{a}] v, float[2,{a},1] w2> {{
    [c1] y = Conv ({x}, w1)
    b = BatchNormalization (y, s, t, m, v)
    r = Relu (b)
    [c2] z = Conv (r, w2)
}}"""
TEACHER = build(TEXT.format(n="N", x="x", a=6))
STUDENT = build(TEXT.format(n="N", x="x", a=4), seed=1)


def samples(count: int) -> Array:
    return np.random.default_rng(4).standard_normal((count, 3, 4)).astype(np.float32)


def problem(count: int, batch_size: int | None = None, seed: int = 0, n: str = "N") -> FitProblem:
    run = RunOptions(("cpu",), batch_size=batch_size, seed=seed)
    student = build(TEXT.format(n=n, x="x", a=4), seed=1)
    return prepare(TEACHER, student, samples(count), FitOptions(run), TensorStore())


def folds(split: SampleSplit) -> list[set[int]]:
    """The samples of each fold; each of them has to run once."""
    members: dict[int, list[int]] = {}
    for batch in split.batches:
        members.setdefault(batch.fold, []).extend(batch.samples[: batch.count].tolist())
    assert all(len(set(part)) == len(part) for part in members.values())
    return [set(members[fold]) for fold in range(len(members))]


@given(
    st.integers(3, 90),
    st.none() | st.integers(1, 20),
    st.integers(0, 3),
    st.sampled_from(["N", "1", "4"]),
)
@settings(max_examples=40, deadline=None)
def test_every_sample_is_in_one_fold_or_held_out(
    count: int, batch_size: int | None, seed: int, n: str
) -> None:
    found = problem(count, batch_size, seed, n)
    assert found.count == count
    for split in (*found.splits.trials, found.splits.final):
        held_out = set(split.held_out.tolist())
        parts = folds(split)
        everything = [*parts, held_out]
        assert set().union(*everything) == set(range(count))
        assert sum(map(len, everything)) == count
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        for batch in split.batches:
            assert not held_out & set(batch.samples.tolist())  # padding repeats the batch's own
            assert len(batch.samples) == (batch.count if n == "N" else int(n))
            assert n != "N" or batch_size is None or len(batch.samples) <= batch_size


@given(st.integers(3, 54))
@settings(max_examples=10, deadline=None)
def test_of_few_samples_every_fold_is_held_out_in_turn(count: int) -> None:
    found = problem(count)
    assert sorted(found.held_out) == list(range(count))
    assert len(found.splits.trials) == min(5, count)
    assert len(found.splits.final.held_out) == 0
    parts = [set(trial.held_out.tolist()) for trial in found.splits.trials]
    assert folds(found.splits.final) == parts
    for index, trial in enumerate(found.splits.trials):
        assert folds(trial) == parts[:index] + parts[index + 1 :]


@pytest.mark.parametrize(("count", "held_out"), [(55, 6), (80, 8)])
def test_of_many_samples_a_tenth_is_held_out(count: int, held_out: int) -> None:
    found = problem(count)
    assert found.splits.trials == (found.splits.final,)
    assert len(found.held_out) == held_out
    assert len(folds(found.splits.final)) == 5


def test_the_seed_decides() -> None:
    one, same, other = problem(60, seed=3), problem(60, seed=3), problem(60, seed=4)
    np.testing.assert_array_equal(one.held_out, same.held_out)
    assert folds(one.splits.final) == folds(same.splits.final)
    assert set(one.held_out) != set(other.held_out)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_samples_are_refused(count: int) -> None:
    with pytest.raises(SamplesError) as caught:
        problem(count)
    assert "\n" not in str(caught.value)
    if count:
        assert f"{count} samples are too few" in str(caught.value)
        assert "at least 3" in str(caught.value)


def test_three_samples_are_enough() -> None:
    for trial in problem(3).splits.trials:
        assert len(trial.held_out) == 1
        assert [len(part) for part in folds(trial)] == [1, 1]


def test_inputs_may_be_named_differently() -> None:
    student = build(TEXT.format(n="N", x="image", a=4), seed=1)
    x = samples(20)
    found = prepare(TEACHER, student, {"x": x}, FitOptions(RunOptions(("cpu",))), TensorStore())
    feeds = {"x": x[found.held_out]}
    assert_close({"z": found.target[0]}, {"z": run(TEACHER, feeds)["z"]})
    again = found.outputs(student, "student", found.held_out)
    assert_close({"z": again[0]}, {"z": run(student, {"image": feeds["x"]})["z"]})
    assert found.before.relative_mse > 0


def test_networks_are_kept_as_they_came_and_read_in_canonical_form() -> None:
    network = LoadedModel.load(STUDENT)
    assert network.name == "g"
    assert network.model is STUDENT
    assert [node.op_type for node in network.canonical.graph.node] == ["Conv", "Relu", "Conv"]
    assert network.graph() is not network.graph()


def test_networks_without_a_block_in_common_are_refused() -> None:
    other = build("""g (float[N,3,4] x) => (float[N,2,2] q) <float[2,3,1] k> {
        q = Conv <strides = [2]> (x, k)
    }""")
    with pytest.raises(MatchError, match=r"no block has a counterpart in g.*--map"):
        prepare(TEACHER, other, samples(20), FitOptions(RunOptions(("cpu",))), TensorStore())


def test_networks_of_other_inputs_are_refused() -> None:
    other = build("g (float[N,5,4] x) => (float[N,2,4] z) <float[2,5,1] w1> { z = Conv (x, w1) }")
    with pytest.raises(ModelError, match="takes other inputs"):
        prepare(TEACHER, other, samples(20), FitOptions(RunOptions(("cpu",))), TensorStore())
