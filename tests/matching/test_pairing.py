"""Blocks are paired whatever their names, or left alone with the reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxsim
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.pairing import Partner, Similarity, pair_blocks
from fskd_onnx.passes import Canonicalize
from fskd_onnx.results import BlockPair, Evidence
from models.networks import Network, densenet22, mobilenetv2, resnet20, vgg16
from models.prune import prune, recipes
from tests.helpers import DEMO, Array, build, initializers, linears, zoo_model
from tests.students import (
    DECOMPOSITIONS,
    decomposed,
    is_spatial,
    renamed,
    with_fresh_weights,
    with_noise,
)

REFERENCES: dict[str, Callable[[], Network]] = {
    "vgg16": lambda: vgg16((16,) * 13),
    "resnet20": lambda: resnet20((8, 16, 24)),
    "densenet22": lambda: densenet22((8,) * 18, (24, 32)),
    "mobilenetv2": lambda: mobilenetv2((16,) * 7),
}
PRUNED = [
    ("vgg16", "D"),
    ("resnet20", "inner50"),
    ("resnet20", "stream50"),
    ("densenet22", "growth50"),
    ("mobilenetv2", "expansion50"),
]
DEMO_PAIRS = [("teacher", "student"), ("vgg16_small", "vgg16_small_D")]
KINDS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "as pruned": lambda model: model,
    "noise": lambda model: with_noise(model, 0.3),
    "fresh": with_fresh_weights,
}


def exported(network: nn.Module, shape: Sequence[int], dynamo: bool = False) -> onnx.ModelProto:
    """Convert a network of PyTorch, with the exporter's own settings."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn of functions of their own
        path = Path(folder) / "model.onnx"
        example = (torch.zeros(*shape),)
        torch.onnx.export(
            network.eval(), example, path, dynamo=dynamo, external_data=False, verbose=False
        )
        return onnx.load(path)


@cache
def reference(name: str) -> Network:
    torch.manual_seed(0)
    network = REFERENCES[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@cache
def pruned(name: str, recipe: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Give a random-weight network and its student."""
    network = reference(name)
    assert recipe in recipes(network)
    shape = (1, 1, 28, 28)
    return exported(network, shape), exported(prune(network, recipe), shape)


def canonical(model: onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(Canonicalize()(model).model)


def outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Give the block output of each linear node."""
    return {name: view.output.name for name, view in linears(Canonicalize()(model).model).items()}


def partners(
    teacher: onnx.ModelProto,
    student: onnx.ModelProto,
    given: Mapping[str, Partner] | None = None,
    similarity: Similarity | None = None,
) -> dict[str, Partner]:
    found = pair_blocks(canonical(teacher), canonical(student), given, similarity)
    return {partner.student: partner for partner in found}


def nameless(
    teacher: onnx.ModelProto, student: onnx.ModelProto, seed: int = 0
) -> dict[str, Partner]:
    """Pair a renamed and shuffled student; give its partners by the names that it had."""
    other = renamed(student, seed)
    return {other.old[name]: p for name, p in partners(teacher, other.model).items()}


def teachers(found: Mapping[str, Partner]) -> dict[str, str | None]:
    return {name: partner.teacher for name, partner in found.items()}


def test_the_order_is_that_of_the_students_nodes() -> None:
    teacher, student = pruned("resnet20", "inner50")
    graph = canonical(student)
    found = pair_blocks(canonical(teacher), graph)
    names = [partner.student for partner in found]
    assert names == [node.name for node in graph.nodes if node.name in names]
    assert len(names) == 22


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "recipe"), PRUNED)
def test_pruned_networks_without_names(name: str, recipe: str, kind: str) -> None:
    teacher, student = pruned(name, recipe)
    found = nameless(teacher, KINDS[kind](student))
    assert teachers(found) == outputs(teacher)
    assert {partner.reason for partner in found.values()} == {""}
    assert min(partner.confidence for partner in found.values()) > 0.6
    evidence = {partner.evidence for partner in found.values()}
    assert evidence <= {"weights", "structure"}
    if kind == "as pruned":
        assert evidence == {"weights"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("one", "other"), DEMO_PAIRS)
def test_trained_networks_without_names(one: str, other: str, kind: str) -> None:
    teacher, student = (onnx.load(DEMO / f"{name}.onnx") for name in (one, other))
    assert teachers(nameless(teacher, KINDS[kind](student))) == outputs(teacher)


