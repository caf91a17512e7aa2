"""The benchmark of terms compares networks of one function of the channels."""

from __future__ import annotations

import pytest

from fskd_onnx.runtime.providers import open_runtime
from tests.benchmarks import terms
from tests.helpers import linears


@pytest.mark.parametrize("count", [2, 4])
def test_chain_and_branches_have_the_same_weights(count: int) -> None:
    found = terms.models(8, 6, 2, count)
    sizes = {
        name: sum(view.weight.values.size for view in linears(model).values())
        for name, model in found.items()
    }
    assert sizes["chain"] == sizes["branches"] == count * (8 * 9 + 8 * 8)


def test_both_give_a_ratio() -> None:
    assert all(ratio > 0 for ratio in terms.ratios(open_runtime(["cpu"]), 4, 5, 1, 2, limit=0))
