"""Which nodes can be factorized, in which form, and why the others cannot."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, full_rank, links, why_not
from tests.helpers import build, linears
from tests.passes.factorized import ALL, FORMS

IMAGES = "g (float[N,4,9,8] x) => (float[N,6,A,B] z)"


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("case", ALL)
def test_each_form_is_for_its_nodes(form: Form, case: str) -> None:
    (linear,) = linears(ALL[case].model()).values()
    assert (why_not(linear, form) == "") == (case in FORMS[form][0])


@pytest.mark.parametrize(
    ("text", "form", "reason"),
    [("<float[4,6,3,3] w> { [n] z = ConvTranspose (x, w) }", form, "transposed") for form in Form]
    + [
        ("<float[6,2,3,3] w> { [n] z = Conv <group = 2> (x, w) }", form, "it has groups")
        for form in Form
    ]
    + [
        (
            "<float[6,4,3,3] w> { [n] y = Conv (x, w) [m] v = Conv (x, w) z = Add (y, v) }",
            form,
            "its weights are also those of 'm'",
        )
        for form in Form
    ]
    + [
        ("<float[6,4,3,1] w> { [n] z = Conv (x, w) }", "spatial-svd", "taps along two axes"),
        ("<float[6,4,1,1] w> { [n] z = Conv (x, w) }", "tucker", "one tap"),
        ("<float[6,4,1,1] w> { [n] z = Conv (x, w) }", "decouple", "one tap"),
    ],
)
def test_reasons(text: str, form: str, reason: str) -> None:
    assert reason in why_not(linears(build(f"{IMAGES} {text}"))["n"], Form(form))


@pytest.mark.parametrize("form", [Form.CHANNEL_SVD, Form.TUCKER, Form.DECOUPLE])
def test_a_single_channel_has_a_rank_of_one(form: Form) -> None:
    model = build(
        "g (float[N,4,9,8] x) => (float[N,1,A,B] z) <float[1,4,3,3] w> { [n] z = Conv (x, w) }"
    )
    assert "a rank of one already" in why_not(linears(model)["n"], form)


def test_weights_that_are_not_finite_have_no_factors() -> None:
    values = {"w": np.full((6, 4, 3, 3), np.inf)}
    model = build(f"{IMAGES} <float[6,4,3,3] w> {{ [n] z = Conv (x, w) }}", values)
    assert "not all finite" in why_not(linears(model)["n"], Form.TUCKER)


@given(
    st.sampled_from(Form),
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(1, 5), min_size=2, max_size=3),
)
def test_a_chain_reads_and_writes_what_the_node_does(
    form: Form, outputs: int, inputs: int, kernel: list[int]
) -> None:
    shape = LinearShape(outputs, inputs, tuple(kernel))
    chain = links(form, shape, full_rank(form, shape))
    assert chain[0].inputs == inputs
    assert chain[-1].outputs == outputs
    assert all(one.outputs == other.inputs for one, other in itertools.pairwise(chain))
    # Each axis is one node's.
    moved = sorted(axis for link in chain for axis in link.axes)
    assert moved == list(range(len(kernel)))
    for link in chain:
        assert link.parameters == math.prod(link.kernel) * link.outputs * link.inputs // link.groups
        assert all(k == (kernel[a] if a in link.axes else 1) for a, k in enumerate(link.kernel))