@pytest.mark.parametrize(("name", "recipe"), PRUNED)
def test_no_name_and_no_order_in_the_file_changes_blocks_or_channels(
    name: str, recipe: str
) -> None:
    teacher, student = pruned(name, recipe)

    def matched(model: onnx.ModelProto, old: Mapping[str, str]) -> dict[str, BlockPair]:
        pairs = match_models(canonical(teacher), canonical(model)).pairs
        return {old.get(pair.student, pair.student): pair for pair in pairs}

    named = matched(student, {})
    assert all(pair.channels is not None for pair in named.values())
    for seed in (1, 2):
        other = renamed(student, seed)
        again = matched(other.model, other.old)
        for block, pair in named.items():
            assert (again[block].teacher, again[block].channels) == (pair.teacher, pair.channels)


def quantized(model: onnx.ModelProto, levels: int) -> onnx.ModelProto:
    """Round weights to a grid of so many levels on either side of zero, its step a power of 2."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1:
            step = 2.0 ** np.floor(np.log2(4 * values.std() / levels))
            rounded = np.round(values / step).clip(-levels, levels) * step
            tensor.CopyFrom(numpy_helper.from_array(rounded.astype(np.float32), tensor.name))
    return result


@pytest.mark.parametrize("levels", [1, 7, 127])
@pytest.mark.parametrize(("name", "recipe"), [("vgg16", "D"), ("resnet20", "inner50")])
def test_few_values_are_no_evidence(name: str, recipe: str, levels: int) -> None:
    # Weights drawn anew on both sides, so that no slice is more than chance.
    teacher, student = pruned(name, recipe)
    teacher = quantized(with_fresh_weights(teacher, seed=5), levels)
    found = nameless(teacher, quantized(with_fresh_weights(student, seed=6), levels))
    expected = outputs(teacher)
    assert {block: p.teacher for block, p in found.items() if p.teacher != expected[block]} == {}


@pytest.mark.parametrize("name", ["squeezenet", "bvlc_alexnet", "inception_v1", "shufflenet"])
def test_noisy_model_zoo_networks_without_names(name: str) -> None:
    teacher = zoo_model(name)
    assert teachers(nameless(teacher, with_noise(teacher, 0.3))) == outputs(teacher)


def cut(
    kind: str, every: int, activated: bool
) -> tuple[onnx.ModelProto, onnx.ModelProto, dict[str, str]]:
    """Give the demo's ResNet-20, the same with convolutions cut up, and who is whose partner."""
    teacher = Canonicalize()(onnx.load(DEMO / "teacher.onnx")).model
    chosen = [name for name, view in linears(teacher).items() if is_spatial(view)][::every]
    assert chosen
    split = DECOMPOSITIONS[kind]
    student, ends = decomposed(teacher, split, lambda view: view.name in chosen, activated)
    return teacher, student, ends


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_the_last_node_of_a_decomposed_block_is_its_end(kind: str, every: int) -> None:
    teacher, student, ends = cut(kind, every, activated=False)
    other = renamed(student, seed=1)
    new = {name: now for now, name in other.old.items()}
    found = {other.old[name]: p for name, p in partners(teacher, other.model).items()}
    assert {name: found[name].teacher for name in ends} == ends
    inner = found.keys() - ends.keys()
    assert inner
    last = {name.partition(".part")[0]: name for name in ends if ".part" in name}
    for name in inner:
        end = new[last[name.partition(".part")[0]]]
        reason = f"it is an inner node of the block that ends at '{end}'"
        assert (found[name].teacher, found[name].reason) == (None, reason)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", DECOMPOSITIONS)
def test_an_activation_inside_a_decomposed_block_misleads_nobody(kind: str, every: int) -> None:
    # Of a depthwise and a pointwise convolution of equal width, each with its Relu, either may be
    # the end of the block: then it is left alone.
    teacher, student, ends = cut(kind, every, activated=True)
    found = nameless(teacher, student, seed=1)
    for name, partner in found.items():
        assert partner.teacher in (None, ends.get(name))
        assert (partner.teacher is None) == bool(partner.reason)
    assert sum(partner.teacher is not None for partner in found.values()) >= 0.5 * len(ends)


