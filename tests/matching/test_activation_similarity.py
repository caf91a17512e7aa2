"""Linear CKA, and how alike block outputs of two networks are by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fskd_onnx.linalg.moments import Moments
from fskd_onnx.matching.activation_similarity import ActivationSimilarity, linear_cka
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import Runtime, open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.helpers import Array, build, initializers
from tests.students import renamed, with_noise

Floats = NDArray[np.float64]

COUNT = 20


def cka(x: Floats, y: Floats) -> float:
    """Give the CKA of (channels, columns) activations by moments."""
    columns, targets = x[np.newaxis], y[np.newaxis]
    return linear_cka(Moments.of(columns, targets), Moments.of(targets, targets))


def cka_by_kernels(x: Floats, y: Floats) -> float:
    """Compare the (columns, columns) kernels, as Kornblith et al. define it (their equation 4)."""
    n = x.shape[1]
    centring = np.eye(n) - 1 / n
    kernels = [centring @ part.T @ part @ centring for part in (x, y)]
    one, other = kernels
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))


def activations(seed: int, channels: int, columns: int = 30) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((channels, columns)) + rng.standard_normal((channels, 1))


@given(st.integers(0, 999), st.integers(1, 8), st.integers(1, 8))
def test_moments_give_what_kernels_give(seed: int, n: int, m: int) -> None:
    x, y = activations(seed, n), activations(seed + 1000, m)
    y[0] += x[0]
    assert cka(x, y) == pytest.approx(cka_by_kernels(x, y), rel=1e-8)


@given(st.integers(0, 999), st.integers(1, 8), st.integers(1, 8))
def test_it_lies_between_0_and_1_and_is_symmetric(seed: int, n: int, m: int) -> None:
    x, y = activations(seed, n), activations(seed + 1000, m)
    assert 0 <= cka(x, y) <= 1 + 1e-12
    assert cka(x, y) == pytest.approx(cka(y, x), rel=1e-8)


@given(st.integers(0, 999), st.integers(1, 8), st.floats(1e-3, 1e3), st.floats(-9, 9))
def test_rotations_permutations_scales_and_shifts_change_nothing(
    seed: int, n: int, scale: float, shift: float
) -> None:
    x, y = activations(seed, n), activations(seed + 1000, 5)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((n, n)))[0]
    expected = pytest.approx(cka(x, y), rel=1e-6)
    for moved in (rotation @ x, rng.permutation(x), scale * x, x + shift):
        assert cka(moved, y) == expected
    assert cka(x, rotation @ x) == pytest.approx(1)


def test_it_is_1_for_copies_and_low_for_what_is_independent() -> None:
    x, y = activations(0, 6, columns=2000), activations(1, 6, columns=2000)
    assert cka(x, np.concatenate([x, x])) == pytest.approx(1)
    assert cka(x, y) < 0.05
    assert 0.3 < cka(x, x + y) < 0.9


def test_a_constant_has_nothing_in_common_with_anything() -> None:
    x = activations(0, 3)
    zeros = np.zeros_like(x)
    assert cka(x, zeros) == cka(zeros, x) == cka(zeros, zeros) == 0


# x ─▶ c1 ─▶ Relu ─┬─▶ ca ─▶ + ─▶ Relu ─▶ c3 ─▶ GlobalAveragePool ─▶ Flatten ─▶ fc
#                  └─▶ cb ─▶ ┘
NETWORK = """g (float[{batch},3,6,6] x) => (float[{batch},5] z)
  <float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] wa, float[8] ba, float[8,8,3,3] wb, float[8] bb,
   float[6,8,3,3] w3, float[6,5] wf> {{
    [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [ca] ya = Conv <pads = [1,1,1,1]> (r1, wa, ba)
    [cb] yb = Conv <pads = [1,1,1,1]> (r1, wb, bb)
    s = Add (ya, yb)
    r2 = Relu (s)
    [c3] y3 = Conv (r2, w3)
    p = GlobalAveragePool (y3)
    f = Flatten (p)
    [fc] z = Gemm (f, wf)
}}"""


def network(batch: str = "N", seed: int = 0) -> onnx.ModelProto:
    return build(NETWORK.format(batch=batch), seed=seed)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return open_runtime(["cpu"])


def similarity(
    runtime: Runtime,
    teacher: onnx.ModelProto,
    student: onnx.ModelProto,
    arrays: dict[str, Array] | None = None,
    count: int = COUNT,
) -> ActivationSimilarity:
    rng = np.random.default_rng(1)
    arrays = arrays or {"x": rng.standard_normal((count, 3, 6, 6)).astype(np.float32)}
    specs = input_specs(teacher)
    samples = load_samples(arrays, specs)
    folds = np.array_split(rng.permutation(len(samples)), 3)
    batches = plan_batches(folds, 4, fixed_batch_size([*specs, *input_specs(student)]))
    graphs = gs.import_onnx(teacher), gs.import_onnx(student)
    decoded = DecodedSamples(samples, batches, TensorStore(), runtime.device)
    return ActivationSimilarity(runtime, *graphs, decoded, batches)


BLOCKS = ("y1", "ya", "yb", "y3", "z")


def test_equal_blocks_are_wholly_alike_and_others_less(runtime: Runtime) -> None:
    found = similarity(runtime, network(), network())(dict.fromkeys(BLOCKS, BLOCKS))
    assert found.keys() == {(one, other) for one in BLOCKS for other in BLOCKS}
    for name in BLOCKS:
        assert found[name, name] == pytest.approx(1, abs=1e-6)
    assert all(0 <= alike < 0.95 for (one, other), alike in found.items() if one != other)
    assert found["ya", "yb"] == pytest.approx(found["yb", "ya"])


def test_only_what_was_asked_is_answered(runtime: Runtime) -> None:
    asked: dict[str, Sequence[str]] = {"ya": ["yb", "ya"], "y3": ["y3"]}
    found = similarity(runtime, network(), network())(asked)
    assert set(found) == {("ya", "yb"), ("ya", "ya"), ("y3", "y3")}


def test_blocks_of_other_positions_are_not_alike(runtime: Runtime) -> None:
    found = similarity(runtime, network(), network())({"y1": ["y3", "z", "ya"]})
    assert found["y1", "y3"] == found["y1", "z"] == 0
    assert found["y1", "ya"] > 0


def test_a_block_of_noisy_or_fewer_channels_is_most_like_its_own(runtime: Runtime) -> None:
    weights = initializers(network())
    keep = [1, 4, 6, 7]
    narrow = NETWORK.replace("float[8,8,3,3] wa, float[8] ba", "float[4,8,3,3] wa, float[4] ba")
    narrow = narrow.replace("float[8,8,3,3] wb, float[8] bb", "float[4,8,3,3] wb, float[4] bb")
    narrow = narrow.replace("float[6,8,3,3] w3", "float[6,4,3,3] w3").format(batch="N")
    sliced = {name: weights[name][keep] for name in ("wa", "ba", "wb", "bb")}
    student = build(narrow, {**weights, **sliced, "w3": weights["w3"][:, keep]})
    found = similarity(runtime, network(), with_noise(student, 0.1))(
        {"ya": ["ya", "yb"], "yb": ["ya", "yb"]}
    )
    assert found["ya", "ya"] > found["ya", "yb"] + 0.2
    assert found["yb", "yb"] > found["yb", "ya"] + 0.2


def test_names_of_the_students_inputs_may_differ(runtime: Runtime) -> None:
    student = renamed(network(), seed=3)
    new = {name: now for now, name in student.old.items()}
    assert new["x"] != "x"
    found = similarity(runtime, network(), student.model)({new["ya"]: ["ya", "yb"]})
    expected = similarity(runtime, network(), network())({"ya": ["ya", "yb"]})
    for other in ("ya", "yb"):
        assert found[new["ya"], other] == pytest.approx(expected["ya", other], abs=1e-6)


@pytest.mark.parametrize("fixed", ["teacher", "student", "both"])
@pytest.mark.parametrize("count", [6, 20])
def test_batches_may_be_fixed(runtime: Runtime, fixed: str, count: int) -> None:
    teacher = network("4" if fixed != "student" else "N")
    student = network("4" if fixed != "teacher" else "N", seed=2)
    asked: dict[str, Sequence[str]] = {"ya": ["ya", "yb"], "z": ["z"]}
    found = similarity(runtime, teacher, student, count=count)(asked)
    free = similarity(runtime, network(), network(seed=2), count=count)(asked)
    # Padding does not count: the same samples give the same.
    assert found == pytest.approx(free, abs=1e-5)


def test_channels_on_the_last_axis(runtime: Runtime) -> None:
    text = """g (float[N,7,5] x) => (float[N,7,4] z) <float[5,6] w1, float[6] b1, float[6,4] w2> {
        [one] h = MatMul (x, w1)
        y = Add (h, b1)
        r = Relu (y)
        [two] z = MatMul (r, w2)
    }"""
    arrays = {"x": np.random.default_rng(0).standard_normal((COUNT, 7, 5)).astype(np.float32)}
    found = similarity(runtime, build(text), build(text), arrays)({"y": ["y", "z"], "z": ["z"]})
    assert found["y", "y"] == pytest.approx(1, abs=1e-6)
    assert found["z", "z"] == pytest.approx(1, abs=1e-6)
    assert found["y", "z"] < 0.95


def test_the_same_call_gives_the_same(runtime: Runtime) -> None:
    compared = similarity(runtime, network(), network(seed=2))
    asked: dict[str, Sequence[str]] = {"ya": ["ya", "yb"]}
    assert compared(asked) == compared(asked)
    assert similarity(runtime, network(), network(seed=2))(asked) == compared(asked)
