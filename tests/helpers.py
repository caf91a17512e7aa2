"""What tests of graphs share: models from text, seeded values, ONNX Runtime, tight comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fskd_onnx.options import FitOptions
from fskd_onnx.passes import AffineMap, FuseAdapter, InsertAdapter
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.random_nodes import bodies_of
from fskd_onnx.passes.analysis.shared_weights import find_uses
from fskd_onnx.passes.separate_weights import Separated
from fskd_onnx.pipeline.problem import FitProblem
from fskd_onnx.pipeline.problem_setup import load_inputs, prepare
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.sources import SampleSource
from fskd_onnx.serialization.model_files import ModelSource

Array = NDArray[Any]

DEMO = Path(__file__).parents[1] / "models" / "demo"
ZOO = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
TOLERANCE = {np.dtype(np.float16): 5e-3, np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}


def build(
    text: str, values: Mapping[str, Any] | None = None, seed: int = 0, opset: int = 17, ir: int = 8
) -> onnx.ModelProto:
    """Parse a model; names in the list behind the outputs that have no value get a random one.

    Args:
        text: a graph, or a whole model if it begins with ``<``.
        values: values of some initializers; the types are those of the text.
        seed: of the other values.
        opset: version of the operators, where the text is only a graph.
        ir: version of the format, where the text is only a graph.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: {ir}, opset_import: ["": {opset}]> {text}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    _fill(model.graph, rng, values or {}, as_inputs=model.ir_version < 4)
    check(model)
    return model


def _fill(
    graph: onnx.GraphProto, rng: np.random.Generator, values: Mapping[str, Any], as_inputs: bool
) -> None:
    """Make initializers of what a graph states the type of and no node computes."""
    made = {name for node in graph.node for name in node.output}
    for info in list(graph.value_info):
        if info.name in made:
            continue
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        value = values.get(info.name)
        value = random_weight(rng, shape) if value is None else value
        tensor = numpy_helper.from_array(np.array(value, dtype).reshape(shape), info.name)
        graph.initializer.append(tensor)
        graph.value_info.remove(info)
        if as_inputs:
            graph.input.append(info)
    for node in graph.node:
        for body in bodies_of(node):
            _fill(body, rng, values, as_inputs=False)