def test_two_ends_that_one_block_may_have_are_named() -> None:
    # x ─▶ Conv 3x3 ─▶ Relu ─▶ z against x ─▶ depthwise ─▶ Relu ─▶ Conv 1x1 ─▶ Relu ─▶ z
    teacher = build("""g (float[N,6,5,5] x) => (float[N,6,5,5] z) <float[6,6,3,3] w, float[6] b> {
        [whole] y = Conv <pads = [1,1,1,1]> (x, w, b)
        z = Relu (y)
    }""")
    split = DECOMPOSITIONS["depthwise, pointwise"]
    student, ends = decomposed(teacher, split, is_spatial, activated=True)
    assert ends == {"whole.part1": "y"}
    other = renamed(student, seed=0)
    new = {name: now for now, name in other.old.items()}
    first, last = new["whole.part0"], new["whole.part1"]
    found = partners(teacher, other.model)
    reason = "the teacher's 'whole' fits it as well as others of the student ('{}')"
    assert found[first].reason == reason.format(last)
    assert found[last].reason == reason.format(first)
    # The name of its output says which of them is the end.
    assert partners(teacher, student)["whole.part1"].evidence == "names"


# x ─▶ c0 ─▶ Relu ─┬─────────────────────▶ + ─▶ Relu ─▶ ... ─▶ GlobalAveragePool ─▶ Flatten ─▶ fc
#                  └─▶ Conv ─▶ Relu ─▶ Conv ┘
def residual_chain(blocks: int, seed: int = 0) -> onnx.ModelProto:
    weights, nodes = [], []
    for k in range(blocks):
        weights.append(
            f"float[8,8,3,3] wa{k}, float[8] ba{k}, float[8,8,3,3] wb{k}, float[8] bb{k}"
        )
        nodes.append(f"""
            [a{k}] p{k} = Conv <pads = [1,1,1,1]> (r{k}, wa{k}, ba{k})
            q{k} = Relu (p{k})
            [b{k}] s{k} = Conv <pads = [1,1,1,1]> (q{k}, wb{k}, bb{k})
            t{k} = Add (s{k}, r{k})
            r{k + 1} = Relu (t{k})""")
    text = f"""g (float[N,3,8,8] x) => (float[N,5] z)
      <float[8,3,3,3] w0, float[8] b0, {", ".join(weights)}, float[8,5] wf, float[5] bf> {{
        [c0] y0 = Conv <pads = [1,1,1,1]> (x, w0, b0)
        r0 = Relu (y0)
        {"".join(nodes)}
        m = GlobalAveragePool (r{blocks})
        f = Flatten (m)
        [fc] z = Gemm (f, wf, bf)
    }}"""
    return build(text, seed=seed)


@pytest.mark.parametrize("strength", [0.0, 0.3])
@pytest.mark.parametrize("dropped", range(4))
def test_a_residual_block_that_was_dropped_moves_no_other(dropped: int, strength: float) -> None:
    teacher = residual_chain(4)
    student = residual_chain(3)
    left = [k for k in range(4) if k != dropped]
    weights = initializers(teacher)
    own = {f"{part}{k}": f"{part}{old}" for k, old in enumerate(left) for part in PARTS}
    for tensor in student.graph.initializer:
        values = weights[own.get(tensor.name, tensor.name)]
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    expected = {"c0": "y0", "fc": "z"}
    for k, old in enumerate(left):
        expected |= {f"a{k}": f"p{old}", f"b{k}": f"s{old}"}
    student = with_noise(student, strength)
    assert teachers(nameless(teacher, student)) == expected
    # Names are those of other blocks now, and say nothing where weights do.
    assert teachers(partners(teacher, student)) == expected


PARTS = ("wa", "ba", "wb", "bb")


@pytest.mark.parametrize("folded", ["teacher", "student"])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_batch_normalization_that_only_one_side_has_folded(folded: str, strength: float) -> None:
    teacher, student = (onnx.load(DEMO / f"{name}.onnx") for name in ("teacher", "student"))
    student = with_noise(student, strength)
    if folded == "teacher":
        teacher = Canonicalize()(teacher).model
    else:
        student = Canonicalize()(student).model
    assert teachers(nameless(teacher, student)) == outputs(teacher)


def test_an_affine_map_behind_a_normalization_folds_away() -> None:
    # x ─▶ Conv ─▶ BN ─▶ Mul ─▶ Add ─▶ Relu ─▶ Conv ─▶ z
    teacher = build("""g (float[N,3,6,6] x) => (float[N,4,6,6] z)
      <float[8,3,3,3] w, float[8] s, float[8] t, float[8] m, float[8] v, float[1,8,1,1] c,
       float[1,8,1,1] d, float[4,8,1,1] k> {
        [conv] y = Conv <pads = [1,1,1,1]> (x, w)
        n = BatchNormalization (y, s, t, m, v)
        p = Mul (n, c)
        a = Add (p, d)
        r = Relu (a)
        [last] z = Conv (r, k)
    }""")
    folded = Canonicalize()(teacher).model
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu", "Conv"]
    for one, other in ((teacher, folded), (folded, teacher)):
        found = nameless(one, other)
        assert teachers(found) == outputs(one)
        assert {partner.evidence for partner in found.values()} == {"weights"}


