"""Steps of rewriting do what they say and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.edit import overwrite, remove, replace_reads
from tests.helpers import build


def test_nodes_go_and_readers_change() -> None:
    # k ─▶ Neg ─▶ n ─▶ Add (r) ─▶ s;  x ─▶ Relu ─▶ r
    graph = gs.import_onnx(
        build("""g (float[2] x) => (float[2] s) <float[2] k> {
            r = Relu (x)
            n = Neg (k)
            s = Add (n, r)
        }""")
    )
    relu, neg, add = graph.nodes
    constant = neg.inputs[0]
    replace_reads(neg.outputs[0], constant)
    remove(graph, neg)
    assert all(a is b for a, b in zip(graph.nodes, (relu, add), strict=True))
    assert add.inputs[0] is constant
    assert (len(neg.inputs), len(neg.outputs)) == (0, 0)


@pytest.mark.parametrize("kind", constants.FLOATS)
def test_an_overwritten_constant_keeps_its_shape_and_type(kind: int) -> None:
    constant = constants.make("w", np.zeros((2, 1, 3)), kind)
    values = np.arange(6.0) + 2.0**-30
    overwrite(constant, values)
    assert tuple(constant.shape) == (2, 1, 3)
    assert constants.element_type(constant) == kind
    rounded = constants.read(constants.make("", values, kind))
    np.testing.assert_array_equal(constants.read(constant).reshape(-1), rounded)
