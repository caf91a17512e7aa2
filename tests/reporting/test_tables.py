"""Numbers as people read them."""

from __future__ import annotations

import pytest

from fskd_onnx.reporting.tables import short


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (99_999, "100k")),
        *((271_402, "271k"), (999_499, "999k"), (999_999, "1M"), (4.089e9, "4.09G")),
    ],
)
def test_large_numbers_have_three_digits(count: float, text: str) -> None:
    assert short(count) == text
