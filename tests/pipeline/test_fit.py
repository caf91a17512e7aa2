"""Whole fits on small random networks: the student comes closer to its teacher, or is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnxruntime import OrtValue

from fskd_onnx import FitOptions, FitResult, RunOptions, fit
from fskd_onnx.errors import FskdError, MatchError, ModelError, NoImprovementError, SamplesError
from fskd_onnx.fitting import teacher_pass
from fskd_onnx.passes import AffineMap, ReplaceWeights
from fskd_onnx.pipeline.match import match
from fskd_onnx.reporting.agreement import agreement
from fskd_onnx.runtime.tensor_store import StoredTensor, TensorStore
from fskd_onnx.samples.reader import Samples
from fskd_onnx.serialization.model_files import count_parameters
from tests.forms import noisy
from tests.helpers import Array, build, check, initializers, linears, ops, run
from tests.networks import NETWORKS, Network
from tests.students import renamed

CPU = RunOptions(providers=("cpu",))
ADAPTERS = ("auto", "pointwise", "kernel")
TARGETS = ("auto", "kept", "select")
COMBINATIONS = [(adapter, targets) for adapter in ADAPTERS for targets in TARGETS]
DIAGONAL = COMBINATIONS[::4]  # those that differ most
ALL_WAYS = ("chain", "residual", "flatten", "matmul")
CASES = [
    (name, adapter, targets)
    for name in NETWORKS
    for adapter, targets in COMBINATIONS
    if name in ALL_WAYS or (adapter, targets) in DIAGONAL
]


def error(
    teacher: onnx.ModelProto, student: onnx.ModelProto, samples: Mapping[str, Array]
) -> float:
    """The relative error of a student on samples, in batches that the models take."""
    count = len(next(iter(samples.values())))
    size = teacher.graph.input[0].type.tensor_type.shape.dim[0].dim_value or count
    parts = []
    for start in range(0, count - count % size, size):
        feeds = {name: value[start : start + size] for name, value in samples.items()}
        parts.append([list(run(model, feeds).values()) for model in (teacher, student)])
    outputs = [
        [np.concatenate(part) for part in zip(*side, strict=True)]
        for side in zip(*parts, strict=True)
    ]
    return agreement(*outputs).relative_mse


def assert_same_bytes(one: Any, other: Any) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        assert one.name == other.name
        assert one.values.tobytes() == other.values.tobytes()


def fit_to(
    teacher: onnx.ModelProto,
    student: onnx.ModelProto,
    samples: Mapping[str, Array],
    adapter: str = "auto",
    targets: str = "auto",
) -> FitResult:
    """Fit, and check what holds for every fit: see ``assert_sound``."""
    before = [model.SerializeToString() for model in (teacher, student)]
    result = fit(teacher, student, dict(samples), FitOptions(CPU, adapter, targets))
    assert [model.SerializeToString() for model in (teacher, student)] == before
    assert_sound(result, student)
    return result


def assert_sound(result: FitResult, student: onnx.ModelProto) -> None:
    """Check interface, cost and report: the student's, but for biases and numbers."""
    model, report = result.model, result.report
    check(model)
    for part in ("ir_version", "producer_name", "model_version", "opset_import", "metadata_props"):
        assert getattr(model, part) == getattr(student, part)
    assert list(model.graph.output) == list(student.graph.output)
    assert [i.name for i in model.graph.input][: len(student.graph.input)] == [
        i.name for i in student.graph.input
    ]
    views = linears(student)
    unbiased = [view for view in views.values() if view.bias_constant is None]
    adds = sum(view.op == "MatMul" for view in unbiased)
    more = {op: n - ops(student).get(op, 0) for op, n in ops(model).items()}
    assert {op: n for op, n in more.items() if n} in ({}, *({"Add": n + 1} for n in range(adds)))
    blocks = [block for block in report.blocks if block.op != "Gather"]
    assert [block.student for block in blocks] == list(views)
    for name, block in zip(views, blocks, strict=True):
        assert linears(model)[name].weight.shape == views[name].weight.shape
        assert block.status in ("fitted", "kept", "replaced")
        assert (block.status != "fitted") == bool(block.reason) == (block.adapter is None)
        if block.status == "kept":
            for part in ("weight", "bias_constant"):
                assert_same_bytes(getattr(views[name], part), getattr(linears(model)[name], part))
    biases = sum(view.width for view in unbiased)
    assert report.parameters_student == count_parameters(student)
    assert report.parameters_fused == count_parameters(model)
    assert count_parameters(model) <= count_parameters(student) + biases
    assert report.after.relative_mse < report.before.relative_mse


@pytest.mark.parametrize(("name", "adapter", "targets"), CASES)
def test_students_come_closer_on_new_data(name: str, adapter: str, targets: str) -> None:
    network = NETWORKS[name]
    teacher, student = network.teacher(), network.student()
    if name == "grouped" and targets == "select":
        with pytest.raises(MatchError, match="there is nothing to select"):
            fit_to(teacher, student, network.samples(56), adapter, targets)
        return
    result = fit_to(teacher, student, network.samples(56), adapter, targets)
    new = network.samples(64, seed=77)
    before, after = error(teacher, student, new), error(teacher, result.model, new)
    assert after < before
    families = {block.adapter for block in result.report.blocks}
    assert families <= {None, *(ADAPTERS[1:] if adapter == "auto" else (adapter,))}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [3, 5])
def test_a_handful_of_samples_is_enough(name: str, count: int) -> None:
    network = NETWORKS[name]
    teacher, student = network.teacher(), network.student()
    try:
        result = fit_to(teacher, student, network.samples(count))
    except NoImprovementError as refusal:
        # The chain's errors differ too much from sample to sample for a handful to tell.
        assert name == "chain"
        assert "do not tell whether" in str(refusal)
        return
    assert result.report.held_out_count == 1
    new = network.samples(64, seed=77)
    assert error(teacher, result.model, new) < error(teacher, student, new)