# x ─▶ c1 ─▶ Relu ─┬─▶ left ──▶ + ─▶ c3 ─▶ z     the two are alike in all but their weights
#                  └─▶ right ─▶ ┘
TWINS = """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[6,3,3,3] w1, float[6] b1,
  float[8,6,3,3] wl, float[8] bl, float[8,6,3,3] wr, float[8] br, float[4,8,1,1] w3> {
    [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [left] yl = Conv <pads = [1,1,1,1]> (r1, wl, bl)
    [right] yr = Conv <pads = [1,1,1,1]> (r1, wr, br)
    s = Add (yl, yr)
    [c3] z = Conv (s, w3)
}"""
# x ─▶ c1 ─▶ Relu ─▶ only ─▶ c3 ─▶ z
ONLY = """g (float[N,3,5,5] x) => (float[N,4,5,5] z) <float[6,3,3,3] w1, float[6] b1,
  float[8,6,3,3] wo, float[8] bo, float[4,8,1,1] w3> {
    [c1] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [only] yo = Conv <pads = [1,1,1,1]> (r1, wo, bo)
    [c3] z = Conv (yo, w3)
}"""


def test_two_places_as_good_as_each_other_are_both_named() -> None:
    found = partners(build(TWINS), build(ONLY, seed=3))
    assert found["only"] == Partner(
        "only",
        None,
        reason="2 places in the teacher fit it as well as each other ('left', 'right')",
    )
    assert {name: found[name].teacher for name in ("c1", "c3")} == {"c1": "y1", "c3": "z"}


@pytest.mark.parametrize("better", ["yl", "yr"])
def test_activations_settle_what_weights_and_structure_leave_open(better: str) -> None:
    asked: list[Mapping[str, Sequence[str]]] = []

    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        asked.append(tensors)
        pairs = [(mine, theirs) for mine, several in tensors.items() for theirs in several]
        return {pair: 0.8 if pair[1] == better else 0.3 for pair in pairs}

    found = partners(build(TWINS), build(ONLY, seed=3), similarity=similarity)
    assert [{mine: list(theirs) for mine, theirs in one.items()} for one in asked] == [
        {"yo": ["yl", "yr"]}
    ]
    assert (found["only"].teacher, found["only"].evidence) == (better, "activations")
    assert found["only"].confidence > 0.6


def test_activations_that_do_not_tell_either_settle_nothing() -> None:
    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        return {(mine, theirs): 0.8 for mine, several in tensors.items() for theirs in several}

    found = partners(build(TWINS), build(ONLY, seed=3), similarity=similarity)
    assert found["only"].teacher is None


def test_activations_that_are_like_none_of_several_settle_nothing() -> None:
    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        pairs = [(mine, theirs) for mine, several in tensors.items() for theirs in several]
        return {pair: 0.42 if pair[1] == "yl" else 0.28 for pair in pairs}

    found = partners(build(TWINS), build(ONLY, seed=3), similarity=similarity)
    assert found["only"].teacher is None


def test_activations_are_not_asked_where_nothing_is_open() -> None:
    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        raise AssertionError(tensors)

    found = partners(build(ONLY), build(ONLY, seed=3), similarity=similarity)
    assert teachers(found) == outputs(build(ONLY))


@pytest.mark.parametrize("kind", ["node", "output", "weight"])
def test_names_settle_what_nothing_else_does(kind: str) -> None:
    renamings = {"node": ("[only]", "[right]"), "output": ("yo", "yr"), "weight": ("wo", "wr")}
    student = build(ONLY.replace(*renamings[kind]), seed=3)
    name = "right" if kind == "node" else "only"
    found = partners(build(TWINS), student)[name]
    assert (found.teacher, found.evidence) == ("yr", "names")


def test_names_do_not_outweigh_activations() -> None:
    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        return {("yo", "yl"): 0.9, ("yo", "yr"): 0.2}

    student = build(ONLY.replace("[only]", "[right]"), seed=3)
    found = partners(build(TWINS), student, similarity=similarity)["right"]
    assert (found.teacher, found.evidence) == ("yl", "activations")


def test_weights_settle_which_of_two_places() -> None:
    teacher = build(TWINS)
    weights = initializers(teacher)
    student = build(ONLY, {"wo": weights["wr"], "bo": weights["br"]}, seed=3)
    found = partners(teacher, student)["only"]
    assert (found.teacher, found.evidence) == ("yr", "weights")


