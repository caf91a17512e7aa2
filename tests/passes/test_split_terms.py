"""The terms of decoupled nodes as branches."""

from __future__ import annotations

import onnx
import pytest

from fskd_onnx.passes import SplitTerms
from tests.helpers import assert_same_function, build, linears

CHAIN = """g (float[N,{c},9,8] x) => (float[N,6,A,B] z)
<float[{rows},1,3,3] d, float[{rows}] e, float[6,{rows},1,1] p, float[6] b> {{
    r = Relu (x)
    ["n/factor1"] y = Conv <group = {c}, {moves}> (r, d{shift})
    [n] s = Conv (y, p, b)
    z = Relu (s)
}}"""


def chain(
    terms: int = 3, channels: int = 16, moves: str = "pads = [1,1,1,1]", shift: str = ""
) -> onnx.ModelProto:
    return build(CHAIN.format(c=channels, rows=channels * terms, moves=moves, shift=shift))


@pytest.mark.parametrize("terms", [2, 3, 7])
@pytest.mark.parametrize(
    "moves", ["pads = [1,1,1,1]", "strides = [2,1]", 'auto_pad = "SAME_LOWER"']
)
@pytest.mark.parametrize("shift", ["", ", e"])
def test_the_function_stays(terms: int, moves: str, shift: str) -> None:
    model = chain(terms, moves=moves, shift=shift)
    result = SplitTerms({"n"})(model)
    assert result.notes == (f"the {terms} terms of 'n' made branches",)
    assert_same_function(result.model, model)
    assert SplitTerms({"n"})(result.model).notes == ()


def test_each_branch_is_depthwise_with_one_output_per_channel() -> None:
    found = linears(SplitTerms({"n"})(chain(terms=2)).model)
    assert {name: view.shape for name, view in found.items()} == {
        "n/factor1/term1": (16, 1, 9),
        "n/term1": (1, 6, 16),
        "n/factor1": (16, 1, 9),
        "n": (1, 6, 16),
    }
    assert [view.bias_constant is not None for view in found.values()] == [False] * 3 + [True]
    # The last one is listed last, behind all that takes the place of the teacher's node.
    assert list(found)[-1] == "n"


def test_the_output_and_its_readers_keep_their_names() -> None:
    nodes = SplitTerms({"n"})(chain()).model.graph.node
    assert [(node.op_type, node.output[0]) for node in nodes][-2:] == [("Add", "s"), ("Relu", "z")]


def test_a_chain_without_names_is_named_by_its_output() -> None:
    model = chain()
    for node in model.graph.node:
        node.name = ""
    result = SplitTerms({"s"})(model)
    assert_same_function(result.model, model)
    assert "s" in linears(result.model)


SLOW = {
    "a number of channels that blocks do not divide": chain(channels=18),
    "few channels": chain(channels=12),
    "one term": chain(terms=1),
    "double precision": build(
        CHAIN.format(c=16, rows=32, moves="pads = [1,1,1,1]", shift="").replace("float", "double")
    ),
    "half precision behind a Cast": build("""g (float[N,16,9,9] x) => (float[N,6,7,7] z)
    <float16[32,1,3,3] d, float[6,32,1,1] p> {
        e = Cast <to = 1> (d)
        y = Conv <group = 16> (x, e)
        [n] z = Conv (y, p)
    }"""),
    "one axis": build("""g (float[N,16,9] x) => (float[N,6,A] z)
    <float[32,1,3] d, float[6,32,1] p> {
        y = Conv <group = 16> (x, d)
        [n] z = Conv (y, p)
    }"""),
    "read elsewhere": build("""g (float[N,16,9,9] x) => (float[N,6,7,7] z, float[N,32,7,7] y)
    <float[32,1,3,3] d, float[6,32,1,1] p> {
        y = Conv <group = 16> (x, d)
        [n] z = Conv (y, p)
    }"""),
    "two inputs per group": build("""g (float[N,32,9,9] x) => (float[N,6,7,7] z)
    <float[32,2,3,3] d, float[6,32,1,1] p> {
        y = Conv <group = 16> (x, d)
        [n] z = Conv (y, p)
    }"""),
    "a last node with a kernel": build("""g (float[N,16,9,9] x) => (float[N,6,5,5] z)
    <float[32,1,3,3] d, float[6,32,3,3] p> {
        y = Conv <group = 16> (x, d)
        [n] z = Conv (y, p)
    }"""),
}


@pytest.mark.parametrize("reason", SLOW)
def test_what_is_no_faster_stays(reason: str) -> None:
    assert SplitTerms({"n"})(SLOW[reason]).notes == ()


def test_what_is_not_named_stays() -> None:
    assert SplitTerms({"m"})(chain()).notes == ()
