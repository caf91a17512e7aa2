"""Convolutions and pools give in PyTorch what they give in ONNX Runtime, however they pad."""

from __future__ import annotations

import itertools

import pytest

from fskd_onnx.errors import ModelError
from tests.gradient.agree import Case, assert_agrees, in_torch

_SAME = ('auto_pad = "SAME_UPPER",', 'auto_pad = "SAME_LOWER",')
_PADS = ("", "pads = [1, 0, 0, 2],", 'auto_pad = "VALID",', *_SAME)
_OUT = "=> (float[n,c,h,w] y)"


def _conv(op: str, more: str, extent: int, weight: str = "4,2,3,3", bias: int = 4) -> Case:
    return Case(
        f"(float[2,4,{extent},{extent}] x) {_OUT} <float[{weight}] w, float[{bias}] b> "
        f"{{ y = {op} <{more} group = 2> (x, w, b) }}"
    )


def _pool(op: str, more: str, extent: int, opset: int = 19) -> Case:
    return Case(f"(float[2,3,{extent},{extent}] x) {_OUT} {{ y = {op} <{more}> (x) }}", opset)


CASES = [
    *(
        _conv("Conv", f"{pads} strides = {strides}, dilations = {apart},", extent)
        for pads, strides, apart, extent in itertools.product(
            _PADS, ("[1, 1]", "[2, 3]"), ("[1, 1]", "[2, 1]"), (6, 7)
        )
        if pads not in _SAME or apart == "[1, 1]"  # the runtime has no other
    ),
    *(
        _conv("ConvTranspose", f"{pads} {more} strides = {strides}, dilations = {apart},", 4)
        for pads, more, strides, apart in itertools.product(
            _PADS, ("", "output_padding = [1, 0],"), ("[2, 2]", "[3, 2]"), ("[1, 1]", "[2, 1]")
        )
    ),
    Case(
        "(float[2,3,9] x) => (float[n,c,l] y) <float[4,3,3] w> { y = Conv <pads = [2, 0]> (x, w) }"
    ),
    Case(
        "(float[1,2,4,5,6] x) => (float[n,c,d,h,w] y) <float[3,2,2,3,2] k> "
        "{ y = Conv <strides = [1, 2, 1], pads = [0, 1, 1, 0, 1, 0]> (x, k) }"
    ),
    *(
        _pool(
            op,
            f"{pads} {extra} ceil_mode = {ceil}, strides = [{stride}, {stride}], "
            f"kernel_shape = [3, 3]",
            extent,
        )
        for (op, extra), pads, ceil, stride, extent in itertools.product(
            (("MaxPool", ""), ("AveragePool", ""), ("AveragePool", "count_include_pad = 1,")),
            ("", "pads = [1, 1, 1, 1],", "pads = [1, 0, 0, 1],", 'auto_pad = "SAME_UPPER",'),
            (0, 1),
            (2, 3),
            (5, 6, 7),
        )
    ),
    _pool("MaxPool", "kernel_shape = [2, 2], dilations = [2, 1]", 6),
    Case("(float[2,3,9] x) => (float[n,c,l] y) { y = AveragePool <kernel_shape = [2]> (x) }"),
    Case(
        "(float[1,2,4,4,4] x) => (float[n,c,d,h,w] y) "
        "{ y = AveragePool <kernel_shape = [2, 2, 2]> (x) }"
    ),
    *(Case(f"(float[2,3,4,5] x) {_OUT} {{ y = Global{op}Pool(x) }}") for op in ("Average", "Max")),
    *(
        Case(f'(float[2,8,3,2] x) {_OUT} {{ y = DepthToSpace <blocksize = 2, mode = "{m}"> (x) }}')
        for m in ("DCR", "CRD")
    ),
    Case(f"(float[2,2,4,6] x) {_OUT} {{ y = SpaceToDepth <blocksize = 2> (x) }}"),
]


def test_nodes_give_what_the_runtime_gives() -> None:
    for case in CASES:
        assert_agrees(case)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (_conv("ConvTranspose", "output_shape = [9, 9],", 4), "output_shape is not known"),
        (_pool("AveragePool", "kernel_shape = [2, 2], dilations = [2, 2]", 6), "dilations"),
        (
            Case(
                "(float[2,3,5] x) => (float[n,c,l] y, int64[n,c,l] at) "
                "{ y, at = MaxPool <kernel_shape = [2]> (x) }"
            ),
            "more than its first output",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(case: Case, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        in_torch(case.model, {})