def test_two_branches_for_one_place_name_each_other() -> None:
    found = partners(build(ONLY), build(TWINS, seed=3))
    reason = "it is summed with '{}', and the teacher has no such sum"
    assert found["left"].reason == reason.format("right")
    assert found["right"].reason == reason.format("left")
    assert teachers(found) == {"c1": "y1", "left": None, "right": None, "c3": "z"}


def test_twins_get_a_place_each_whatever_their_names() -> None:
    teacher, student = build(TWINS), with_fresh_weights(build(TWINS), seed=3)
    found = [teachers(nameless(teacher, student, seed)) for seed in range(4)]
    assert found[0] == found[1] == found[2] == found[3]
    assert {found[0]["left"], found[0]["right"]} == {"yl", "yr"}
    evidence = nameless(teacher, student)["left"].evidence
    assert evidence == "structure"


def test_twins_with_the_teachers_weights_are_told_apart_by_them() -> None:
    teacher = build(TWINS)
    found = nameless(teacher, with_noise(teacher, 0.3))
    assert teachers(found) == outputs(teacher)
    assert {partner.evidence for partner in found.values()} == {"weights"}


def test_given_pairs_win_and_the_rest_follows() -> None:
    teacher = build(TWINS)
    given = {"left": Partner("left", "yr", Evidence.MAP, 1.0, channels=tuple(range(8)))}
    found = partners(teacher, teacher, given)
    assert found["left"] is given["left"]
    assert found["right"].teacher != "yr"
    assert {name: found[name].teacher for name in ("c1", "c3")} == {"c1": "y1", "c3": "z"}


def test_a_given_pair_settles_what_else_is_open() -> None:
    teacher, student = build(TWINS), with_fresh_weights(build(TWINS), seed=3)
    given = {"left": Partner("left", "yr", Evidence.MAP, 1.0)}
    assert partners(teacher, student, given)["right"].teacher == "yl"


def test_a_given_node_without_a_partner_is_left_alone() -> None:
    teacher = build(TWINS)
    given = {"c1": Partner("c1", None, Evidence.MAP, 1.0, "the map says so")}
    found = partners(teacher, teacher, given)
    assert found["c1"] is given["c1"]
    assert {p.teacher for name, p in found.items() if name != "c1"} == {"yl", "yr", "z"}


def test_all_pairs_may_be_given() -> None:
    teacher = build(TWINS)
    given = {
        name: Partner(name, output, Evidence.MAP, 1.0) for name, output in outputs(teacher).items()
    }
    assert partners(teacher, teacher, given) == given


def test_nodes_that_cannot_be_viewed_keep_their_reason_and_place() -> None:
    # x ─▶ Conv (computed weight) ─▶ a ─▶ Conv ─▶ z
    model = build("""g (float[N,4,4,4] x, float[4,4,1,1] w) => (float[N,4,4,4] z)
      <float[4,4,1,1] k> {
        v = Neg (w)
        [computed] a = Conv (x, v)
        [last] z = Conv (a, k)
    }""")
    found = partners(model, model)
    assert list(found) == ["computed", "last"]
    assert found["computed"].reason.startswith("its weight 'v' is computed by Neg")
    assert found["last"].teacher == "z"


def test_graphs_without_linear_nodes() -> None:
    bare = build("g (float[N,4] x) => (float[N,4] z) { z = Relu (x) }")
    assert partners(bare, bare) == {}
    assert partners(build(ONLY), bare) == {}
    found = partners(bare, build(ONLY))
    assert {p.reason for p in found.values()} == {"no place in the teacher fits it"}


@pytest.mark.parametrize(("one", "other"), DEMO_PAIRS)
def test_students_that_were_simplified(one: str, other: str, tmp_path: Path) -> None:
    teacher, student = (onnx.load(DEMO / f"{name}.onnx") for name in (one, other))
    simple, _ = onnxsim.simplify(student)
    student_ops = {node.op_type for node in student.graph.node}
    assert "BatchNormalization" in student_ops - {node.op_type for node in simple.graph.node}
    assert teachers(nameless(teacher, simple)) == outputs(teacher)