def random_weight(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Matrices and kernels that keep the variance of activations; vectors between 0.5 and 1.5."""
    if len(shape) < 2:
        return rng.uniform(0.5, 1.5, shape)
    return np.asarray(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])))


def check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)


def ops(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node))


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def random_feeds(model: onnx.ModelProto, seed: int = 1, batch: int = 3) -> dict[str, Array]:
    """Values for the inputs that need one; open dimensions get the size ``batch``."""
    rng = np.random.default_rng(seed)
    given = {tensor.name for tensor in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in given:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = np.asarray(rng.standard_normal(shape), dtype)
    return feeds


def joined(apart: Separated) -> onnx.ModelProto:
    """Put the weights of a model back into it."""
    model = onnx.ModelProto()
    model.CopyFrom(apart.model)
    for tensor in model.graph.initializer:
        if tensor.name in apart.weights:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = apart.weights[tensor.name].tobytes()
    return model


def at_least(model: onnx.ModelProto, kind: onnx.TensorProto.DataType) -> onnx.ModelProto:
    """Give the same network, floats of a lower precision replaced."""
    precisions = [onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE]
    lower = precisions[: precisions.index(kind)]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.name == "value")):
        if tensor.data_type in lower:
            values = onnx.numpy_helper.to_array(tensor)
            values = values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in lower:
            value.type.tensor_type.elem_type = kind
    for attribute in attributes:
        if attribute.name == "to" and attribute.i in lower:
            attribute.i = kind
    return copy


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the graph as it is written, without ONNX Runtime's own rewrites.

    ONNX Runtime has no convolution and no BatchNormalization in float64 on the CPU; ONNX's
    reference has.
    """
    types = {tensor.data_type for tensor in model.graph.initializer}
    if onnx.TensorProto.DOUBLE in types and {"Conv", "ConvTranspose"} & ops(model).keys():
        reference = ReferenceEvaluator(model)
        return dict(zip(reference.output_names, reference.run(None, dict(feeds)), strict=True))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_close(one: Mapping[str, Array], other: Mapping[str, Array]) -> None:
    """Compare outputs to rounding, relative to the largest value of each."""
    assert list(one) == list(other)
    for name, expected in other.items():
        value = one[name]
        assert value.dtype == expected.dtype
        assert value.shape == expected.shape
        assert np.isfinite(expected).all()
        if value.size == 0 or expected.dtype not in TOLERANCE:
            np.testing.assert_array_equal(value, expected)
            continue
        scale = max(float(np.abs(expected).max()), np.finfo(expected.dtype).tiny)
        difference = np.abs(value.astype(np.float64) - expected.astype(np.float64)).max()
        assert difference <= TOLERANCE[expected.dtype] * scale, name


def assert_same_function(one: onnx.ModelProto, other: onnx.ModelProto, seed: int = 1) -> None:
    """Check both models and compare their outputs on random inputs."""
    check(one)
    check(other)
    feeds = random_feeds(other, seed)
    assert_close(run(one, feeds), run(other, feeds))


def linears(model: onnx.ModelProto) -> dict[str, Linear]:
    views = find_linear(gs.import_onnx(model))
    return {view.name: view for view in views if isinstance(view, Linear)}


def random_adapters(
    model: onnx.ModelProto, seed: int = 2, widest: int = 512
) -> dict[str, AffineMap]:
    """An adapter near the identity for each block: the same one behind all of its uses."""
    rng = np.random.default_rng(seed)
    adapters: dict[str, AffineMap] = {}
    views = linears(model)
    for name, uses in find_uses(list(views.values())).items():
        linear = views[name]
        if linear.width > widest or name in adapters:
            continue
        n = linear.width // linear.groups
        noise = rng.standard_normal((linear.groups, n, n)) / np.sqrt(n) / 4
        new = AffineMap(np.eye(n) + noise, rng.standard_normal(linear.shape[:2]) / 4)
        adapters |= {use.name: new for use in uses}
    return adapters


def insert_and_fuse(
    model: onnx.ModelProto, adapters: Mapping[str, AffineMap]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    explicit = InsertAdapter(adapters)(model)
    fused = FuseAdapter()(explicit.model)
    assert explicit.changed == fused.changed == bool(adapters)
    assert len(explicit.notes) == len(fused.notes) == len(adapters)
    return explicit.model, fused.model


# Of fully connected layers in the model zoo; the weights behind it are most of their networks.
_WIDEST, _NARROWED = 4096, 64
_CLASSES = 1000


def zoo_model(name: str, divisor: int = 4) -> onnx.ModelProto:
    """A model-zoo graph with seeded weights in place of its nodes that make constant ones.

    The input of a final Softmax, which hides differences, becomes an output. Its widest layers are
    narrowed, and all its widths divided, so as to keep the test small: the graph is what counts.

    Args:
        name: as the ``onnx`` package calls it.
        divisor: of all numbers of channels but those of the input and of the classes. ShuffleNet,
            whose groups and Reshapes depend on them, keeps its own.
    """
    divisor = 1 if name == "shufflenet" else divisor

    def narrow(extent: int) -> int:
        if extent == _WIDEST:
            return _NARROWED
        wide = extent % divisor == 0 and extent != _CLASSES and extent > divisor
        return extent // divisor if wide else extent

    model = onnx.load(ZOO / f"light_{name}.onnx")
    stored, rng = initializers(model), np.random.default_rng(0)
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    values: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = [narrow(extent) for extent in stored[node.input[0]].tolist()]
            values[node.output[0]] = np.asarray(random_weight(rng, shape), np.float32)
        elif node.op_type == "Reshape":
            shape = [narrow(extent) for extent in stored[node.input[1]].tolist()]
            values[node.input[1]] = np.array(shape)
    for key, value in stored.items():
        if value.ndim == 1 and value.dtype == np.float32:
            values[key] = value[: narrow(len(value))]
    for key, value in values.items():
        for known in (model.graph.initializer, model.graph.input):
            for old in [entry for entry in known if entry.name == key]:
                known.remove(old)
        tensor = numpy_helper.from_array(value, key)
        model.graph.initializer.append(tensor)
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(key, tensor.data_type, value.shape)
        )
    if nodes[-1].op_type == "Softmax":
        logits = onnx.ValueInfoProto()
        logits.CopyFrom(model.graph.output[0])
        logits.name = nodes[-1].input[0]
        model.graph.output.append(logits)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def prepared(
    teacher: ModelSource, student: ModelSource, samples: SampleSource, options: FitOptions
) -> FitProblem:
    """Give what a fit starts from, all of it kept in memory."""
    return prepare(*load_inputs(teacher, student, samples, options.run), options, TensorStore())
