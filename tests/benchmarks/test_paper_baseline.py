"""The reference that the package is held against does what the paper says, no more and no less."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.base import export
from fskd_onnx.passes.write_weights import write_weights
from tests.benchmarks.paper import paper_fit
from tests.helpers import build, linears, ops, random_weight, run

NETWORK = """
t (float[N,3,8,8] image) => (float[N,2] logits)
<float[{a},3,3,3] w1, float[{a}] b1, float[{a}] gain, float[{a}] shift, float[{a}] mean,
 float[{a}] var, float[{b},{a},3,3] w2, float[{b}] b2, float[{b},1,3,3] w3,
 float[{b},{b},1,1] w4, float[2,{b}] w5, float[2] b5> {{
    c1 = Conv<pads=[1,1,1,1]>(image, w1, b1)
    n1 = BatchNormalization(c1, gain, shift, mean, var)
    r1 = Relu(n1)
    c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv<pads=[1,1,1,1], group={b}>(r2, w3)
    c4 = Conv(c3, w4)
    pooled = GlobalAveragePool(c4)
    flat = Flatten(pooled)
    logits = Gemm<transB=1>(flat, w5, b5)
}}
"""
OUTPUTS = ("n1", "c2", "c4")  # of the convolutions that can absorb a map of their channels


def network(a: int, b: int, values: dict[str, NDArray[np.float64]]) -> onnx.ModelProto:
    return build(NETWORK.format(a=a, b=b), values)


def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A network of 6 and 5 channels, and the same without every second channel."""
    rng = np.random.default_rng(0)
    a, b = 6, 5
    shapes = {"w1": (a, 3, 3, 3), "w2": (b, a, 3, 3), "w3": (b, 1, 3, 3), "w4": (b, b, 1, 1)}
    values = {name: random_weight(rng, shape) for name, shape in shapes.items()}
    values |= {name: rng.uniform(0.5, 1.5, a) for name in ("b1", "gain", "shift", "mean", "var")}
    values |= {"b2": rng.uniform(0.5, 1.5, b), "w5": random_weight(rng, (2, b))}
    values["b5"] = rng.uniform(0.5, 1.5, 2)
    narrow = {name: value[::2] for name, value in values.items() if name not in ("w5", "b5")}
    narrow["w2"] = narrow["w2"][:, ::2]
    narrow["w4"] = narrow["w4"][:, ::2]
    return network(a, b, values), network(
        3, 3, narrow | {"w5": values["w5"][:, ::2], "b5": values["b5"]}
    )


def samples(count: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 3, 8, 8), np.float32)


def activations(model: onnx.ModelProto, name: str) -> NDArray[np.float64]:
    """All values of a tensor of a canonical model, a column per channel."""
    graph = gs.import_onnx(model)
    graph.outputs = [graph.tensors()[name]]
    graph.outputs[0].dtype = np.dtype(np.float32)
    maps = run(gs.export_onnx(graph.cleanup()), {"image": samples()})[name]
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)


def test_each_convolution_is_the_least_squares_map_of_the_corrected_student() -> None:
    """At a minimum the residual is orthogonal to the output, once for every layer in order."""
    teacher, student = pair()
    wide, narrow = (Canonicalize()(model).model for model in (teacher, student))
    fitted = paper_fit(teacher, student, samples())
    for name in OUTPUTS:
        target = activations(wide, name)[:, ::2]
        before, after = activations(narrow, name), activations(fitted, name)
        scale = np.linalg.norm(after) * np.linalg.norm(target)
        assert np.abs(after.T @ (after - target)).max() < 1e-5 * scale
        # The first has all of its inputs, so nothing to repair.
        if name != OUTPUTS[0]:
            assert np.linalg.norm(after - target) < 0.95 * np.linalg.norm(before - target)


def test_nothing_but_a_map_of_channels_is_fitted() -> None:
    """Weights and bias of a convolution go through one matrix; the others stay as they are."""
    teacher, student = pair()
    fitted = linears(paper_fit(teacher, student, samples()))
    before = linears(Canonicalize()(student).model)
    assert list(fitted) == list(before)
    for name, linear in fitted.items():
        if linear.output.name in OUTPUTS:
            both = (before[name], linear)
            joined = [np.column_stack([v.matrix[0], v.bias[:, None]]) for v in both]
            adapter = np.linalg.lstsq(joined[0].T, joined[1].T, rcond=None)[0].T
            np.testing.assert_allclose(adapter @ joined[0], joined[1], atol=1e-5)
            changed = np.abs(joined[1] - joined[0]).max()
            assert changed < 1e-5 if linear.output.name == OUTPUTS[0] else changed > 0.05
        else:
            assert np.array_equal(before[name].matrix, linear.matrix)
            assert np.array_equal(before[name].bias, linear.bias)


def test_channels_that_were_mixed_are_unmixed() -> None:
    teacher, _ = pair()
    graph = gs.import_onnx(Canonicalize()(teacher).model)
    rng = np.random.default_rng(2)
    for linear in linears_of(graph):
        if linear.output.name in OUTPUTS:
            mixer = np.eye(linear.width) + rng.standard_normal((linear.width,) * 2) / 8
            mix = AffineMap(mixer[np.newaxis], np.zeros((1, linear.width)))
            write_weights(graph, linear, mix.after(linear.affine))
    student = export(graph, like=Canonicalize()(teacher).model)
    feeds = {"image": samples()}
    target, found = (run(model, feeds)["logits"] for model in (teacher, student))
    assert np.abs(found - target).max() > 0.05
    fitted = paper_fit(teacher, student, samples())
    assert np.abs(run(fitted, feeds)["logits"] - target).max() < 1e-4


def linears_of(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


def test_the_result_costs_what_the_student_costs() -> None:
    teacher, student = pair()
    given = [model.SerializeToString() for model in (teacher, student)]
    fitted = paper_fit(teacher, student, samples())
    assert ops(fitted) == ops(Canonicalize()(student).model)
    onnx.checker.check_model(fitted, full_check=True)
    assert [model.SerializeToString() for model in (teacher, student)] == given