class Tiny(nn.Module):
    """A residual block behind a stem, with normalizations, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.outer = nn.Conv2d(12, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = (self.outer(self.inner(x).relu()) + self.shortcut(x)).relu()
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("dynamo", [True, False])
def test_each_exporters_files_pair_with_the_others(dynamo: bool) -> None:
    torch.manual_seed(0)
    network = Tiny()
    teacher, student = (exported(network, (1, 3, 8, 8), which) for which in (dynamo, not dynamo))
    own, other = linears(Canonicalize()(teacher).model), linears(Canonicalize()(student).model)
    found = partners(teacher, student)
    assert {partner.reason for partner in found.values()} == {""}
    assert len(found) == len(own) == 5
    block = {view.output.name: view for view in own.values()}
    for name, partner in found.items():
        assert partner.teacher is not None
        twin = block[partner.teacher]
        np.testing.assert_allclose(other[name].matrix, twin.matrix, rtol=1e-4, atol=1e-6)


def test_rows_folded_into_samples_are_the_same_positions() -> None:
    # x ─▶ Reshape ─▶ Gemm ─▶ Relu ─▶ Gemm ─▶ Reshape ─▶ z, as simplifiers make it of two MatMuls
    teacher = build("""g (float[N,6,8] x) => (float[N,6,5] z)
      <float[8,32] a, float[32] s, float[32,5] b, float[5] t> {
        [one] m = MatMul (x, a)
        y = Add (m, s)
        r = Relu (y)
        [two] k = MatMul (r, b)
        z = Add (k, t)
    }""")
    kept = np.arange(0, 32, 2)
    values = initializers(teacher)
    values |= {"a": values["a"][:, kept], "s": values["s"][kept], "b": values["b"][kept]}
    student = build(
        """g (float[N,6,8] x) => (float[N,6,5] z) <float[8,16] a, float[16] s, float[16,5] b,
          float[5] t, int64[2] d = {-1, 8}, int64[3] e = {-1, 6, 5}> {
            f = Reshape (x, d)
            [one] y = Gemm (f, a, s)
            r = Relu (y)
            [two] k = Gemm (r, b, t)
            z = Reshape (k, e)
        }""",
        values,
    )
    found = nameless(teacher, student)
    assert teachers(found) == {"one": "y", "two": "z"}
    assert {partner.evidence for partner in found.values()} == {"weights"}
    back = nameless(student, teacher)
    assert back["two"].teacher == "k"


@pytest.mark.parametrize(
    "readers", ["[u] c = MatMul (y, u)", "[u] b = MatMul (y, u) c = Mul (b, y)"]
)
def test_a_shortcut_around_moved_rows_is_the_same_sum(readers: str) -> None:
    def network(summed: str) -> onnx.ModelProto:
        return build(f"""g (float[N,4,6] x) => (float[N,4,5] z)
          <float[6,6] w, float[6,6] u, float[6,5] d, int64[2] flat = {{-1,6}},
           int64[3] back = {{-1,4,6}}> {{
            r = Sigmoid (x)
            {summed}
            {readers}
            e = Relu (c)
            [d] z = MatMul (e, d)
        }}""")

    plain = network("[p] s = MatMul (r, w) y = Add (s, r)")
    moved = network(
        "rows = Reshape (r, flat) [p] s = MatMul (rows, w) t = Reshape (s, back) y = Add (t, r)"
    )
    for teacher, student in ((plain, moved), (moved, plain)):
        found = nameless(teacher, with_fresh_weights(student))
        assert teachers(found) == outputs(teacher)


def test_operands_of_a_product_are_told_apart_by_their_order() -> None:
    """Queries and keys that were decomposed, behind inputs that were pruned."""
    whole = build(
        """g (float[N,4,8] x) => (float[N,4,4] y)
        <float[8,9] a, float[9,5] wq, float[9,5] wk> {
            h = MatMul (x, a)
            r = Relu (h)
            q = MatMul (r, wq)
            k = MatMul (r, wk)
            t = Transpose <perm = [0,2,1]> (k)
            s = MatMul (q, t)
            y = Softmax (s)
        }"""
    )
    w = initializers(whole)
    kept = np.array([0, 1, 3, 4, 5, 6, 8])
    factors = {}
    for name, rank in (("q", 3), ("k", 4)):
        u, s, v = np.linalg.svd(w[f"w{name}"][kept], full_matrices=False)
        factors[f"u{name}"], factors[f"v{name}"] = u[:, :rank] * s[:rank], v[:rank]
    student = build(
        """g (float[N,4,8] x) => (float[N,4,4] y)
        <float[8,7] a, float[7,4] uk, float[4,5] vk, float[7,3] uq, float[3,5] vq> {
            h = MatMul (x, a)
            r = Relu (h)
            f = MatMul (r, uk)
            g = MatMul (f, vk)
            t = Transpose <perm = [0,2,1]> (g)
            d = MatMul (r, uq)
            e = MatMul (d, vq)
            s = MatMul (e, t)
            y = Softmax (s)
        }""",
        {"a": w["a"][:, kept], **factors},
    )
    found = {p.student: p.teacher for p in match_models(canonical(whole), canonical(student)).pairs}
    assert found == {"h": "h", "f": None, "g": "k", "d": None, "e": "q"}


# x ─▶ h ─▶ Relu ─▶ q, k, v: softmax(q k') v ─▶ y
ATTENTION = """g (float[N,4,2] x) => (float[N,4,3] y)
<float[2,WIDE] a, float[WIDE,NARROW] wq, float[NARROW] bq, float[WIDE,NARROW] wk,
 float[WIDE,NARROW] wv, float[NARROW,3] wo> {
    h = MatMul (x, a)
    r = Relu (h)
    p = MatMul (r, wq)
    q = Add (p, bq)
    k = MatMul (r, wk)
    v = MatMul (r, wv)
    t = Transpose <perm = [0,2,1]> (k)
    s = MatMul (q, t)
    m = Softmax <axis = -1> (s)
    c = MatMul (m, v)
    y = MatMul (c, wo)
}"""


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_queries_keys_and_values_keep_their_places_whatever_activations_say(
    seed: int, alike: float
) -> None:
    teacher = build(ATTENTION.replace("WIDE", "10").replace("NARROW", "3"))
    student = build(ATTENTION.replace("WIDE", "7").replace("NARROW", "2"), seed=seed)

    def similarity(tensors: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], float]:
        return {
            (mine, other): alike * (mine != other)
            for mine, several in tensors.items()
            for other in several
        }

    found = partners(teacher, student, similarity=similarity)
    assert teachers(found) == outputs(teacher)


@pytest.mark.parametrize("join", ["Sub", "Div"])
def test_operands_of_different_meaning_are_not_interchangeable(join: str) -> None:
    """What nothing tells apart is no reason to pair by the order of weights."""
    text = TWINS.replace("s = Add (yl, yr)", f"u = Relu (yl) v = Tanh (yr) s = {join} (u, v)")
    teacher, student = build(text), with_fresh_weights(build(text), seed=3)
    for seed in range(4):
        assert teachers(nameless(teacher, student, seed)) == outputs(teacher)


def test_an_inner_node_of_a_branch_is_no_partner_of_a_merged_sum() -> None:
    """The shortcut around the teacher's convolution may be a part of its kernel."""
    teacher = build(
        """g (float[N,4,6,6] x) => (float[N,2,6,6] z)
        <float[8,4,3,3] w1, float[8,8,3,3] w2, float[8] b2, float[2,8,1,1] w3> {
            [one] y = Conv <pads = [1,1,1,1]> (x, w1)
            r = LeakyRelu (y)
            [two] c = Conv <pads = [1,1,1,1]> (r, w2, b2)
            s = Add (c, r)
            [three] z = Conv (s, w3)
        }"""
    )
    student = build(
        """g (float[N,4,6,6] x) => (float[N,2,6,6] z)
        <float[5,4,3,3] w1, float[3,5,1,1] v, float[5,3,3,3] w2, float[5] b2, float[2,5,1,1] w3> {
            [one] y = Conv <pads = [1,1,1,1]> (x, w1)
            r = LeakyRelu (y)
            [inner] i = Conv (r, v)
            [two] c = Conv <pads = [1,1,1,1]> (i, w2, b2)
            s = Add (c, r)
            [three] z = Conv (s, w3)
        }""",
        seed=3,
    )
    graphs = [canonical(model) for model in (teacher, student)]
    found = {pair.student: pair.teacher for pair in match_models(*graphs).pairs}
    assert found == {"one": "y", "inner": None, "two": "c", "three": "z"}


