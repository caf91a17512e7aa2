"""Errors of outputs are those that whole runs of the changed network have."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fskd_onnx.compression.output_errors import Change, output_errors
from fskd_onnx.errors import ModelError
from fskd_onnx.passes import AffineMap, DropBlocks, InsertAdapter, export
from fskd_onnx.passes.analysis.residual_blocks import find_residual_blocks
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.runtime.tensor_store import TensorStore
from tests.compressible import cpu, loaded, options, samples_of, teacher
from tests.helpers import Array, build, linears, run

COUNT = 20


def doubled(model: onnx.ModelProto, node: str) -> Change:
    """Give the change that doubles what a node gives."""
    view = linears(model)[node]
    n = view.width // view.groups
    twice = AffineMap(np.tile(2 * np.eye(n), (view.groups, 1, 1)), np.zeros((view.groups, n)))
    return Change(node, view.input.name, InsertAdapter({node: twice}).run)


def found(
    model: onnx.ModelProto, changes: list[Change], samples: dict[str, Array]
) -> dict[str, float]:
    own, chosen, runtime = loaded(model), options(), cpu()
    with TensorStore() as store:
        read = open_samples(samples, own, chosen.run)
        divided = divide_samples((own,), read, chosen.fit, store, runtime)
        batches, decoded = divided.splits.final.batches, divided.decoded
        errors = output_errors(runtime, own.graph, changes, decoded, batches)
    return {change.name: error for change, error in errors.items()}


def of_whole_runs(
    model: onnx.ModelProto, changes: list[Change], samples: dict[str, Array]
) -> dict[str, float]:
    own = loaded(model)
    target = run(own.canonical, samples)
    expected = {}
    for change in changes:
        graph = own.graph()
        change.rewrite(graph)
        given = run(export(graph, like=own.canonical), samples)
        errors = []
        for name, right in target.items():
            right = right.astype(np.float64)
            errors.append(np.sum((given[name] - right) ** 2) / np.sum((right - right.mean(0)) ** 2))
        expected[change.name] = float(np.mean(errors))
    return expected


@pytest.mark.parametrize("name", ["two blocks", "chain", "gate", "flatten"])
def test_of_nodes(name: str) -> None:
    model = loaded(teacher(name)).canonical
    changes = [doubled(model, node) for node in linears(model)]
    samples = samples_of(model, COUNT)
    expected = of_whole_runs(model, changes, samples)
    assert len(set(expected.values())) > 1
    assert found(model, changes, samples) == pytest.approx(expected, rel=1e-4)


def test_of_blocks_that_go() -> None:
    model = loaded(teacher("two blocks")).canonical
    views = linears(model)
    changes = [
        Change(block.name, views[block.linears[0]].input.name, DropBlocks([block.name]).run)
        for block in find_residual_blocks(loaded(model).graph())
    ]
    samples = samples_of(model, COUNT)
    expected = of_whole_runs(model, changes, samples)
    assert len(expected) == 2
    assert found(model, changes, samples) == pytest.approx(expected, rel=1e-4)


TWO_HEADS = """g (float[N,4] x) => (float[N,4] z, float[N,4] large) <float[4,4] a, float[4,4] b,
  float[4,4] c> {
    [body] y = MatMul (x, a)
    [one] z = MatMul (y, b)
    [two] large = MatMul (y, c)
}"""


def test_outputs_count_alike_whatever_their_scale() -> None:
    model = build(TWO_HEADS, {"c": 1e4 * np.eye(4)})
    changes = [doubled(model, node) for node in ("body", "one", "two")]
    errors = found(model, changes, samples_of(model, COUNT))
    assert errors["body"] == pytest.approx(errors["one"] + errors["two"])
    assert errors["one"] > 0.1
    assert errors["two"] > 0.1


def test_samples_whose_outputs_are_not_finite_are_left_out() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] z) <float[4,4] a, float[4,4] b> {
            r = Sqrt (x)
            [body] y = MatMul (r, a)
            [one] z = MatMul (y, b)
        }"""
    )
    samples = np.abs(samples_of(model, COUNT)["x"])
    changes = [doubled(model, "one")]
    clean = found(model, changes, {"x": samples[:-1]})
    samples[-1] = -1
    assert found(model, changes, {"x": samples}) == pytest.approx(clean, rel=1e-5)


def test_a_network_without_an_output_of_samples_is_refused() -> None:
    model = build(
        """g (float[N,4] x) => (float z) <float[4,4] a> {
            [one] y = MatMul (x, a)
            z = ReduceSum <keepdims = 0> (y)
        }"""
    )
    with pytest.raises(ModelError, match="nothing tells what matters to it"):
        found(model, [doubled(model, "one")], samples_of(model, COUNT))