@pytest.mark.parametrize("seed", range(20))
def test_ten_samples_do_no_harm(seed: int) -> None:
    """Teachers and students at random, also such that no fit can help much."""
    network = NETWORKS[list(NETWORKS)[seed % len(NETWORKS)]]
    teacher, student = network.teacher(seed), network.student(seed)
    if seed % 3 == 0:  # a student that nothing was taken from but a little noise added
        rng = np.random.default_rng(seed)
        noisy = {
            name: replace(v.affine, matrix=v.matrix + 1e-3 * rng.standard_normal(v.shape))
            for name, v in linears(teacher).items()
        }
        student = ReplaceWeights(noisy)(teacher).model
    new = network.samples(64, seed=77)
    try:
        result = fit_to(teacher, student, network.samples(10, seed))
    except NoImprovementError:
        return
    assert error(teacher, result.model, new) <= error(teacher, student, new)


def test_scores_count_beside_boxes_that_are_joined_with_them() -> None:
    text = """g (float[N,3,4,4] x) => (float[N,L,6] y) <
      float[8,3,3,3] w, float[4,8,1,1] wb, float[2,8,1,1] ws, float size = {1000.0},
      int64[3] flat = {0, 6, -1}> {
        [h] h = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (h)
        [boxes] l = Conv (r, wb)
        b = Mul (l, size)
        [scores] p = Conv (r, ws)
        s = Sigmoid (p)
        c = Concat <axis = 1> (b, s)
        f = Reshape (c, flat)
        y = Transpose <perm = [0, 2, 1]> (f)
    }"""
    teacher = build(text, seed=1)
    wrong = -initializers(teacher)["ws"]
    student = build(text, {"ws": wrong}, seed=1)
    samples = {"x": np.random.default_rng(0).standard_normal((40, 3, 4, 4)).astype(np.float32)}
    report = fit_to(teacher, student, samples).report
    boxes, scores = report.outputs
    assert (boxes.name, scores.name) == ("y: b", "y: s")
    assert boxes.before == boxes.after == pytest.approx(0, abs=1e-6)
    assert scores.before > 1
    assert scores.after < 0.01
    assert report.before.relative_mse == pytest.approx((boxes.before + scores.before) / 2)


def test_each_of_several_outputs_has_its_error() -> None:
    network = NETWORKS["two inputs, two outputs"]
    teacher, student = network.teacher(), network.student()
    report = fit_to(teacher, student, network.samples(56)).report
    assert [output.name for output in report.outputs] == [o.name for o in teacher.graph.output]
    assert all(output.after < output.before for output in report.outputs)
    network = NETWORKS["matmul"]
    alone = fit_to(network.teacher(), network.student(), network.samples(24)).report
    assert alone.outputs == ()


def test_fits_repeat_to_the_byte() -> None:
    for name in ("residual", "flatten", "matmul"):
        network = NETWORKS[name]
        args = network.teacher(), network.student(), network.samples(24)
        one, other = fit_to(*args), fit_to(*args)
        assert one.model.SerializeToString() == other.model.SerializeToString()
        assert one.report.blocks == other.report.blocks


def test_what_was_not_fitted_survives() -> None:
    network = NETWORKS["residual"]
    student = network.student()
    student.producer_name, student.model_version, student.doc_string = "pruner", 7, "half of it"
    onnx.helper.set_model_props(student, {"origin": "a test"})
    student.graph.doc_string = "inside"
    student.opset_import.append(onnx.helper.make_opsetid("com.example", 3))
    model = fit_to(network.teacher(), student, network.samples(24)).model
    assert (model.doc_string, model.graph.doc_string) == ("half of it", "inside")
    assert {p.key: p.value for p in model.metadata_props} == {"origin": "a test"}
    assert [i.domain for i in model.opset_import] == ["", "com.example"]