def test_an_inner_node_takes_no_place_further_on() -> None:
    """Two nodes behind each other are no two blocks with an activation between them."""
    teacher = build(
        """g (float[N,7] x) => (float[N,2] z, float[N,3] u)
        <float[7,6] a, float[6,6] b, float[6,2] c, float[6,3] d> {
            [one] y = MatMul (x, a)
            r = Relu (y)
            [two] s = MatMul (r, b)
            [left] z = MatMul (s, c)
            [right] e = MatMul (s, d)
            u = Tanh (e)
        }"""
    )
    student = build(
        """g (float[N,7] x) => (float[N,2] z, float[N,3] u)
        <float[7,2] v, float[2,5] a, float[5,3] w, float[3,5] b, float[5,2] c, float[5,3] d> {
            [inner] i = MatMul (x, v)
            [one] y = MatMul (i, a)
            r = Relu (y)
            [before] j = MatMul (r, w)
            [two] s = MatMul (j, b)
            [left] z = MatMul (s, c)
            [right] e = MatMul (s, d)
            u = Tanh (e)
        }""",
        seed=3,
    )
    found = teachers(partners(teacher, student))
    expected = {"inner": None, "one": "y", "before": None, "two": "s", "left": "z", "right": "e"}
    assert found == expected


@pytest.mark.parametrize("join", ["", "s = Add (h, r)"])
def test_a_node_somewhere_in_a_longer_chain_has_no_place(join: str) -> None:
    """The teacher has two linear nodes in a row, the student three: any may be the first."""
    last = "s" if join else "h"
    text = """g (float[N,8] x) => (float[N,3] y) <float[8,6] a, {weights}> {{
        c = MatMul (x, a)
        r = Relu (c)
        {nodes}
        {join}
        y = MatMul ({last}, w2)
    }}"""
    whole = build(
        text.format(
            weights="float[6,6] w1, float[6,3] w2", nodes="h = MatMul (r, w1)", join=join, last=last
        )
    )
    factors = text.format(
        weights="float[6,4] u, float[4,6] v, float[6,3] w2",
        nodes="q = MatMul (r, u) h = MatMul (q, v)",
        join=join,
        last=last,
    )
    student = build(factors, {"a": initializers(whole)["a"]}, seed=3)
    found = {p.student: p.teacher for p in match_models(canonical(whole), canonical(student)).pairs}
    # But only one of them is a term of the sum.
    assert (found["q"], found["h"]) == (None, "h" if join else None)
    assert (found["c"], found["y"]) == ("c", "y")


