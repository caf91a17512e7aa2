"""Uses of one block are matched together: all of them with the same channels, or none."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes import Canonicalize
from fskd_onnx.results import BlockPair, Evidence
from tests.helpers import Array, build, initializers, linears

KEPT = np.array([4, 0, 3])

# x1 ─▶ in1 ─▶ Relu ─▶ head1 ─▶ Relu ─▶ out1 ─▶ z1        the same for x2, whose head is tied
TIED = """g (float[N,4,6,6] x1, float[N,4,6,6] x2) => (float[N,2,6,6] z1, float[N,2,6,6] z2)
  <float[5,4,3,3] i1, float[5,4,3,3] i2, float[{n},5,1,1] h1, float[{n},5,1,1] h2,
   float[{n}] b1, float[{n}] b2, float[2,{n},3,3] o1, float[2,{n},3,3] o2> {{
    [in1] a1 = Conv <pads = [1,1,1,1]> (x1, i1)
    [in2] a2 = Conv <pads = [1,1,1,1]> (x2, i2)
    r1 = Relu (a1)
    r2 = Relu (a2)
    [head1] c1 = Conv (r1, h1, b1)
    [head2] c2 = Conv (r2, {h}, {b})
    s1 = Relu (c1)
    s2 = Relu (c2)
    [out1] z1 = Conv <pads = [1,1,1,1]> (s1, o1)
    [out2] z2 = Conv <pads = [1,1,1,1]> (s2, {o})
}}"""


def network(tied: bool, values: dict[str, Array] | None = None, n: int = 5) -> onnx.ModelProto:
    names = {"h": "h1", "b": "b1", "o": "o1"} if tied else {"h": "h2", "b": "b2", "o": "o2"}
    return build(TIED.format(n=n, **names), values or {})


def teacher(tied: bool) -> onnx.ModelProto:
    """Tied, or with heads of their own whose weights nearly are those of the first one."""
    values = initializers(network(True))
    rng = np.random.default_rng(4)
    for name in ("h", "b", "o"):
        noise = rng.standard_normal(values[f"{name}1"].shape) * values[f"{name}1"].std() / 20
        values[f"{name}2"] = values[f"{name}1"] + noise
    return network(tied, values)


def student(tied: bool) -> onnx.ModelProto:
    """Heads pruned to three channels."""
    values = initializers(teacher(False))
    for branch in (1, 2):
        for name in ("h", "b"):
            values[f"{name}{branch}"] = values[f"{name}{branch}"][KEPT]
        values[f"o{branch}"] = values[f"o{branch}"][:, KEPT]
    return network(tied, values, n=len(KEPT))


def matched(
    whole: onnx.ModelProto, small: onnx.ModelProto, given: dict[str, Partner] | None = None
) -> dict[str, BlockPair]:
    one, other = (gs.import_onnx(Canonicalize()(model).model) for model in (whole, small))
    return {pair.student: pair for pair in match_models(one, other, given).pairs}


@pytest.mark.parametrize("teacher_tied", [True, False])
@pytest.mark.parametrize("student_tied", [True, False])
def test_tied_and_untied_heads_pair_use_by_use(teacher_tied: bool, student_tied: bool) -> None:
    found = matched(teacher(teacher_tied), student(student_tied))
    assert [pair.reason for pair in found.values()] == [""] * 6
    for branch in (1, 2):
        assert found[f"head{branch}"].teacher == f"c{branch}"
        assert found[f"head{branch}"].channels == tuple(KEPT)
        assert found[f"out{branch}"].teacher == f"z{branch}"
        assert found[f"out{branch}"].channels == (0, 1)


def test_a_use_without_a_partner_leaves_the_others_alone() -> None:
    given = {"head2": Partner("head2", None, reason="the map says so")}
    found = matched(teacher(True), student(True), given)
    assert found["head2"].reason == "the map says so"
    assert found["head1"].reason == (
        "its weights are also those of 'head2', which is left alone: the map says so"
    )
    assert not found["out1"].reason


def test_uses_that_disagree_on_their_channels_are_left_alone() -> None:
    other = tuple(int(channel) for channel in KEPT[::-1])
    given = {
        "head1": Partner("head1", "c1", Evidence.MAP, channels=tuple(int(c) for c in KEPT)),
        "head2": Partner("head2", "c2", Evidence.MAP, channels=other),
    }
    found = matched(teacher(True), student(True), given)
    for name, reader in (("head1", "head2"), ("head2", "head1")):
        reason = found[name].reason
        assert reason.startswith(f"its weights are also those of '{reader}', and they seem to have")


def test_uses_whose_partners_have_different_widths_are_left_alone() -> None:
    whole = build("""g (float[N,4] x1, float[N,4] x2) => (float[N,3] z1, float[N,3] z2)
      <float[4,6] w, float[4,7] v, float[6,3] k, float[7,3] l> {
        [one] y1 = Gemm (x1, w)
        [two] y2 = Gemm (x2, v)
        r1 = Relu (y1)
        r2 = Relu (y2)
        [out1] z1 = Gemm (r1, k)
        [out2] z2 = Gemm (r2, l)
    }""")
    small = build("""g (float[N,4] x1, float[N,4] x2) => (float[N,3] z1, float[N,3] z2)
      <float[4,5] w, float[5,3] k, float[5,3] l> {
        [one] y1 = Gemm (x1, w)
        [two] y2 = Gemm (x2, w)
        r1 = Relu (y1)
        r2 = Relu (y2)
        [out1] z1 = Gemm (r1, k)
        [out2] z2 = Gemm (r2, l)
    }""")
    given = {name: Partner(name, y, Evidence.MAP) for name, y in (("one", "y1"), ("two", "y2"))}
    found = matched(whole, small, given)
    reason = "its weights are also those of '{}', and their partners have different widths"
    assert found["one"].reason == reason.format("two")
    assert found["two"].reason == reason.format("one")


RECURRENT = """g (float[N,4] x1, float[N,4] x2) => (float[N,4] z1, float[N,4] z2)
  <float[4,4] w, float[4,4] v, float[4,4] k> {{ {} }}"""


@pytest.mark.parametrize("steps", [2, 3])
def test_a_recurrence_is_left_alone(steps: int) -> None:
    nodes = "h0 = Relu (x1)"
    for step in range(steps):
        nodes += f" [s{step}] y{step} = Gemm (h{step}, w) h{step + 1} = Relu (y{step})"
    model = build(RECURRENT.format(f"{nodes} [o] z1 = Gemm (h{steps}, k) z2 = Relu (x2)"))
    found = matched(model, model)
    assert not found["o"].reason
    for step in range(steps):
        assert "cannot be fitted in one pass" in found[f"s{step}"].reason


def test_of_two_blocks_that_depend_on_each_other_one_is_left_alone() -> None:
    # x1 ─▶ w ─▶ v ─▶ z1        x2 ─▶ v ─▶ w ─▶ z2
    model = build(
        RECURRENT.format(
            """[w1] a1 = Gemm (x1, w)
            r1 = Relu (a1)
            [v1] z1 = Gemm (r1, v)
            [v2] a2 = Gemm (x2, v)
            r2 = Relu (a2)
            [w2] z2 = Gemm (r2, w)"""
        )
    )
    found = matched(model, model)
    assert [name for name, pair in found.items() if not pair.reason] == ["v1", "v2"]
    assert found["w1"].reason == (
        "its weights are also those of 'w2', and 'v1' both depends on them and they on it, "
        "so that they cannot be fitted in one pass"
    )


BEHIND = """g (float[N,4,5,5] x1, float[N,4,5,5] x2) => (float[N,6,5,5] z1, float[N,6,5,5] z2)
  <float[6,4,1,1] w, float[6,4,1,1] v, float[6] s, float[6] t> {{
    [one] y1 = Conv (x1, w)
    z1 = BatchNormalization (y1, s, t, t, s)
    [two] y2 = Conv (x2, {})
    z2 = BatchNormalization (y2, t, s, s, t)
}}"""


@pytest.mark.parametrize("tied", [(True, False), (False, True), (True, True), (False, False)])
def test_a_scale_that_is_folded_in_one_network_only_is_not_fitted_to(
    tied: tuple[bool, bool],
) -> None:
    whole = build(BEHIND.format("v" if not tied[0] else "w"))
    values = initializers(whole)
    small = build(BEHIND.format("v" if not tied[1] else "w"), values)
    assert (
        all(view.shared_with for view in linears(Canonicalize()(small).model).values()) == tied[1]
    )
    found = matched(whole, small)
    for pair in found.values():
        if tied[0] == tied[1]:
            assert not pair.reason
        else:
            assert "a scale or shift per channel follows it in one of the networks" in pair.reason


def test_other_scales_behind_shared_weights_are_not_fitted_to() -> None:
    whole = build(BEHIND.format("w"))
    values = initializers(whole)
    values["t"] = values["t"] * np.float32(1.1)
    for pair in matched(whole, build(BEHIND.format("w"), values)).values():
        assert "the scale or shift per channel that follows it is not that of" in pair.reason