def with_weights(
    network: Network, change: Callable[[dict[str, Array]], None]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The teacher with some weights changed, and its slice."""
    values = {name: v.copy() for name, v in initializers(network.teacher()).items()}
    change(values)
    changed = replace(network, values={**network.values, **values})
    return changed.teacher(), changed.student()


def dead(w: dict[str, Array]) -> None:
    w["w1"][[0, 3]], w["b1"][[0, 3]] = 0.0, -1.0


def all_dead(w: dict[str, Array]) -> None:
    w["w1"][:], w["b1"][:] = 0.0, -1.0


def equal(w: dict[str, Array]) -> None:
    w["w1"][[2, 3]], w["b1"][[2, 3]] = w["w1"][0], w["b1"][0]


def constant(w: dict[str, Array]) -> None:
    w["w2"][:2] = 0.0


def loud(w: dict[str, Array]) -> None:
    w["w1"] *= 1e4
    w["b1"] *= 1e4


def quiet(w: dict[str, Array]) -> None:
    w["w1"] *= 1e-4
    w["b1"] *= 1e-4


@pytest.mark.parametrize(("adapter", "targets"), DIAGONAL)
@pytest.mark.parametrize("change", [dead, all_dead, equal, constant, loud, quiet])
def test_degenerate_networks(
    change: Callable[[dict[str, Array]], None], adapter: str, targets: str
) -> None:
    network = NETWORKS["chain"]
    teacher, student = with_weights(network, change)
    samples, new = network.samples(56), network.samples(64, seed=77)
    result = fit_to(teacher, student, samples, adapter, targets)
    assert error(teacher, result.model, new) < error(teacher, student, new)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_inputs_of_any_scale(scale: float) -> None:
    network = NETWORKS["chain"]
    teacher, student = network.teacher(), network.student()
    samples, new = ({"x": network.samples(56, seed)["x"] * np.float32(scale)} for seed in (5, 77))
    result = fit_to(teacher, student, samples)
    assert error(teacher, result.model, new) < error(teacher, student, new)


def test_a_teacher_that_says_the_same_of_all() -> None:
    network = NETWORKS["flatten"]
    teacher = ReplaceWeights({"f2": AffineMap(np.zeros((1, 5, 12)), np.arange(5.0)[np.newaxis])})(
        network.teacher()
    ).model
    student = network.student()
    result = fit_to(teacher, student, network.samples(20))
    assert result.report.before.relative_mse > 1e-3
    assert result.report.after.relative_mse < 1e-9


def in_type(network: Network, dtype: str) -> Network:
    return replace(network, text=network.text.replace("float[", f"{dtype}["))


@pytest.mark.parametrize(
    ("name", "dtype"), [("chain", "float16"), ("matmul", "float16"), ("matmul", "double")]
)
@pytest.mark.parametrize(("adapter", "targets"), DIAGONAL)
def test_types(name: str, dtype: str, adapter: str, targets: str) -> None:
    network = in_type(NETWORKS[name], dtype)
    teacher, student = network.teacher(), network.student()
    result = fit_to(teacher, student, network.samples(56), adapter, targets)
    new = network.samples(64, seed=77)
    assert error(teacher, result.model, new) < error(teacher, student, new)
    kinds = {value.dtype for value in initializers(result.model).values()}
    assert kinds == {value.dtype for value in initializers(student).values()}


@pytest.mark.parametrize(("name", "dtype"), [("chain", "double"), ("matmul", "bfloat16")])
def test_types_that_cannot_be_run_or_fitted_are_one_sentence(name: str, dtype: str) -> None:
    # ONNX Runtime's CPU has no convolution in float64; bfloat16 has no arithmetic in NumPy.
    network = in_type(NETWORKS[name], dtype)
    models, samples = (network.teacher(), network.student(seed=1)), network.samples(12)
    for work in (
        lambda: fit(*models, samples, FitOptions(CPU)),
        lambda: match(*models, samples, CPU),
    ):
        with pytest.raises((ModelError, MatchError)) as caught:
            work()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("g: ")


@pytest.mark.parametrize(("opset", "ir"), [(9, 3), (11, 4), (13, 7), (18, 9), (21, 10)])
def test_opsets(opset: int, ir: int) -> None:
    # Initializers of the oldest files are inputs of the graph as well.
    network = replace(NETWORKS["chain"], opset=opset, ir=ir)
    teacher, student = network.teacher(), network.student()
    result = fit_to(teacher, student, {"x": NETWORKS["chain"].samples(56)["x"]})
    new = {"x": NETWORKS["chain"].samples(64, seed=77)["x"]}
    assert error(teacher, result.model, new) < error(teacher, student, new)


# x ─▶ Conv ─▶ Conv ─▶ z
LINEAR = Network(
    """g (float[N,3,6,6] x) => (float[N,4,4,4] z) <float[$a,3,1,1] w1, float[$a] b1,
      float[4,$a,3,3] w2, float[4] b2> {
        [c1] y = Conv (x, w1, b1)
        [c2] z = Conv (y, w2, b2)
    }""",
    {"a": (8, [0, 2, 3, 5, 7])},
    {"w1": "a", "b1": "a", "w2": "- a"},
)


@pytest.mark.parametrize("adapter", ["auto", "kernel"])
@pytest.mark.parametrize("targets", TARGETS)
def test_channels_that_follow_from_others_are_recovered(adapter: str, targets: str) -> None:
    def combine(w: dict[str, Array]) -> None:
        kept = LINEAR.kept["a"][1]
        mix = np.random.default_rng(3).standard_normal((3, 5)).astype(np.float32)
        w["w1"][[1, 4, 6]] = np.einsum("ij,jkuv->ikuv", mix, w["w1"][kept])
        w["b1"][[1, 4, 6]] = mix @ w["b1"][kept] + 1  # and what is constant follows too

    teacher, student = with_weights(LINEAR, combine)
    result = fit_to(teacher, student, LINEAR.samples(60), adapter, targets)
    new = LINEAR.samples(64, seed=77)
    assert error(teacher, student, new) > 0.1
    assert error(teacher, result.model, new) < 1e-6


@pytest.mark.parametrize("adapter", ["auto", "kernel"])
def test_copies_behind_an_activation_are_recovered(adapter: str) -> None:
    network = NETWORKS["chain"]

    def copy(w: dict[str, Array]) -> None:
        for pruned, kept, factor in ((1, 0, 2.0), (4, 2, 0.5), (6, 7, 1.0)):
            w["w1"][pruned], w["b1"][pruned] = factor * w["w1"][kept], factor * w["b1"][kept]
        for pruned, kept, factor in ((0, 1, 1.5), (3, 5, 1.0)):
            w["w2"][pruned], w["b2"][pruned] = factor * w["w2"][kept], factor * w["b2"][kept]

    teacher, student = with_weights(network, copy)
    result = fit_to(teacher, student, network.samples(80), adapter)
    new = network.samples(64, seed=77)
    assert error(teacher, student, new) > 0.1
    assert error(teacher, result.model, new) < 1e-6


@pytest.mark.parametrize(("adapter", "targets"), DIAGONAL)
def test_zeros_of_a_sparse_kernel_stay(adapter: str, targets: str) -> None:
    # The block behind it is free to carry other channels all the same.
    network = NETWORKS["flatten"]
    teacher, student = network.teacher(), network.student()
    view = linears(student)["c1"]
    mask = np.random.default_rng(0).random(view.matrix.shape) < 0.4
    student = ReplaceWeights({"c1": replace(view.affine, matrix=view.matrix * mask)})(student).model
    result = fit_to(teacher, student, network.samples(56), adapter, targets)
    assert not linears(result.model)["c1"].matrix[~mask].any()
    new = network.samples(64, seed=77)
    assert error(teacher, result.model, new) < error(teacher, student, new)


def perturbed(
    network: Network, change: Callable[[Array, Array], tuple[Array, Array]]
) -> onnx.ModelProto:
    """The teacher with another matrix and bias at every block."""
    teacher, new = network.teacher(), {}
    for name, view in linears(teacher).items():
        flat = view.matrix.reshape(view.groups, -1, view.matrix.shape[2])
        matrix, bias = change(flat, view.bias)
        new[name] = AffineMap(matrix.reshape(view.shape), bias.reshape(view.shape[:2]))
    return ReplaceWeights(new)(teacher).model


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "grouped", "concat", "matmul"])
def test_mixed_outputs_are_recovered(name: str, adapter: str) -> None:
    network = NETWORKS[name]
    rng = np.random.default_rng(8)

    def mix(matrix: Array, bias: Array) -> tuple[Array, Array]:
        groups, n, _ = matrix.shape
        q = np.eye(n) + 0.5 * rng.standard_normal((groups, n, n)) / np.sqrt(n)
        shifted = np.einsum("gij,gj->gi", q, bias.reshape(groups, n)).reshape(-1) + 0.3
        return q @ matrix, shifted

    teacher, student = network.teacher(), perturbed(network, mix)
    result = fit_to(teacher, student, network.samples(60), adapter, "kept")
    new = network.samples(64, seed=77)
    assert error(teacher, student, new) > 1e-2
    assert error(teacher, result.model, new) < 1e-6


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_biases_are_put_right(name: str, adapter: str) -> None:
    network = NETWORKS[name]
    student = perturbed(network, lambda matrix, bias: (matrix, bias + 0.5))
    teacher = network.teacher()
    result = fit_to(teacher, student, network.samples(56), adapter, "kept")
    new = network.samples(64, seed=77)
    assert error(teacher, result.model, new) < 1e-8


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_channels_are_found_by_activations_where_weights_say_nothing(adapter: str) -> None:
    """The student's rows are far from its teacher's, but not what they compute on these samples.

    One input channel hardly varies, so weights on it may be anything. Neither biases nor what reads
    the channels say any more than that.
    """
    network = LINEAR
    rng = np.random.default_rng(2)
    teacher, student = network.teacher(), network.student()
    views = linears(student)
    weights = views["c1"].matrix.copy()
    weights[:, :, 2] += 20 * rng.standard_normal(weights.shape[:2])
    new = {"c1": AffineMap(weights, np.zeros_like(views["c1"].affine.shift))}
    new["c2"] = replace(views["c2"].affine, matrix=1.1 * views["c2"].matrix)
    student = ReplaceWeights(new)(student).model
    first = linears(teacher)["c1"]
    teacher = ReplaceWeights({"c1": AffineMap(first.matrix, np.zeros_like(first.affine.shift))})(
        teacher
    ).model
    samples = network.samples(60)
    samples["x"][:, 2] *= 1e-3
    kept = tuple(network.kept["a"][1])
    by_weights, by_samples = match(teacher, student), match(teacher, student, samples, CPU)
    assert by_weights.pairs[0].channels is None
    assert by_samples.pairs[0].channels == kept
    assert by_samples.pairs[0].evidence == "activations"
    assert by_samples.pairs[0].confidence > 0.9
    result = fit_to(teacher, student, samples, adapter, "kept")
    assert result.report.blocks[0].channels == kept


def test_a_shortcut_that_is_broadcast() -> None:
    # x ─▶ GlobalAveragePool ─▶ Conv ─▶ y2 (one position) ─▶ + ─▶ Relu ─▶ Conv ─▶ z
    # └──────────────────────▶ Conv ─▶ y1 ─────────────────▶ ┘
    template = """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[$a,3,3,3] w1, float[$a] b1,
      float[$s,3,1,1] w2, float[4,$a,1,1] w3> {
        {first}
        s = Add (y1, y2)
        r = Relu (s)
        [c3] z = Conv (r, w3)
    }"""
    wide = "[c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)"
    mean = "p = GlobalAveragePool (x) [c2] y2 = Conv (p, w2)"
    plain = "[c2] y2 = Conv (x, w2)"  # of a single channel
    for first, width in (
        (f"{wide} {mean}", "$a"),
        (f"{mean} {wide}", "$a"),
        (f"{wide} {plain}", "1"),
    ):
        network = Network(
            template.replace("{first}", first).replace("$s", width),
            {"a": (8, [0, 2, 3, 5, 6])},
            {"w1": "a", "b1": "a", "w3": "- a"} | ({} if width == "1" else {"w2": "a"}),
        )
        teacher, student = network.teacher(), network.student()
        result = fit_to(teacher, student, network.samples(56))
        new = network.samples(64, seed=77)
        assert error(teacher, result.model, new) < error(teacher, student, new)


@pytest.mark.parametrize("adapter", ["pointwise", "kernel"])
@pytest.mark.parametrize("name", NETWORKS)
def test_solvers_agree(name: str, adapter: str) -> None:
    network = NETWORKS[name]
    teacher, student, samples = network.teacher(), network.student(), network.samples(56)
    numpy, torch = (
        initializers(fit(teacher, student, dict(samples), options).model)
        for options in (
            FitOptions(CPU, adapter, "kept", solver="numpy"),
            FitOptions(CPU, adapter, "kept", solver="torch"),
        )
    )
    for key, value in numpy.items():
        np.testing.assert_allclose(torch[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("adapter", ["pointwise", "auto"])
@pytest.mark.parametrize("name", NETWORKS)
def test_where_anything_is_kept_changes_no_byte(
    name: str, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NETWORKS[name]
    teacher, student, samples = network.teacher(), network.student(), network.samples(56)

    def fitted(limit: int | None) -> bytes:
        options = FitOptions(replace(CPU, memory_limit=limit), adapter)
        return fit(teacher, student, dict(samples), options).model.SerializeToString()

    whole = fitted(None)
    assert fitted(0) == whole
    monkeypatch.setattr(teacher_pass, "_WINDOW_BYTES", 0)  # every block is a window of its own
    assert fitted(None) == whole


@pytest.mark.parametrize("augment", [(), ("rotate",)])
@pytest.mark.parametrize("count", [12, 70])
@pytest.mark.parametrize("name", ["chain", "fixed batch"])
def test_each_sample_is_read_once(
    name: str, count: int, augment: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For pairing, selection, all fits and all verdicts together."""
    read: list[int] = []
    take = Samples.take

    def counted(samples: Samples, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        read.extend(indices.tolist())
        return take(samples, indices)

    monkeypatch.setattr(Samples, "take", counted)
    network = NETWORKS[name]
    # Weights say nothing of the student's blocks, so activations have to.
    teacher, student = network.teacher(), network.student(seed=1)
    with suppress(NoImprovementError):
        options = FitOptions(CPU, augment=augment, augment_copies=1)
        fit(teacher, student, network.samples(count), options)
    assert sorted(read) == list(range(count))


def test_samples_count_towards_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the verdict included, and whatever they were first read for."""
    network = NETWORKS["chain"]
    samples = network.samples(70)["x"]
    most: list[int] = []
    keep = TensorStore.keep

    def watched(store: TensorStore, value: OrtValue) -> StoredTensor:
        kept = keep(store, value)
        most.append(store._used)
        return kept

    monkeypatch.setattr(TensorStore, "keep", watched)
    for limit in (None, samples.nbytes, samples.nbytes // 2):
        most.clear()
        options = FitOptions(replace(CPU, memory_limit=limit))
        fit(network.teacher(), network.student(), samples, options)
        if limit is None:
            assert max(most) > samples.nbytes
        else:
            assert max(most) <= limit


def test_inputs_of_a_student_may_have_other_names() -> None:
    network = NETWORKS["two inputs, two outputs"]
    renamed = replace(network, text=network.text.replace(" x", " left").replace("(x", "(left"))
    plain = fit_to(network.teacher(), network.student(), network.samples(56))
    result = fit_to(network.teacher(), renamed.student(), network.samples(56))
    assert initializers(result.model).keys() == initializers(plain.model).keys()
    for name, value in initializers(result.model).items():
        np.testing.assert_array_equal(value, initializers(plain.model)[name])


@pytest.mark.parametrize("name", ["chain", "residual", "matmul", "two inputs, two outputs"])
def test_names_and_the_order_of_nodes_change_nothing(name: str) -> None:
    network = NETWORKS[name]
    teacher, student, new = network.teacher(), network.student(), network.samples(64, seed=77)
    shuffled = renamed(student, seed=1)
    results = [fit_to(teacher, model, network.samples(56)) for model in (student, shuffled.model)]
    one = list(run(results[0].model, new).values())
    inputs = [value.name for value in shuffled.model.graph.input]
    feeds = {now: new[shuffled.old[now]] for now in inputs}
    for mine, theirs in zip(one, run(results[1].model, feeds).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_student_that_is_its_teacher_is_refused_with_a_report() -> None:
    network = NETWORKS["chain"]
    with pytest.raises(
        NoImprovementError, match="no closer to the teacher on 20 held-out"
    ) as caught:
        fit(network.teacher(), network.teacher(), network.samples(20), FitOptions(CPU))
    assert caught.value.exit_status == 3
    assert [block.student for block in caught.value.report.blocks] == ["c1", "c2", "c3"]
    assert caught.value.report.before.relative_mse == 0.0


def test_a_student_with_narrower_outputs_is_refused() -> None:
    chain = NETWORKS["chain"]
    outputs = "(float[N,5,1,1] z, float[N,$a,6,6] r1)"
    network = replace(chain, text=chain.text.replace("(float[N,5,1,1] z)", outputs))
    with pytest.raises(ModelError, match="its output 'r1' has the shape"):
        fit(network.teacher(), network.student(), network.samples(12), FitOptions(CPU))


def test_a_student_that_overflows_is_brought_back() -> None:
    # Its own outputs are not finite in float16, which must not hide that the fitted ones are.
    network = in_type(NETWORKS["chain"], "float16")
    student = network.student()
    loud = {
        name: replace(v.affine, matrix=v.matrix * factor)
        for (name, v), factor in zip(linears(student).items(), (1, 3000, 300), strict=True)
    }
    student = ReplaceWeights(loud)(student).model
    result = fit(network.teacher(), student, network.samples(20), FitOptions(CPU))
    assert not np.isfinite(result.report.before.relative_mse)
    assert result.report.after.relative_mse < 2.0


# ids ─▶ Gather ─▶ q, k ─▶ scores, -inf at padding ─▶ Softmax ─▶ o ─▶ f ─▶ Relu ─▶ g ─▶ 0 at padding
PADDED = """net (int64[N,5] ids, float[N,5] mask) => (float[N,4] z)
    <float[20,8] table, float[8,8] wq, float[8,8] wo, float[8,{width}] wf, float[{width}] bf,
     float[{width},8] wg, float[8,4] wz, int64[1] one, int64[1] two, float half,
     float low, float no> {{
    e = Gather (table, ids)
    [q] q = MatMul (e, wq)
    t = Transpose <perm = [0, 2, 1]> (e)
    s = MatMul (q, t)
    rows = Unsqueeze (mask, two)
    columns = Unsqueeze (mask, one)
    both = Mul (rows, columns)
    seen = Greater (both, half)
    masked = Where (seen, s, low)
    a = Softmax (masked)
    v = MatMul (a, e)
    [o] o = MatMul (v, wo)
    [f] f = MatMul (o, wf)
    b = Add (f, bf)
    r = Relu (b)
    [g] g = MatMul (r, wg)
    token = Greater (rows, half)
    shown = Where (token, g, no)
    p = ReduceSum <keepdims = 0> (shown, one)
    [z] z = MatMul (p, wz)
}}"""
CONSTANTS = {"one": [1], "two": [2], "half": 0.5, "low": -np.inf, "no": 0.0}


def padded_samples(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 6, count)
    mask = (np.arange(5) < lengths[:, np.newaxis]).astype(np.float32)
    return {"ids": rng.integers(0, 20, (count, 5)), "mask": mask}


def test_padded_tokens_that_are_not_finite_are_left_out_of_a_block() -> None:
    teacher = build(PADDED.format(width=12), CONSTANTS)
    w = {name: value.copy() for name, value in initializers(teacher).items()}
    kept = np.array([0, 2, 3, 5, 8, 11])
    w["wf"], w["bf"], w["wg"] = w["wf"][:, kept], w["bf"][kept], w["wg"][kept]
    rng = np.random.default_rng(1)
    w["wo"] = w["wo"] + 0.1 * rng.standard_normal(w["wo"].shape).astype(np.float32)
    student = build(PADDED.format(width=6), w)
    samples, new = padded_samples(80, 2), padded_samples(60, 3)
    result = fit_to(teacher, student, samples, targets="kept")
    blocks = {block.student: block for block in result.report.blocks}
    errors = {
        name: (b.error_before or np.nan, b.error_after or np.nan) for name, b in blocks.items()
    }
    assert np.isfinite([errors[name] for name in ("o", "f", "g")]).all()
    assert blocks["o"].status == "fitted"
    assert "its activations are not finite on" in blocks["o"].note
    assert errors["o"][1] < 1e-6
    assert error(teacher, result.model, new) < 0.5 * error(teacher, student, new)


def test_blocks_that_are_finite_on_no_sample_are_left_alone() -> None:
    # x ─▶ a ─▶ Relu ─┬▶ b ─▶ Log of a negative number ─▶ c ─▶ times 0 where it is NaN ─┬▶ + ─▶ y
    #                 └▶ d ────────────────────────────────────────────────────────────┘
    text = """net (float[N,6] x) => (float[N,3] y)
        <float[6,8] wa, float[8,8] wb, float[8,3] wc, float[8,3] wd, float minus, float[1] zero> {
        [a] a = Gemm (x, wa)
        r = Relu (a)
        [b] b = Gemm (r, wb)
        m = Mul (b, b)
        n = Sub (minus, m)
        l = Log (n)
        [c] c = Gemm (l, wc)
        f = IsNaN (c)
        k = Where (f, zero, c)
        [d] d = Gemm (r, wd)
        y = Add (d, k)
    }"""
    values = {"minus": -1.0, "zero": [0.0]}
    teacher, student = (build(text, values, seed=seed) for seed in (0, 1))
    samples = {"x": np.random.default_rng(2).standard_normal((80, 6)).astype(np.float32)}
    result = fit_to(teacher, student, samples)
    blocks = {block.student: block for block in result.report.blocks}
    assert blocks["c"].reason == "its activations are not finite on any sample"
    assert blocks["d"].status == "fitted"


ROOT = """net (float[N,4] x) => (float[N,3] y) <float[4,6] w, float[6,3] v> {
    axis = Constant <value = int64[1] {1}> ()
    s = ReduceSum <keepdims = 1> (x, axis)
    t = Sqrt (s)
    [one] h = Gemm (x, w)
    r = Relu (h)
    m = Mul (r, t)
    [two] y = Gemm (m, v)
}"""


BANDS = """net (float[N,64] x) => (float[N,3] y)
    <int64[1] size, int64[4] at, float[4] values, int64[2] shape, float[40,8] v, float[8,3] w> {
    empty = ConstantOfShape (size)
    row = ScatterElements (empty, at, values)
    bands = Reshape (row, shape)
    [front] f = MatMul (x, bands)
    a = Abs (f)
    [one] h = MatMul (a, v)
    r = Relu (h)
    [two] y = MatMul (r, w)
}"""
"""As front ends of sound networks: a matrix of which nearly all is zero, computed from the rest."""


def test_matrices_that_no_fit_changes_stay_computed() -> None:
    values = {"size": [2560], "at": [0, 41, 82, 2559], "values": [1, 2, 1, 3], "shape": [64, 40]}
    teacher, student = (build(BANDS, values, seed=seed) for seed in (0, 1))
    samples = {"x": np.random.default_rng(2).standard_normal((200, 64)).astype(np.float32)}
    result = fit(teacher, student, samples, FitOptions(CPU))
    blocks = {block.student: block for block in result.report.blocks}
    assert blocks["front"].status == "kept"
    assert blocks["two"].status == "fitted"
    assert ops(result.model).items() >= {"ScatterElements": 1, "Reshape": 1}.items()
    assert result.model.ByteSize() < student.ByteSize() + 1000
    new = {"x": np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32)}
    assert error(teacher, result.model, new) < 0.1 * error(teacher, student, new)


def test_samples_with_outputs_that_are_not_finite_are_left_out_and_named() -> None:
    # The root of a negative sum is NaN.
    teacher, student = (build(ROOT, seed=seed) for seed in (0, 1))
    x = np.abs(np.random.default_rng(2).standard_normal((100, 4))).astype(np.float32)
    x[::3] *= -1
    result = fit_to(teacher, student, {"x": x})
    report = result.report
    assert 0 < len(report.samples_left_out) < report.held_out_count
    assert all(int(name.rsplit(" ", 1)[1]) % 3 == 0 for name in report.samples_left_out)
    assert np.isfinite(report.before.relative_mse)
    assert report.after.relative_mse < 0.1 * report.before.relative_mse
    blocks = {block.student: block for block in report.blocks}
    assert "not finite on 3" in blocks["two"].note
    assert ", sample " in blocks["two"].note


def test_a_model_that_is_finite_on_no_sample_is_named() -> None:
    teacher, student = (build(ROOT, seed=seed) for seed in (0, 1))
    x = -np.abs(np.random.default_rng(2).standard_normal((100, 4))).astype(np.float32)
    with pytest.raises(ModelError, match="its output 'y' is NaN or infinite for each of 10"):
        fit(teacher, student, {"x": x}, FitOptions(CPU))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_parameters_that_are_not_finite_are_named(who: str) -> None:
    models = {name: build(ROOT, seed=seed) for seed, name in enumerate(("teacher", "student"))}
    w = initializers(models[who])["w"].copy()
    w[1, 2] = np.nan
    models[who] = build(ROOT, {"w": w})
    x = np.abs(np.random.default_rng(2).standard_normal((100, 4))).astype(np.float32)
    with pytest.raises(ModelError, match="net: the parameter 'w' of its node 'one' holds NaN"):
        fit(models["teacher"], models["student"], {"x": x}, FitOptions(CPU))


def test_half_precision_that_overflows_between_blocks_gives_no_warning() -> None:
    text = """net (float16[N,6] x) => (float16[N,4] y)
        <float16[6,8] u, float16[8,8] v, float16[8,4] w, float16[1] most> {
        [a] a = Gemm (x, u)
        r = Relu (a)
        [b] b = Gemm (r, v)
        s = Relu (b)
        m = Min (s, most)
        [c] c = Gemm (m, w)
        y = Identity (c)
    }"""
    rng = np.random.default_rng(4)
    values = {
        "u": rng.standard_normal((6, 8)) * 300,
        "v": rng.standard_normal((8, 8)) * 60,
        "w": rng.standard_normal((8, 4)) * 0.01,
        "most": [500.0],
    }
    teacher = build(text, values)
    student = noisy(build(text, values), 0.3, seed=5)
    samples = {"x": rng.standard_normal((90, 6)).astype(np.float16)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            result = fit(teacher, student, samples, FitOptions(CPU))
        except NoImprovementError as refused:
            blocks = refused.report.blocks
        else:
            blocks = result.report.blocks
    for block in blocks:
        assert block.error_before is None or np.isfinite(block.error_before)


def test_a_block_whose_shortcut_is_added_in_the_body_of_an_if_is_fitted() -> None:
    # x ─▶ Gemm ─▶ Relu ─▶ Gemm ─▶ y ─▶ (If: Add) ─▶ z
    # └──▶ Gemm ─▶ k ────────────────────▶ ┘
    text = """g (float[N,4] x) => (float[N,3] z)
      <float[4,6] w, float[6,3] v, float[4,3] u, bool yes> {
        h = Gemm (x, w)
        r = Relu (h)
        k = Gemm (x, u)
        y = Gemm (r, v)
        z = If (yes) <then_branch = sum () => (float[N,3] p) { p = Add (y, k) },
          else_branch = one () => (float[N,3] q) { q = Neg (k) }>
    }"""
    teacher, student = (build(text, {"yes": True}, seed=seed) for seed in (0, 1))
    samples = {"x": np.random.default_rng(2).standard_normal((40, 4)).astype(np.float32)}
    result = fit_to(teacher, student, samples)
    assert {block.student: block.reason for block in result.report.blocks}["y"] == ""
    assert error(teacher, result.model, samples) < 0.5 * error(teacher, student, samples)


def test_too_few_samples_are_refused() -> None:
    network = NETWORKS["chain"]
    for count, found in ((1, "1 sample is"), (2, "2 samples are")):
        with pytest.raises(SamplesError, match=f"{found} too few"):
            fit(network.teacher(), network.student(), network.samples(count), FitOptions(CPU))


def test_networks_that_cannot_be_fitted_are_one_sentence() -> None:
    teacher = NETWORKS["chain"].teacher()
    for name in NETWORKS:
        with pytest.raises(FskdError) as caught:
            fit(teacher, NETWORKS[name].teacher(seed=1), {"x": np.zeros((2, 1))}, FitOptions(CPU))
        assert "\n" not in str(caught.value)


def test_identical_samples_count_once() -> None:
    network = NETWORKS["chain"]
    teacher, student, samples = network.teacher(), network.student(), network.samples(20)
    order = np.array([*range(20), *[0] * 30, *range(20)])
    repeated = {name: value[order] for name, value in samples.items()}
    plain, result = (fit_to(teacher, student, each) for each in (samples, repeated))
    assert result.model.SerializeToString() == plain.model.SerializeToString()
    assert result.report.blocks == plain.report.blocks
    assert result.report.verdict == plain.report.verdict
    assert (result.report.sample_count, result.report.independent_count) == (70, 20)


def test_copies_of_two_samples_are_too_few() -> None:
    network = NETWORKS["chain"]
    samples = {name: value[[0, 1] * 20] for name, value in network.samples(2).items()}
    with pytest.raises(SamplesError, match="samples of 2 independent groups are too few"):
        fit(network.teacher(), network.student(), samples, FitOptions(CPU))


def test_groups_are_what_the_verdict_stands_on() -> None:
    network = NETWORKS["chain"]
    teacher, student, samples = network.teacher(), network.student(), network.samples(40)
    groups = tuple(f"photo {index % 8}" for index in range(40))
    report = fit(teacher, student, samples, FitOptions(replace(CPU, groups=groups))).report
    assert (report.sample_count, report.independent_count) == (40, 8)
    assert report.verdict.independent_count == 8
    assert report.options["run"]["groups"] == groups  # type: ignore[index]
    few = replace(CPU, groups=tuple(index % 2 for index in range(40)))
    with pytest.raises(SamplesError, match=r"those given\); give samples of more"):
        fit(teacher, student, samples, FitOptions(few))
    with pytest.raises(SamplesError, match="3 groups for 40 samples"):
        fit(teacher, student, samples, FitOptions(replace(CPU, groups=("a", "b", "c"))))


def test_related_samples_are_groups() -> None:
    network = NETWORKS["dynamic size"]
    samples = network.samples(10, size=16)["x"]
    rng = np.random.default_rng(0)
    copies = [samples + 0.05 * rng.standard_normal(samples.shape) for _ in range(4)]
    related = np.concatenate([samples, *copies]).astype(np.float32)
    report = fit(network.teacher(), network.student(), related, FitOptions(CPU)).report
    assert report.independent_count == report.verdict.independent_count == 10


ATTENTION = """g (float[N,6,8] x) => (float[N,6,8] z)
  <float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,8] wo> {
    [q] q = MatMul (x, wq)
    [k] k = MatMul (x, wk)
    [v] v = MatMul (x, wv)
    kt = Transpose <perm = [0,2,1]> (k)
    s = MatMul (q, kt)
    a = Softmax <axis = -1> (s)
    c = MatMul (a, v)
    [o] z = MatMul (c, wo)
}"""


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_blocks_that_are_the_teachers_keep_their_bytes(kind: str) -> None:
    """Those in front of the only one that differs; what rounding tells apart is no gain."""
    text = ATTENTION.replace("float[", f"{kind}[")
    teacher = build(text)
    values = initializers(teacher)
    rng = np.random.default_rng(1)
    values["wo"] = (values["wo"] + 0.3 * rng.standard_normal((8, 8))).astype(values["wo"].dtype)
    student = build(text, values)
    samples = {"x": rng.standard_normal((40, 6, 8)).astype(values["wo"].dtype)}
    result = fit_to(teacher, student, samples, "auto", "kept")
    rows = {block.student: block for block in result.report.blocks}
    for name in "qkv":
        assert (rows[name].status, rows[name].reason) == (
            "kept",
            "it is the teacher's, to rounding",
        )
    assert rows["o"].status == "fitted"
    assert ops(result.model) == ops(student)  # no bias is worth a node
    assert result.report.added_nodes == ()


@pytest.mark.parametrize(("offset", "added"), [(0.0, ()), (0.5, ("f",))])
def test_an_add_is_put_where_a_shift_is_worth_it(offset: float, added: tuple[str, ...]) -> None:
    head = "g (float[N,7,6] x) => (float[N,7,4] z) <float[6,4] w, float[4] b>"
    biased = build(f"{head} {{ [f] h = MatMul (x, w) z = Add (h, b) }}", {"b": np.full(4, offset)})
    values = initializers(biased)
    rng = np.random.default_rng(0)
    values["w"] = values["w"] + 0.2 * rng.standard_normal((6, 4))
    student = build(f"{head.replace(', float[4] b', '')} {{ [f] z = MatMul (x, w) }}", values)
    samples = {"x": rng.standard_normal((60, 7, 6)).astype(np.float32)}
    result = fit_to(biased, student, samples, "auto", "kept")
    assert result.report.added_nodes == added
    assert ops(result.model).get("Add", 0) == len(added)
    assert result.report.after.relative_mse < 1e-6


@pytest.mark.parametrize("name", ["chain", "residual", "flatten", "matmul", "concat"])
def test_rows_of_chosen_channels_tell_the_given_student_from_what_replaced_it(name: str) -> None:
    network = NETWORKS[name]
    teacher, student = network.teacher(), network.student()
    report = fit_to(teacher, student, network.samples(56), "auto", "select").report
    kept = fit_to(teacher, student, network.samples(56), "auto", "kept").report
    for block, other in zip(report.blocks, kept.blocks, strict=True):
        assert block.error_before is not None
        assert other.error_before is not None
        if block.channels != other.channels:  # the given weights are not those of these channels
            assert block.error_before > other.error_before


def test_what_was_folded_into_a_block_is_not_called_kept() -> None:
    text = """g (float[N,3,6,6] x) => (float[N,4,6,6] z) <float[8,3,1,1] w1, float[8] s, float[8] b,
      float[8] m, float[8] v, float[4,8,1,1] w2> {
        [c1] y = Conv (x, w1)
        n = BatchNormalization (y, s, b, m, v)
        r = Relu (n)
        [c2] z = Conv (r, w2)
    }"""
    teacher = build(text, {"v": np.full(8, 2.0)})
    values = initializers(teacher)
    values["w2"] = values["w2"] * 0.5
    result = fit(
        teacher,
        build(text, values),
        {"x": np.random.default_rng(0).standard_normal((30, 3, 6, 6)).astype(np.float32)},
        FitOptions(CPU, targets="kept"),
    )
    first, second = result.report.blocks
    assert (first.status, first.reason) == ("replaced", "it is the teacher's, to rounding")
    assert second.status == "fitted"