def test_rows_of_positions_in_a_longer_chain_give_no_node_a_place() -> None:
    """The same as simplifiers write a factor of tokens: Reshape, Gemm, Reshape."""
    text = """g (float[N,5,8] x) => (float[N,5,3] y)
    <float[8,6] a, {weights}, int64[2] rows = {{-1, 4}}, int64[3] tokens = {{-1, 5, 6}}> {{
        c = MatMul (x, a)
        r = Relu (c)
        {nodes}
        y = MatMul (h, w2)
    }}"""
    whole = build(text.format(weights="float[6,6] w1, float[6,3] w2", nodes="h = MatMul (r, w1)"))
    factors = text.format(
        weights="float[6,4] u, float[4,6] v, float[6] b, float[6,3] w2",
        nodes="q = MatMul (r, u) f = Reshape (q, rows) g1 = Gemm (f, v, b) "
        "h = Reshape (g1, tokens)",
    )
    student = build(factors, {"a": initializers(whole)["a"]}, seed=3)
    found = {p.student: p.teacher for p in match_models(canonical(whole), canonical(student)).pairs}
    assert found["q"] is None
    assert (found["c"], found["y"]) == ("c", "y")


IN_A_ROW = """g (float[N,3] x) => (float[N,6] z)
  <float[3,12] a, float[12] p, {weights}, float[6] q, float[6,4] c, float[4] s, float[4,6] d> {{
    [a] ya = Gemm (x, a, p) r = Relu (ya)
    {nodes} [c] yc = Gemm (yb, c, s) u = Sigmoid (yc) [d] z = MatMul (u, d)
}}"""


@pytest.mark.parametrize("seed", [82, 86, 129])
def test_a_factor_of_few_rows_is_no_node_of_a_shorter_chain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 12), "p": (12,), "b": (12, 6), "q": (6,)}
    shapes |= {"c": (6, 4), "s": (4,), "d": (4, 6)}
    values = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    left, size, right = np.linalg.svd(values["b"], full_matrices=False)
    size = np.sqrt(size[:3])

    def noisy(array: Array) -> Array:
        noise = rng.standard_normal(array.shape)
        return np.asarray(array + 0.05 * array.std() * noise, np.float32)

    own = {name: noisy(array) for name, array in values.items() if name != "b"}
    own |= {"b1": noisy(left[:, :3] * size), "b2": noisy(size[:, np.newaxis] * right[:3])}
    whole = IN_A_ROW.format(weights="float[12,6] b", nodes="[b] yb = Gemm (r, b, q)")
    halves = IN_A_ROW.format(
        weights="float[12,3] b1, float[3,6] b2",
        nodes="[b1] yi = MatMul (r, b1) [b] yb = Gemm (yi, b2, q)",
    )
    graphs = [gs.import_onnx(build(text, v)) for text, v in ((whole, values), (halves, own))]
    found = {pair.student: pair.teacher for pair in pair_blocks(*graphs)}
    assert found.pop("b") in ("yb", None)
    assert found == {"a": "ya", "b1": None, "c": "yc", "d": "z"}
