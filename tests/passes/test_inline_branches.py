"""Bodies take the place of their Ifs, and Ifs come back: the function stays for every condition."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes import Canonicalize, export
from fskd_onnx.passes.errors import PostconditionError
from fskd_onnx.passes.inline_branches import (
    Inlined,
    conditions,
    inline_branches,
    restore_branches,
)
from tests.helpers import Array, assert_close, build, check, linears, ops, run

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

ONE = """g (float[N,4] x, bool c) => (float[N,2] y) <float[4,2] w> {
    h = Relu (x)
    y = If (c) <
        then_branch = one () => (float[N,2] a) <float[4,2] v> { a = MatMul (h, v) },
        else_branch = two () => (float[N,2] b) {
            t = MatMul (x, w)  unread = Neg (t)  b = Relu (t)
        }>
}"""

# Both bodies, and both Ifs, have names of their own that are the same.
TWO = """g (float[N,4] x, bool c) => (float[N,4] y) {
    h = If (c) <
        then_branch = one () => (float[N,4] a) <float[4,4] v> {
            t = MatMul (x, v)  a = Relu (t)
        },
        else_branch = two () => (float[N,4] a) <float[4,4] v> {
            t = MatMul (x, v)  a = Tanh (t)
        }>
    y = If (c) <
        then_branch = three () => (float[N,4] a) <float[4,4] v> {
            t = MatMul (h, v)  a = Sigmoid (t)
        },
        else_branch = four () => (float[N,4] a) { a = Identity (h) }>
}"""

# Bodies that give out what none of their nodes computes.
PASSED_ON = """g (float[N,4] x, bool c) => (float[N,4] y, float[4] u) {
    y, u = If (c) <
        then_branch = one () => (float[N,4] a, float[4] v) <float[4] v> { a = Add (x, v) },
        else_branch = two () => (float[N,4] b, float[4] w) <float[4] w> { b = Mul (x, w) }>
}"""

NESTED = """g (float[N,4] x, bool c, bool d) => (float[N,2] y) {
    y = If (c) <
        then_branch = one () => (float[N,2] a) <float[4,2] v> {
            h = Relu (x)
            i = If (d) <
                then_branch = three () => (float[N,4] e) <float[4,4] u> { e = MatMul (h, u) },
                else_branch = four () => (float[N,4] f) { f = Neg (h) }>
            a = MatMul (i, v)
        },
        else_branch = two () => (float[N,2] b) <float[4,2] v> { b = MatMul (x, v) }>
}"""


def feeds(model: onnx.ModelProto, **given: bool) -> dict[str, Array]:
    return {"x": X} | {
        value.name: np.array(given.get(value.name, True))
        for value in model.graph.input
        if value.name != "x"
    }


def inlined_all(model: onnx.ModelProto, taken: bool) -> tuple[onnx.ModelProto, list[Inlined]]:
    """Inline Ifs level by level."""
    found: list[Inlined] = []
    while open_ones := conditions(model):
        model, more = inline_branches(model, dict.fromkeys(open_ones, taken))
        found += more
    return model, found


@pytest.mark.parametrize("text", [ONE, TWO, PASSED_ON, NESTED])
@pytest.mark.parametrize("taken", [True, False])
def test_the_function_is_that_of_the_condition_and_comes_back_for_both(
    text: str, taken: bool
) -> None:
    model = build(text)
    before = model.SerializeToString()
    plain, inlined = inlined_all(model, taken)
    check(plain)
    assert model.SerializeToString() == before
    assert "If" not in ops(plain)
    known = feeds(model, c=taken, d=taken)
    fed = {value.name for value in plain.graph.input}
    assert_close(run(plain, {k: v for k, v in known.items() if k in fed}), run(model, known))
    back = restore_branches(plain, inlined)
    check(back)
    assert ops(back) == ops(model)
    for c in (True, False):
        for d in (True, False):
            now = feeds(model, c=c, d=d)
            assert_close(run(back, now), run(model, now))


@pytest.mark.parametrize("text", [ONE, TWO, NESTED])
def test_new_weights_are_in_the_body_that_was_taken_and_in_no_other(text: str) -> None:
    model = build(text)
    plain, inlined = inlined_all(model, True)
    canonical = Canonicalize()(plain).model
    graph = gs.import_onnx(canonical)
    for view in linears(canonical).values():
        graph.tensors()[view.weight.name].values = 2 * view.weight.values
    changed = export(graph, like=canonical)
    back = restore_branches(changed, inlined)
    check(back)
    on = feeds(model, c=True, d=True)
    assert_close(run(back, on), run(changed, {k: on[k] for k in on}))
    for off in (feeds(model, c=False, d=True), feeds(model, c=False, d=False)):
        assert_close(run(back, off), run(model, off))


READS_A_WEIGHT_OF_THE_GRAPH = """
g (float[N,4] x, bool c) => (float[N,4] y, float[N,4] z) <float[4,4] w> {{
    z = {outside}
    y = If (c) <
        then_branch = one () => (float[N,4] a) {{ a = {then} }},
        else_branch = two () => (float[N,4] b) {{ e = MatMul (x, w)  b = Relu (e) }}>
}}"""


@pytest.mark.parametrize(
    ("outside", "then", "inlined"),
    [
        ("MatMul (x, w)", "Relu (x)", {}),
        ("Relu (x)", "MatMul (x, w)", {}),
        ("Relu (x)", "Neg (x)", {"y": "c"}),
    ],
)
def test_an_if_stays_whose_weights_are_read_elsewhere_too(
    outside: str, then: str, inlined: dict[str, str]
) -> None:
    text = READS_A_WEIGHT_OF_THE_GRAPH.format(outside=outside, then=then)
    assert conditions(build(text)) == inlined


def test_models_stay_that_state_initializers_as_inputs() -> None:
    model = build(ONE)
    model.ir_version = 3
    assert conditions(model) == {}


def test_what_is_inside_cannot_be_read_outside() -> None:
    model = build(TWO)
    plain, inlined = inline_branches(model, {"h": True})
    inner = next(node.output[0] for node in plain.graph.node if node.op_type == "MatMul")
    plain.graph.node.add(op_type="Relu", input=[inner], output=["leak"])
    plain.graph.output.append(onnx.ValueInfoProto(name="leak"))
    with pytest.raises(PostconditionError, match="'leak' of a body of an If is an output"):
        restore_branches(plain, inlined)


def test_without_ifs_nothing_happens() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }")
    assert conditions(model) == {}
    assert restore_branches(model, []) is model
