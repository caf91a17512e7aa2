"""A whole graph in PyTorch gives what it gives in ONNX Runtime, with gradients of its slots."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from fskd_onnx.errors import ModelError
from fskd_onnx.gradient.torch_graph import Slot, TorchGraph, check_runs
from fskd_onnx.passes import Canonicalize
from fskd_onnx.serialization.interface import fixed_batch_size, input_specs
from tests.forms import GROUPS
from tests.gradient.agree import in_torch
from tests.helpers import at_least, build, run

FORMS = {name: form for forms in GROUPS.values() for name, form in forms.items() if not form.fails}
# Each is refused by the operator that does not run.
REFUSED = {
    "LSTM": "LSTM",
    "If": "If",
    "Loop": "Loop",
    "Scan": "Scan",
    "function of the model": "Dense",
    "operator of the runtime": "FusedMatMul",
    "QDQ": "DequantizeLinear",
    "Cast and Mul": "DequantizeLinear",
    "QOperator": "DequantizeLinear",
}
# The largest graph has no operator that no other has.
TAKEN = [name for name in FORMS if name not in REFUSED and name != "densenet121"]
# Of the largest value; half precision is computed in single precision.
TOLERANCE = {"float16": 1e-3}


@pytest.mark.parametrize(
    "name", [name for name in FORMS if name not in REFUSED | {"densenet121": ""}]
)
def test_a_form_gives_what_the_runtime_gives(name: str) -> None:
    model = Canonicalize()(FORMS[name].pair()[1]).model
    size = fixed_batch_size(input_specs(model)) or 3
    feeds = {key: value[:size] for key, value in FORMS[name].samples(seed=5).items()}
    precise, given = model, feeds
    if name not in TOLERANCE:
        # How PyTorch rounds depends on the processor and its threads, and Softmax enlarges that: so
        # in double precision, which leaves the rounding of the runtime alone.
        precise = at_least(model, onnx.TensorProto.DOUBLE)
        given = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
    found = in_torch(precise, given)
    for key, expected in run(model, feeds).items():
        assert found[key].shape == expected.shape
        difference = np.abs(found[key].astype(float) - expected.astype(float)).max()
        limit = TOLERANCE.get(name, 3e-6) * np.abs(expected.astype(float)).max()
        assert difference <= limit, key


@pytest.mark.parametrize("name", REFUSED)
def test_other_forms_are_refused_by_the_operator(name: str) -> None:
    model = Canonicalize()(FORMS[name].pair()[1]).model
    with pytest.raises(
        ModelError, match=rf"^m: .* its node '.*' \({REFUSED[name]}\) cannot be used there: "
    ):
        check_runs(model, "m", [output.name for output in model.graph.output])


def test_a_value_stands_in_for_its_slots() -> None:
    model = build(
        "m (float[n,2] x) => (float[n,3] y) <float[2,2] w, float[2,3] v> "
        "{ a = Gemm(x, w) b = Relu(a) c = Gemm(b, w) y = Gemm(c, v) }"
    )
    one, other = torch.eye(2, requires_grad=True), torch.ones(3, requires_grad=True)
    slots = [Slot("a", 1), Slot("c", 1)], [Slot("y", 2)]
    graph = TorchGraph(model, "m", ["y"], slots)
    x = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    v = in_torch(model, {"x": x.numpy()})  # the model itself is as it was
    y = graph.run({"x": x}, [one, other])["y"]
    matrix = TorchGraph(model, "m", ["v"]).run({})["v"]
    torch.testing.assert_close(y, x.relu() @ matrix + 1)
    assert not np.allclose(v["y"], y.detach().numpy())
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert other.grad is not None
    torch.testing.assert_close(other.grad, torch.full((3,), 2.0))
    w = torch.eye(2, requires_grad=True)
    (((x @ w).relu() @ w) @ matrix).sum().backward()  # type: ignore[no-untyped-call]
    assert one.grad is not None
    assert w.grad is not None
    torch.testing.assert_close(one.grad, w.grad)


def test_a_run_that_fails_names_the_node() -> None:
    model = build("m (float[n,k] x) => (float[n,3] y) <float[2,3] w> { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match=r"^model: PyTorch cannot run its node 'y' \("):
        in_torch(model, {"x": np.ones((2, 5), np.float32)})


def test_a_sparse_initializer_is_refused() -> None:
    model = build("m (float[n,2] x) => (float[n,2] y) <float[2,2] w> { y = MatMul(x, w) }")
    (tensor,) = model.graph.initializer
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    del model.graph.initializer[:]
    with pytest.raises(ModelError, match="its initializer 'w' cannot be used there: it is sparse"):
        TorchGraph(model, "m", ["y"])
