"""Channels chosen anew, and students sliced to the choice."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.fitting.block_plan import plan_blocks
from fskd_onnx.fitting.input_grams import InputGrams
from fskd_onnx.fitting.target_selection import Selection, TargetSelection
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import Array
from fskd_onnx.matching.channels import match_models
from fskd_onnx.options import Preprocess
from fskd_onnx.passes import AffineMap, Canonicalize, ReplaceWeights
from fskd_onnx.runtime.decoded_samples import DecodedSamples
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import plan_batches
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.helpers import linears, run
from tests.networks import NETWORKS, Network


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
        new[name] = AffineMap(matrix.reshape(linear.shape), bias.reshape(linear.shape[:2]))
    return ReplaceWeights(new)(model).model


def select(
    teacher: onnx.ModelProto, student: onnx.ModelProto, samples: Mapping[str, Array]
) -> Selection | None:
    mine, theirs = (gs.import_onnx(Canonicalize()(m).model) for m in (student, teacher))
    loaded = load_samples(samples, input_specs(teacher), Preprocess(), None, 0)
    size = fixed_batch_size(input_specs(teacher)) or 10
    folds = np.array_split(np.arange(len(loaded), dtype=np.intp), 3)
    batches = plan_batches(folds, size, fixed_batch_size(input_specs(teacher)))
    runtime, matching = open_runtime(("cpu",)), match_models(theirs, mine)
    selection = TargetSelection(mine, theirs, matching)
    grams = InputGrams(selection.readers, batches)
    if not selection.readers:
        return None
    with TensorStore() as store:
        decoded = DecodedSamples(loaded, batches, store, runtime.device)
        plans = plan_blocks(matching, mine, theirs, True, 0)
        TeacherPass(runtime, theirs, plans, decoded, batches, grams).sum_grams()
    return selection.choose(grams.centered())


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
