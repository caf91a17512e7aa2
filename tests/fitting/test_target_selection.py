"""Channels chosen anew: the greedy choice, and students sliced to it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fskd_onnx.fitting.target_selection import Selection, choose_channels, select_targets
from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import Channels, match_models
from fskd_onnx.options import Preprocess
from fskd_onnx.passes import Canonicalize, ReplaceWeights, Weights
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.helpers import linears, run
from tests.networks import NETWORKS, Network


def gram(columns: Array) -> Array:
    """The centred Gram matrix of (channels, columns)."""
    centred = columns - columns.mean(1, keepdims=True)
    return np.asarray(centred @ centred.T)


def lost(evidence: list[tuple[Array, Array]], chosen: Sequence[int] | Channels) -> float:
    """What the readers no longer see if all channels are reconstructed from the chosen ones."""
    error = 0.0
    for r, h in evidence:
        kept = np.array(chosen)
        rest = r - r[:, kept] @ np.linalg.pinv(r[np.ix_(kept, kept)]) @ r[kept]
        error += float(np.sum(h * rest)) / float(np.sum(h * r))
    return error


def random_evidence(seed: int, channels: int, readers: int = 1) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    evidence = []
    for _ in range(readers):
        mix = rng.standard_normal((channels, channels)) * rng.uniform(0.1, 2, channels)
        m = rng.standard_normal((channels, 5))
        evidence.append((gram(mix @ rng.standard_normal((channels, 50))), m @ m.T))
    return evidence


def test_copies_are_chosen_once() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40))
    r = gram(x[[0, 1, 0, 2, 1, 0]])
    chosen = choose_channels([(r, np.eye(6))], 3)
    assert {[0, 1, 0, 2, 1, 0][j] for j in chosen} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_of_linear_combinations_a_basis_is_chosen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 40))
    r = gram(np.vstack([x, 1e-3 * x.sum(0), x[0] - x[1], 50 * rng.standard_normal((1, 3)) @ x]))
    evidence = [(r, np.eye(6))]
    assert lost(evidence, choose_channels(evidence, 3)) < 1e-9
    assert lost(evidence, choose_channels(evidence, 2)) > 1e-6


def test_constant_channels_come_last() -> None:
    x = np.random.default_rng(2).standard_normal((5, 40))
    x[[0, 3]] = 7.0
    r = gram(x)
    np.testing.assert_array_equal(choose_channels([(r, np.eye(5))], 3), [1, 2, 4])
    np.testing.assert_array_equal(choose_channels([(r, np.eye(5))], 4), [0, 1, 2, 4])


def test_nothing_but_constant_channels_keeps_their_order() -> None:
    np.testing.assert_array_equal(choose_channels([(np.zeros((5, 5)), np.eye(5))], 3), [0, 1, 2])
    np.testing.assert_array_equal(choose_channels([(np.eye(5), np.zeros((5, 5)))], 2), [0, 1])


def test_what_readers_see_decides() -> None:
    # Independent channels; the loudest is read by nobody, the quietest by large weights.
    r = np.diag([100.0, 1.0, 0.01, 4.0])
    h = np.diag([0.0, 1.0, 1e4, 1.0])
    np.testing.assert_array_equal(choose_channels([(r, h)], 2), [2, 3])
    np.testing.assert_array_equal(choose_channels([(r, np.eye(4))], 2), [0, 3])


def test_each_reader_counts_alike_whatever_its_scale() -> None:
    one = (np.diag([3.0, 2.0, 1.0]), np.eye(3))
    other = (np.diag([1.0, 2.0, 30.0]) * 1e-6, np.eye(3) * 1e-4)
    np.testing.assert_array_equal(choose_channels([one, other], 1), [2])
    np.testing.assert_array_equal(choose_channels([one, other, one, one], 1), [0])


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_properties(seed: int, channels: int, readers: int, data: st.DataObject) -> None:
    """Distinct and ascending; nested; the same under a permutation and under scales."""
    evidence = random_evidence(seed, channels, readers)
    before = [(r.copy(), h.copy()) for r, h in evidence]
    width = data.draw(st.integers(1, channels))
    chosen = choose_channels(evidence, width)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == width
    assert set(choose_channels(evidence, width - 1)) <= set(chosen)
    for (r, h), (r0, h0) in zip(evidence, before, strict=True):
        np.testing.assert_array_equal(r, r0)
        np.testing.assert_array_equal(h, h0)

    order = np.array(data.draw(st.permutations(range(channels))))
    turned = [(r[np.ix_(order, order)], h[np.ix_(order, order)]) for r, h in evidence]
    assert {int(order[j]) for j in choose_channels(turned, width)} == set(chosen)
    scaled = [(1e4 * r, 1e-4 * h) for r, h in evidence]
    np.testing.assert_array_equal(choose_channels(scaled, width), chosen)
    np.testing.assert_array_equal(choose_channels(evidence, channels), np.arange(channels))


def test_greedy_is_mostly_the_best_and_always_better_than_chance() -> None:
    best, better = 0, []
    for seed in range(40):
        evidence = random_evidence(seed, 7, 1 + seed % 2)
        errors = np.array([lost(evidence, kept) for kept in itertools.combinations(range(7), 3)])
        mine = lost(evidence, choose_channels(evidence, 3))
        assert mine < min(errors.mean(), float(np.median(errors)))
        best += int(mine <= errors.min() * (1 + 1e-9))
        better.append(np.mean(errors < mine * (1 - 1e-9)))
    assert best > 20
    assert np.mean(better) < 0.05


def silence(network: Network, model: onnx.ModelProto) -> onnx.ModelProto:
    """Make the channels that the student lacks constant zeros; who reads them, still does."""
    new = {}
    for name, linear in linears(model).items():
        axes = network.axes.get(linear.weight.name, "-").split()
        space = axes[0 if linear.weight.shape[0] == linear.width else 1] if axes[1:] else axes[0]
        matrix, bias = linear.matrix.reshape(linear.width, -1).copy(), linear.bias.copy()
        if space in network.kept:
            dead = np.setdiff1d(np.arange(linear.width), network.kept[space][1])
            matrix[dead], bias[dead] = 0.0, 0.0
        new[name] = Weights(matrix.reshape(linear.matrix.shape), bias)
    return ReplaceWeights(new)(model).model


def select(
    teacher: onnx.ModelProto, student: onnx.ModelProto, samples: Mapping[str, Array]
) -> Selection | None:
    graphs = [gs.import_onnx(Canonicalize()(model).model) for model in (student, teacher)]
    loaded = load_samples(samples, input_specs(teacher), Preprocess(), None, 0)
    size = fixed_batch_size(input_specs(teacher)) or 10
    folds = np.array_split(np.arange(len(loaded), dtype=np.intp), 3)
    return select_targets(
        graphs[0],
        graphs[1],
        match_models(graphs[1], graphs[0]),
        open_runtime(("cpu",)),
        loaded,
        plan_batches(folds, size, fixed_batch_size(input_specs(teacher))),
    )


def exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all block outputs as its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    names = [linear.output.name for linear in linears(model).values()]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


SPACES = {  # blocks of each space that is free
    "chain": {"a": ["c1"], "b": ["c2"]},
    "residual": {"a": ["c1", "c3"], "b": ["c2"]},
    "depthwise": {"a": ["c1", "dw"]},
    "concat": {"a": ["c1"], "b": ["c2"]},
    "flatten": {"a": ["c1"], "b": ["f1"]},
    "matmul": {"a": ["m1"], "b": ["m2"]},
    "two inputs, two outputs": {"a": ["c1", "c2"]},
    "fixed batch": {"a": ["c1"]},
    "dynamic size": {"a": ["c1"]},
    "transposed": {"a": ["c1"], "b": ["t2"]},
    "rank 1": {"a": ["c1"]},
    "rank 3": {"a": ["c1"]},
}


@pytest.mark.parametrize("name", SPACES)
def test_students_are_sliced_to_the_channels_that_live(name: str) -> None:
    """One choice per space, and at every block the student is its teacher, cut to that choice.

    The teacher has as many living channels as the student has room for. Nothing is known of the
    student but its shape.
    """
    network = NETWORKS[name]
    teacher = silence(network, network.teacher())
    student = network.student(seed=1)
    samples = network.samples(30)
    selection = select(teacher, student, samples)
    assert selection is not None
    pairs = {pair.student: pair for pair in selection.matching.pairs}
    for space, blocks in SPACES[name].items():
        for block in blocks:
            assert pairs[block].channels == tuple(network.kept[space][1])
            assert pairs[block].evidence == "selected"
            assert pairs[block].confidence == 1.0
    assert set(selection.weights) == set(pairs)

    cut = ReplaceWeights(selection.weights)(student).model
    feeds = {key: value[:4] for key, value in samples.items()}
    mine, theirs = (run(exposed(model), feeds) for model in (cut, teacher))
    for key, linear in linears(teacher).items():
        axis = -1 if linear.op == "MatMul" else 1
        expected = np.take(theirs[linear.output.name], np.array(pairs[key].channels), axis)
        value = mine[linear.output.name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_spaces_that_are_bound_keep_their_channels() -> None:
    # Of two groups, neither the channels that they read nor those that they give are free.
    network = NETWORKS["grouped"]
    assert select(network.teacher(), network.student(), network.samples(20)) is None


def test_a_student_of_the_teachers_shape_has_nothing_to_choose() -> None:
    network = NETWORKS["chain"]
    assert select(network.teacher(), network.teacher(seed=1), network.samples(20)) is None


def test_channels_that_nobody_reads_are_left_alone() -> None:
    # x ─▶ Conv ─▶ z, and x ─▶ Conv ─▶ y ─▶ Relu ─▶ nobody
    network = Network(
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[$a,3,1,1] w, float[4,3,1,1] k> {
            [c1] y = Conv (x, w)
            r = Relu (y)
            [c2] z = Conv (x, k)
        }""",
        {"a": (6, [0, 2, 3])},
        {"w": "a"},
    )
    assert select(network.teacher(), network.student(), network.samples(20)) is None


def test_what_is_read_twice_is_chosen_once() -> None:
    # x ─▶ Conv ─▶ Relu ─▶ r ─▶ Concat (r, r) ─▶ Conv ─▶ z
    network = Network(
        """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[$a,3,1,1] w, float[4,$b,1,1] k> {
            [c1] y = Conv (x, w)
            r = Relu (y)
            j = Concat <axis = 1> (r, r)
            [c2] z = Conv (j, k)
        }""",
        {"a": (6, [0, 2, 3]), "b": (12, [0, 2, 3, 6, 8, 9])},
        {"w": "a", "k": "- b"},
    )
    teacher = silence(network, network.teacher())
    selection = select(teacher, network.student(seed=1), network.samples(20))
    assert selection is not None
    assert selection.matching.pairs[0].channels == (0, 2, 3)
    weights = linears(teacher)["c2"].matrix[:, :, network.kept["b"][1]]
    np.testing.assert_array_equal(selection.weights["c2"].matrix, weights)


def test_the_same_call_chooses_the_same() -> None:
    network = NETWORKS["concat"]
    args = network.teacher(), network.student(), network.samples(20)
    one, other = select(*args), select(*args)
    assert one is not None
    assert other is not None
    assert one.matching == other.matching
