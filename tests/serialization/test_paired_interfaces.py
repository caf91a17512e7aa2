"""Inputs and outputs of two models belong together by name, or by the only order that fits."""

from __future__ import annotations

import onnx
import pytest

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.paired_interfaces import pair_interfaces
from tests.helpers import build


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        ("float[N,4] x", "float[N,4] x, float[N,4] y"),
        ("float[N,4] x", "double[N,4] x"),
        ("float[N,4] x", "float[N,4,1] x"),
        ("float[N,4] x", "float[N,5] x"),
    ],
    ids=["count", "type", "rank", "extent"],
)
def test_other_inputs_are_refused(inputs: str, other: str) -> None:
    big, small = (
        build(f"g ({part}) => ({part.split()[0]} z) {{ z = Neg (x) }}") for part in (inputs, other)
    )
    with pytest.raises(ModelError, match=r"^small: takes other inputs \(x .*\) than big \(x "):
        pair_interfaces(big, small, "big", "small")


def test_open_extents_and_batches_fit_all() -> None:
    one, other = (
        build(f"g (float[{shape}] x) => (float[{shape}] z) {{ z = Neg (x) }}")
        for shape in ("4,3,H,7", "N,3,5,7")
    )
    pair_interfaces(one, other, "one", "other")
    pair_interfaces(other, one, "other", "one")


def test_another_number_of_outputs_is_refused() -> None:
    one = build("g (float[N,4] x) => (float[N,4] z) { z = Neg (x) }")
    two = build("g (float[N,4] x) => (float[N,4] z, float[N,4] y) { z = Neg (x) y = Abs (x) }")
    with pytest.raises(ModelError, match=r"^small: has 2 outputs and big has 1"):
        pair_interfaces(one, two, "big", "small")


TWO = "g ({0}) => ({1}) {{ p = Neg (a) q = Neg (b) }}"
A, B = "float[N,4] a", "float[N,4] b"
P, Q = "float[N,4] p", "float[N,4] q"


def two(inputs: str, outputs: str, **names: str) -> onnx.ModelProto:
    model = build(TWO.format(inputs, outputs))
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return model


def paired(one: onnx.ModelProto, other: onnx.ModelProto) -> tuple[list[str], list[str]]:
    found = pair_interfaces(one, other, "big", "small")
    return [spec.name for spec in found.inputs], list(found.outputs)


def test_names_count_more_than_order() -> None:
    one = two(f"{A}, {B}", f"{P}, {Q}")
    assert paired(one, two(f"{B}, {A}", f"{Q}, {P}")) == (["a", "b"], ["p", "q"])
    assert paired(one, two(f"{A}, {B}", f"{Q}, {P}")) == (["a", "b"], ["p", "q"])


def test_other_names_pair_where_only_one_order_fits() -> None:
    one = two(f"{A}, double[N,4] b", "float[N,4] p, double[N,4] q")
    other = two(f"double[N,4] b, {A}", "double[N,4] q, float[N,4] p", a="c", b="d", p="r", q="s")
    assert paired(one, other) == (["c", "d"], ["r", "s"])
    one = two(f"{A}, float[N,5] b", "float[N,4] p, float[N,5] q")
    other = two(f"{A}, float[N,5] b", "float[2,4] p, float[2,5] q", a="c", p="r")
    assert paired(one, other) == (["c", "b"], ["r", "q"])


@pytest.mark.parametrize("names", [{"a": "c", "b": "d"}, {"p": "r"}, {"p": "q", "q": "r"}])
def test_other_names_are_refused_where_several_orders_fit(names: dict[str, str]) -> None:
    one, other = two(f"{A}, {B}", f"{P}, {Q}"), two(f"{A}, {B}", f"{P}, {Q}", **names)
    what = "inputs" if "a" in names else "outputs"
    with pytest.raises(ModelError, match=rf"^small: its {what} \(.*\) have other names") as caught:
        pair_interfaces(one, other, "big", "small")
    assert "name them as the teacher's" in str(caught.value)


def test_one_input_and_one_output_may_have_any_name() -> None:
    one = build("g (float[N,4] x) => (float[N,4] z) { z = Neg (x) }")
    other = build("g (float[2,4] y) => (float[2,4] w) { w = Neg (y) }")
    assert paired(one, other) == (["y"], ["w"])
