"""Composed kernels tell the ends of decomposed blocks from their inner nodes."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from tests.helpers import Array, build, initializers
from tests.matching.test_pairing import KINDS, nameless, outputs, partners, teachers
from tests.students import renamed, with_noise

# x ─▶ first ─▶ Relu ─▶ whole ─▶ Relu ─▶ last ─▶ z, of equal width
PLAIN = """g (float[N,3,8,8] x) => (float[N,5,8,8] z) <float[WIDE,3,3,3] w1, float[WIDE] b1,
  float[WIDE,WIDE,3,3] w2, float[WIDE] b2, float[5,WIDE,1,1] w3> {
    [first] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [whole] y2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)
    r2 = Relu (y2)
    [last] z = Conv (r2, w3)
}"""


def spectrum(n: int, decay: float, seed: int) -> Array:
    """Draw a kernel (n, n, 3, 3) whose singular values decay, as those of trained ones do."""
    u, _, v = np.linalg.svd(np.random.default_rng(seed).standard_normal((n, 9 * n)), False)
    values = np.exp(-decay * np.arange(n) / n)
    return np.asarray((u * values) @ v).reshape(n, n, 3, 3)


def cut_by_rank(kernel: Array, rank: int, rotation: int | None) -> dict[str, object]:
    """Give k x k to so many channels, then 1 x 1; the inner channels in any basis."""
    n = len(kernel)
    u, s, v = np.linalg.svd(kernel.reshape(n, -1), full_matrices=False)
    turn = np.eye(rank)
    if rotation is not None:
        turn = np.linalg.qr(np.random.default_rng(rotation).standard_normal((rank, rank)))[0]
    into = turn @ v[:rank]
    out = (u[:, :rank] * s[:rank]) @ turn.T
    return {"v": into.reshape(rank, n, 3, 3), "u": out.reshape(n, rank, 1, 1)}


@pytest.mark.parametrize("rotation", [None, 1])
# Where singular values are the same, which vectors are kept is up to the library.
@pytest.mark.parametrize("decay", [1.0, 3.0, 8.0])
@pytest.mark.parametrize(("n", "rank"), [(8, 2), (8, 8), (32, 8), (32, 16), (32, 31)])
def test_singular_vectors_are_no_rows(
    n: int, rank: int, decay: float, rotation: int | None
) -> None:
    kernel = spectrum(n, decay, seed=n + rank)
    teacher = build(PLAIN.replace("WIDE", str(n)), {"w2": kernel})
    values = {**initializers(teacher), **cut_by_rank(kernel, rank, rotation)}
    text = PLAIN.replace(
        "float[WIDE,WIDE,3,3] w2", f"float[{rank},WIDE,3,3] v, float[WIDE,{rank},1,1] u"
    )
    text = text.replace(
        "[whole] y2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)",
        "[inner] i = Conv <pads = [1,1,1,1]> (r1, v) [end] y2 = Conv (i, u, b2)",
    )
    student = build(text.replace("WIDE", str(n)), values)
    other = renamed(student, seed=2)
    new = {name: now for now, name in other.old.items()}
    found = {other.old[name]: p for name, p in partners(teacher, other.model).items()}
    assert teachers(found) == {"first": "y1", "inner": None, "end": "y2", "last": "z"}
    reason = f"it is an inner node of the block that ends at '{new['end']}'"
    assert found["inner"].reason == reason
    assert found["end"].evidence == "weights"


# x ─▶ stem ─▶ Relu ─▶ project (narrow) ─▶ expand ─▶ Relu ─▶ last ─▶ z, nothing behind "project"
BOTTLENECK = """g (float[N,3,8,8] x) => (float[N,5,8,8] z) <float[24,3,3,3] w1, float[24] b1,
  float[12,24,1,1] w2, float[12] b2, float[24,12,1,1] w3, float[24] b3, float[5,24,1,1] w4> {
    [stem] y1 = Conv <pads = [1,1,1,1]> (x, w1, b1)
    r1 = Relu (y1)
    [project] y2 = Conv (r1, w2, b2)
    [expand] y3 = Conv (y2, w3, b3)
    r3 = Relu (y3)
    [last] z = Conv (r3, w4)
}"""


@pytest.mark.parametrize("kind", KINDS)
def test_chains_that_both_networks_have_pair_node_by_node(kind: str) -> None:
    teacher = build(BOTTLENECK)
    found = nameless(teacher, KINDS[kind](teacher))
    assert teachers(found) == outputs(teacher)


def composed_weight(model: onnx.ModelProto) -> dict[str, object]:
    """Give the weights of the same network with "expand" behind "project" as one node."""
    values = initializers(model)
    first, second = values["w2"][:, :, 0, 0], values["w3"][:, :, 0, 0]
    whole = (second @ first)[..., np.newaxis, np.newaxis]
    return {**values, "wc": whole, "bc": second @ values["b2"] + values["b3"]}


COMPOSED = BOTTLENECK.replace("(y2, w3, b3)", "(r1, wc, bc)").replace(
    "[project] y2 = Conv (r1, w2, b2)", ""
)
COMPOSED = COMPOSED.replace(
    "float[12,24,1,1] w2, float[12] b2, float[24,12,1,1] w3, float[24] b3",
    "float[24,24,1,1] wc, float[24] bc",
)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_chain_of_the_teacher_that_the_student_has_as_one_node(strength: float) -> None:
    teacher = build(BOTTLENECK)
    student = with_noise(build(COMPOSED, composed_weight(teacher)), strength)
    found = nameless(teacher, student)
    assert teachers(found) == {"stem": "y1", "expand": "y3", "last": "z"}
    assert found["expand"].evidence == "weights"


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_a_chain_of_the_student_that_the_teacher_has_as_one_node(strength: float) -> None:
    student = build(BOTTLENECK)
    teacher = build(COMPOSED, composed_weight(student))
    found = nameless(teacher, with_noise(student, strength))
    assert teachers(found) == {"stem": "y1", "project": None, "expand": "y3", "last": "z"}


@pytest.mark.parametrize("of_expand", [None, 10, 4])
def test_the_end_of_a_chain_within_a_chain_is_found_by_its_composed_kernel(
    of_expand: int | None,
) -> None:
    """The factors of the node behind it are near it as well, if less."""
    teacher = build(BOTTLENECK)
    text, values = in_two_factors("project", "w2", 8, BOTTLENECK, initializers(teacher))
    if of_expand is not None:
        text, values = in_two_factors("expand", "w3", of_expand, text, values)
    found = nameless(teacher, build(text, values))
    inner = [name for name in found if name.startswith("into_")]
    assert teachers(found) == {**outputs(teacher), **dict.fromkeys(inner)}
    assert found["project"].evidence == "weights"
    for name in inner:
        assert found[name].reason.startswith("it is an inner node of the block that ends at")


def in_two_factors(
    node: str, weight: str, rank: int, text: str, values: dict[str, Array]
) -> tuple[str, dict[str, Array]]:
    """Make two nodes of a 1 x 1 convolution, ``into_`` and the old name; text and weights."""
    whole = values[weight]
    n, reads = whole.shape[:2]
    u, s, v = np.linalg.svd(whole[:, :, 0, 0], full_matrices=False)
    factors = {
        f"{weight}v": v[:rank].reshape(rank, reads, 1, 1),
        f"{weight}u": (u[:, :rank] * s[:rank]).reshape(n, rank, 1, 1),
    }
    declared = f"float[{rank},{reads},1,1] {weight}v, float[{n},{rank},1,1] {weight}u"
    text = text.replace(f"float[{n},{reads},1,1] {weight}", declared)
    old = re.search(rf"\[{node}\] (\w+) = Conv \((\w+), {weight}(, \w+)?\)", text)
    assert old is not None
    output, source, bias = old.groups()
    made = (
        f"[into_{node}] {output}v = Conv ({source}, {weight}v) "
        f"[{node}] {output} = Conv ({output}v, {weight}u{bias})"
    )
    return text.replace(old[0], made), {**values, **factors}


# Of some simplifiers, Gemm is what others have as MatMul.
CHAIN_AND_NODE = """g (float[N,8] x) => (float[N,6] z) <float[8,16] w1, float[16,16] w2,
  float[16,8] w3, float[8,6] w4, float[6,6] w5> {
    [one] h1 = MatMul (x, w1)
    r1 = Relu (h1)
    [two] h2 = MatMul (r1, w2)
    [three] h3 = Gemm (h2, w3)
    r3 = Elu (h3)
    [four] h4 = MatMul (r3, w4)
    r4 = Softplus (h4)
    [five] z = MatMul (r4, w5)
}"""
CHAINS = """g (float[N,8] x) => (float[N,6] z) <float[8,16] w1, float[16,4] v2, float[4,6] w2,
  float[6,3] w3, float[3,1] v4, float[1,2] w4, float[2,6] w5> {
    [one] h1 = MatMul (x, w1)
    r1 = Relu (h1)
    [inner_2] i2 = MatMul (r1, v2)
    [two] h2 = MatMul (i2, w2)
    [three] h3 = MatMul (h2, w3)
    r3 = Elu (h3)
    [inner_4] i4 = MatMul (r3, v4)
    [four] h4 = Gemm (i4, w4)
    r4 = Softplus (h4)
    [five] z = MatMul (r4, w5)
}"""


def test_a_chain_in_front_of_another_activation_is_another_one() -> None:
    """Both networks have one chain of two nodes, not the same, and weights that tell nothing."""
    found = teachers(nameless(build(CHAIN_AND_NODE), build(CHAINS, seed=1)))
    inner = dict.fromkeys(("inner_2", "two", "inner_4"))
    assert found == {"one": "h1", **inner, "three": "h3", "four": "h4", "five": "z"}
