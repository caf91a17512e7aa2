"""What a fit starts from is loaded in the order of its stages, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fskd_onnx import FitOptions, RunOptions, match
from fskd_onnx.errors import MatchError, ModelError, SamplesError
from fskd_onnx.pipeline.networks import LoadedModel
from fskd_onnx.pipeline.problem import FitProblem
from tests.helpers import Array, assert_close, build, prepared, run

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
    return prepared(TEACHER, student, samples(count), FitOptions(run))


def test_the_seed_decides() -> None:
    one, same, other = problem(60, seed=3), problem(60, seed=3), problem(60, seed=4)
    np.testing.assert_array_equal(one.held_out, same.held_out)
    for batch, again in zip(one.splits.batches, same.splits.batches, strict=True):
        np.testing.assert_array_equal(batch.samples, again.samples)
    assert set(one.held_out) != set(other.held_out)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_samples_are_refused(count: int) -> None:
    with pytest.raises(SamplesError) as caught:
        problem(count)
    assert "\n" not in str(caught.value)
    if count:
        assert ("1 sample is" if count == 1 else "2 samples are") + " too few" in str(caught.value)
        assert "at least 3" in str(caught.value)


def test_three_samples_are_enough() -> None:
    for trial in problem(3).splits.trials:
        assert len(trial.held_out) == 1
        assert [(batch.count, batch.fold) for batch in trial.batches] == [(1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("batch_size", "n", "sizes"), [(None, "N", {10, 11}), (4, "N", {4}), (4, "2", {2})]
)
def test_batches_are_as_large_as_options_and_models_say(
    batch_size: int | None, n: str, sizes: set[int]
) -> None:
    found = problem(60, batch_size, n=n)
    assert {len(batch.samples) for batch in found.splits.final.batches} == sizes


def test_moved_copies_are_fitted_on_too() -> None:
    image = build("g (float[N,1,6,6] x) => (float[N,2,4,4] z) <float[2,1,3,3] w> {z = Conv(x, w)}")
    x = np.random.default_rng(0).random((60, 1, 6, 6)).astype(np.float32)
    options = FitOptions(RunOptions(("cpu",)), augment=("rotate",), augment_copies=2)
    found = prepared(image, image, x, options)
    fitted = np.concatenate([b.samples[: b.count] for b in found.splits.final.batches])
    assert sorted(fitted % 60) == sorted(np.tile(np.setdiff1d(np.arange(60), found.held_out), 3))


def test_inputs_may_be_named_differently() -> None:
    student = build(TEXT.format(n="N", x="image", a=4), seed=1)
    x = samples(20)
    found = prepared(TEACHER, student, {"x": x}, FitOptions(RunOptions(("cpu",))))
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
        prepared(TEACHER, other, samples(20), FitOptions(RunOptions(("cpu",))))


def test_a_student_that_is_quantized_is_told_to_come_before_that() -> None:
    teacher = build("""g (float[N,4] x) => (float[N,6] y) <float[4,6] w> { [n] y = Gemm (x, w) }""")
    student = build("""g (float[N,4] x) => (float[N,6] y) <uint8[4,6] w, float s> {
        d = DequantizeLinear (w, s)
        [n] y = MatMul (x, d)
    }""")
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    said = r"\('n': its weight 'd' is quantized\); fit the student before it is quantized"
    with pytest.raises(MatchError, match=said):
        prepared(teacher, student, {"x": x}, FitOptions(RunOptions(("cpu",))))


def test_a_teacher_in_the_place_of_its_student_is_refused() -> None:
    said = "is larger than its teacher .* '.*' has 6 channels and 4 there.*as TEACHER, first"
    with pytest.raises(MatchError, match=said):
        prepared(STUDENT, TEACHER, samples(20), FitOptions(RunOptions(("cpu",))))
    with pytest.raises(MatchError, match=said):
        match(STUDENT, TEACHER)
    assert match(TEACHER, TEACHER).usable


def test_networks_of_other_inputs_are_refused() -> None:
    other = build("g (float[N,5,4] x) => (float[N,2,4] z) <float[2,5,1] w1> { z = Conv (x, w1) }")
    with pytest.raises(ModelError, match="takes other inputs"):
        prepared(TEACHER, other, samples(20), FitOptions(RunOptions(("cpu",))))


def test_batches_are_a_multiple_of_what_both_networks_take() -> None:
    teacher, student = (build(TEXT.format(n=n, x="x", a=a), seed=a) for n, a in ((4, 6), (6, 4)))
    found = prepared(teacher, student, samples(60), FitOptions(RunOptions(("cpu",))))
    assert {len(batch.samples) for batch in found.splits.batches} == {12}


def test_a_shared_input_states_no_batch_size() -> None:
    text = "g (float[N,3] x, float[5,3] t) => (float[N,4] y) <float[3,4] w> {{ {0} }}"
    nodes = "m = ReduceMean <axes = [0]> (t) a = Add (x, m) y = MatMul (a, w)"
    model = build(text.format(nodes))
    given = {"x": np.random.default_rng(0).standard_normal((60, 3)), "t": np.ones((5, 3))}
    given = {name: value.astype(np.float32) for name, value in given.items()}
    found = prepared(model, model, given, FitOptions(RunOptions(("cpu",))))
    assert {len(batch.samples) for batch in found.splits.batches} == {6, 10, 11}


def test_inputs_and_outputs_are_in_the_order_of_the_teacher() -> None:
    text = """g ({0}) => ({1}) <float[3,4] w, float[3,4] v> {{
      p = MatMul (a, w) q = MatMul (b, v) }}"""
    a, b, p, q = (
        f"float[N,{size}] {name}" for size, name in zip((3, 3, 4, 4), "abpq", strict=True)
    )
    teacher = build(text.format(f"{a}, {b}", f"{p}, {q}"))
    student = build(text.format(f"{b}, {a}", f"{q}, {p}"))
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((60, 3)).astype(np.float32) for name in "ab"}
    found = prepared(teacher, student, given, FitOptions(RunOptions(("cpu",))))
    graph = found.student.graph()
    assert [tensor.name for tensor in graph.inputs] == ["a", "b"]
    assert [tensor.name for tensor in graph.outputs] == ["p", "q"]
    assert [value.name for value in found.student.canonical.graph.output] == ["q", "p"]
    assert [(pair.student, pair.teacher) for pair in found.matching.pairs] == [
        ("p", "p"),
        ("q", "q"),
    ]
    assert found.before.relative_mse < 1e-12


@pytest.mark.parametrize("written", [1, 4])
def test_a_batch_size_that_the_network_states_inside_is_told(written: int) -> None:
    text = "g (float[N,6] x) => (float[%d,4] y) <float[6,6] w, float[6,4] v, int64[2] s = {%d,6}>"
    nodes = "{ a = MatMul (x, w) b = Relu (a) c = Reshape (b, s) y = MatMul (c, v) }"
    model = build(f"{text % (written, written)} {nodes}")
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    with pytest.raises(ModelError, match=rf"^g: .*; give --batch-size {written}$") as caught:
        prepared(model, model, x, FitOptions(RunOptions(("cpu",))))
    assert "\n" not in str(caught.value)
    run = RunOptions(("cpu",), batch_size=written)
    found = prepared(model, model, x, FitOptions(run))
    assert found.before.relative_mse < 1e-12


def _with_long_weights(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data += b"1234"


def _of_an_unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def _without_groups(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="group", type=onnx.AttributeProto.INT, i=0)


@pytest.mark.parametrize("damage", [_with_long_weights, _of_an_unknown_type, _without_groups])
def test_a_malformed_model_is_named(
    tmp_path: Path, damage: Callable[[onnx.ModelProto], None]
) -> None:
    model = build(
        "g (float[N,3,5,5] x) => (float[N,4,3,3] y) <float[4,3,3,3] w> { y = Conv (x, w) }"
    )
    damage(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelError, match=r"bad\.onnx: is not a valid ONNX model: .*; export it"
    ) as e:
        LoadedModel.load(path)
    assert "\n" not in str(e.value)
