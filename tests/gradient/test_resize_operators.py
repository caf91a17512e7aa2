"""Resize and Upsample give in PyTorch what they give in ONNX Runtime."""

from __future__ import annotations

import itertools

import pytest

from fskd_onnx.errors import ModelError
from tests.gradient.agree import Case, assert_agrees, in_torch

_IO = "(float[1,2,5,4] x) => (float[n,c,h,w] y)"
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
_MODES = (
    'linear", nearest_mode = "floor',
    *(
        f'nearest", nearest_mode = "{n}'
        for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
)
CASES = [
    *(
        Case(
            f'{_IO} <float[4] s> {{ y = Resize <mode = "{mode}", '
            f'coordinate_transformation_mode = "{c}"> (x, , s) }}',
            13,
            {"s": [1, 1, s, s]},
        )
        for mode, c, s in itertools.product(_MODES, _COORDINATES, (2.0, 0.6, 1.5))
    ),
    *(
        Case(
            f'{_IO} <int64[4] s> {{ y = Resize <mode = "{mode}", '
            f'coordinate_transformation_mode = "{c}"> (x, , , s) }}',
            13,
            {"s": [1, 2, *s]},
        )
        for mode, c, s in itertools.product(_MODES, _COORDINATES, ((10, 8), (3, 9), (1, 1)))
    ),
    Case(
        f'{_IO} <float[2] s> {{ y = Resize <mode = "linear", axes = [3, 2]> (x, , s) }}',
        18,
        {"s": [2, 3]},
    ),
    *(
        case
        for mode, s in itertools.product(("nearest", "linear"), (2.0, 1.5))
        for case in (
            Case(
                f'{_IO} {{ y = Upsample <mode = "{mode}", scales = [1.0, 1.0, {s}, {s}]> (x) }}', 8
            ),
            Case(
                f'{_IO} <float[4] s> {{ y = Upsample <mode = "{mode}"> (x, s) }}',
                9,
                {"s": [1, 1, s, s]},
            ),
            Case(
                f'{_IO} <float[4] s> {{ y = Resize <mode = "{mode}"> (x, s) }}',
                10,
                {"s": [1, 1, s, s]},
            ),
        )
    ),
]


def test_nodes_give_what_the_runtime_gives() -> None:
    for case in CASES:
        assert_agrees(case)


@pytest.mark.parametrize(
    "attribute",
    ['mode = "cubic"', "antialias = 1", 'coordinate_transformation_mode = "tf_crop_and_resize"'],
)
def test_other_ways_are_refused_by_name(attribute: str) -> None:
    case = Case(
        f"{_IO} <float[4] s> {{ y = Resize <{attribute}> (x, , s) }}", 18, {"s": [1, 1, 2, 2]}
    )
    with pytest.raises(ModelError, match=f"its attribute {attribute.split()[0]} is"):
        in_torch(case.model, {})
