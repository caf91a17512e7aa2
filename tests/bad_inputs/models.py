"""Bad models: what is no model, and what is wrong in one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.bad_inputs.row import COMPARE, FIT, Row, Table

ROWS: list[Row] = []
_bad = Table(ROWS)
_HUGE = 10**12


def _initializer(model: onnx.ModelProto, name: str = "w1") -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _set(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


# --- what is no model ---


@_bad("nowhere.onnx", "no such file", arguments=("fit", "nowhere.onnx", *FIT[2:]))
def missing_teacher(folder: Path) -> None:
    pass


@_bad("nowhere.onnx", "no such file", arguments=("match", "teacher.onnx", "nowhere.onnx"))
def missing_student(folder: Path) -> None:
    pass


@_bad("student.onnx", "is a folder; give an ONNX file")
def folder_as_model(folder: Path) -> None:
    (folder / "student.onnx").unlink()
    (folder / "student.onnx").mkdir()


@_bad("student.onnx", "empty")
def empty_model(folder: Path) -> None:
    (folder / "student.onnx").write_bytes(b"")


@_bad("teacher.onnx", "is not an ONNX file")
def text_as_model(folder: Path) -> None:
    (folder / "teacher.onnx").write_text("# a list of networks\nresnet\n")


@_bad("teacher.onnx", "is not an ONNX file")
def zeros_as_model(folder: Path) -> None:
    (folder / "teacher.onnx").write_bytes(bytes(4096))


@_bad("teacher.onnx", "is not an ONNX file")
def noise_as_model(folder: Path) -> None:
    (folder / "teacher.onnx").write_bytes(np.random.default_rng(0).bytes(4096))


@_bad("samples.npy", "is not", arguments=("fit", "samples.npy", *FIT[2:]))
def samples_as_model(folder: Path) -> None:
    pass


@_bad("student.onnx")
def tensor_as_model(folder: Path) -> None:
    tensor = numpy_helper.from_array(np.arange(6.0), "t")
    (folder / "student.onnx").write_bytes(tensor.SerializeToString())


@_bad("student.onnx")
def graph_as_model(folder: Path) -> None:
    graph = onnx.load(folder / "student.onnx").graph
    (folder / "student.onnx").write_bytes(graph.SerializeToString())


def _truncated(part: float) -> None:
    def spoil(folder: Path) -> None:
        data = (folder / "student.onnx").read_bytes()
        (folder / "student.onnx").write_bytes(data[: int(len(data) * part)])

    _bad.add(f"truncated-to-{part:.0%}", spoil, "student.onnx")


for _part in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
    _truncated(_part)


def _special(path: str, place: str, words: tuple[str, ...] = ("regular file",)) -> None:
    def spoil(folder: Path) -> None:
        (folder / place).unlink()
        if path == "fifo":
            os.mkfifo(folder / place)
        else:
            (folder / place).symlink_to(path)

    what = path.replace("/", "-").strip("-")
    _bad.add(f"{what}-as-{place.split('.')[0]}", spoil, place, *words)


for _path in ("fifo", "/dev/zero", "/dev/urandom", "/dev/null", "/dev/tty"):
    _special(_path, "student.onnx")
_special("fifo", "teacher.onnx")


# --- parts that are missing ---


@_bad.model("graph")
def no_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


@_bad.model("'y'")
def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


@_bad.model("output")
def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@_bad.model("input")
def no_inputs(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


@_bad.model("opset")
def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


@_bad.model("'w1'", "'first'", "initializer")
def no_initializers(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


@_bad.model("initializers")
def initializer_without_name(model: onnx.ModelProto) -> None:
    _initializer(model, "w2").name = ""


@_bad.model()
def output_without_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].ClearField("type")


@_bad.model("x")
def input_without_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


@_bad.model("Conv")
def node_without_inputs(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[:]


@_bad.model("Conv")
def node_without_outputs(model: onnx.ModelProto) -> None:
    del model.graph.node[0].output[:]


@_bad.model("'first'", "Conv")
def conv_without_weights(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[1:]


# --- structure ---


@_bad.model()
def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "c"


@_bad.model()
def node_reads_itself(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "r"


@_bad.model("nothing")
def input_that_nothing_writes(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nothing"


@_bad.model("nothing")
def output_that_nothing_writes(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nothing"


@_bad.model("'r'")
def tensor_written_twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["a"], ["r"]))


@_bad.model("w1")
def initializers_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w1"))


@_bad.model("x")
def inputs_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


@_bad.model("2 outputs")
def outputs_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


@_bad.model("Wobble")
def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Wobble"


@_bad.model("acme")
def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "acme"


@_bad.model("acme", "Wobble")
def unknown_operator_of_imported_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "acme", "Wobble"
    model.opset_import.add(domain="acme", version=1)


@_bad.model("999")
def opset_of_the_future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


@_bad.model("-3")
def negative_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = -3


@_bad.model("version 0")
def opset_0(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 0


@_bad.model()
def format_of_the_future(model: onnx.ModelProto) -> None:
    model.ir_version = 999


@_bad.model()
def format_0(model: onnx.ModelProto) -> None:
    model.ir_version = 0


# --- tensors ---


@_bad.model("w1", "byte")
def raw_data_too_long(model: onnx.ModelProto) -> None:
    _initializer(model).raw_data += b"1234"


@_bad.model("w1", "byte")
def raw_data_too_short(model: onnx.ModelProto) -> None:
    _initializer(model).raw_data = _initializer(model).raw_data[:-4]


@_bad.model("w1", "byte")
def raw_data_no_multiple_of_an_element(model: onnx.ModelProto) -> None:
    _initializer(model).raw_data += b"x"


@_bad.model("w1")
def no_raw_data(model: onnx.ModelProto) -> None:
    _initializer(model).ClearField("raw_data")


@_bad.model("w1")
def raw_data_and_float_data(model: onnx.ModelProto) -> None:
    _initializer(model).float_data.extend([1.0, 2.0])


@_bad.model("w1")
def float_data_too_short(model: onnx.ModelProto) -> None:
    _initializer(model).ClearField("raw_data")
    _initializer(model).float_data.extend([1.0, 2.0])


@_bad.model("w1")
def values_of_another_type(model: onnx.ModelProto) -> None:
    _initializer(model).ClearField("raw_data")
    _initializer(model).int64_data.extend(range(72))


@_bad.model("w1")
def negative_dimension(model: onnx.ModelProto) -> None:
    _initializer(model).dims[0] = -4


@_bad.model("w1")
def two_negative_dimensions(model: onnx.ModelProto) -> None:
    _initializer(model).dims[0] = -4
    _initializer(model).dims[1] = -2


@_bad.model("w1")
def huge_dimension(model: onnx.ModelProto) -> None:
    _initializer(model).dims[0] = _HUGE


@_bad.model("w1")
def dimensions_that_overflow(model: onnx.ModelProto) -> None:
    _initializer(model).dims[:] = [2**33, 2**33, 3, 3]


@_bad.model("w1")
def dimension_of_zero(model: onnx.ModelProto) -> None:
    _initializer(model).dims[0] = 0


@_bad.model("'first'")
def other_rank(model: onnx.ModelProto) -> None:
    dims = list(_initializer(model).dims)
    _initializer(model).dims[:] = [dims[0], int(np.prod(dims[1:]))]


@_bad.model("'first'", "channels")
def weights_of_another_shape(model: onnx.ModelProto) -> None:
    _initializer(model).CopyFrom(numpy_helper.from_array(np.ones((4, 5, 3, 3), np.float32), "w1"))


@_bad.model("b1")
def bias_of_another_width(model: onnx.ModelProto) -> None:
    _initializer(model, "b1").CopyFrom(numpy_helper.from_array(np.ones(7, np.float32), "b1"))


@_bad.model("w1", "99")
def type_99(model: onnx.ModelProto) -> None:
    _initializer(model).data_type = 99


@_bad.model("w1")
def undefined_type(model: onnx.ModelProto) -> None:
    _initializer(model).data_type = TensorProto.UNDEFINED


@_bad.model()
def weights_of_another_type(model: onnx.ModelProto) -> None:
    value = numpy_helper.to_array(_initializer(model)).astype(np.float64)
    _initializer(model).CopyFrom(numpy_helper.from_array(value, "w1"))


@_bad.model()
def weights_of_strings(model: onnx.ModelProto) -> None:
    words = np.full((4, 2, 3, 3), "a", dtype=object)
    _initializer(model).CopyFrom(numpy_helper.from_array(words, "w1"))


@_bad.model("w1", "NaN")
def nan_weight(model: onnx.ModelProto) -> None:
    _not_finite(model, "w1", np.nan)


@_bad.model("b2", "NaN or infinite")
def infinite_bias(model: onnx.ModelProto) -> None:
    _not_finite(model, "b2", np.inf)


@_bad.model("w3", "NaN or infinite", file="teacher.onnx")
def infinite_weight_of_the_teacher(model: onnx.ModelProto) -> None:
    _not_finite(model, "w3", -np.inf)


def _not_finite(model: onnx.ModelProto, name: str, value: float) -> None:
    values = numpy_helper.to_array(_initializer(model, name)).copy()
    values.flat[0] = value
    _initializer(model, name).CopyFrom(numpy_helper.from_array(values, name))


@_bad.model("x", "99")
def input_of_type_99(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


@_bad("input 'x'", "teacher.onnx", "numbers at once")
def huge_dimension_of_an_input(folder: Path) -> None:
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = _HUGE
        (folder / file).write_bytes(model.SerializeToString())


@_bad("input 'x'", "teacher.onnx", "numbers at once")
def huge_batch(folder: Path) -> None:
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = _HUGE
        (folder / file).write_bytes(model.SerializeToString())


# --- attributes ---


@_bad.model("'first'", "group")
def group_0(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 0)


@_bad.model("'first'", "group")
def negative_group(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", -1)


@_bad.model("'first'", "group")
def group_that_does_not_divide(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 3)


@_bad.model("'first'", "group")
def group_that_does_not_suit_the_input(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 2)


@_bad.model("'first'", "kernel_shape")
def kernel_shape_that_does_not_suit_the_weights(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "kernel_shape", [5, 5])


@_bad.model("'first'")
def kernel_shape_of_three_axes(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "kernel_shape", [3, 3, 3])


@_bad.model("'first'", "strides")
def strides_of_0(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "strides", [0, 0])


@_bad.model("'first'", "dilations")
def dilations_of_0(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "dilations", [0, 0])


@_bad.model("'first'", "pads")
def negative_pads(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "pads", [-9, -9, -9, -9])


@_bad.model("'first'")
def huge_pads(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "pads", [_HUGE] * 4)


@_bad.model("'first'", "auto_pad")
def unknown_padding(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "auto_pad", "SOMEHOW")


@_bad.model("group")
def attribute_of_another_type(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", "two")


@_bad.model("wobble")
def unknown_attribute(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "wobble", 1)


@_bad.model()
def attribute_without_a_type(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(AttributeProto(name="group", i=1))


@_bad.model("'first'", "group")
def group_of_weights_behind_an_identity(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 3)
    _behind(model, helper.make_node("Identity", ["w1"], ["seen"], "same"))


@_bad.model("'first'", "group")
def group_of_weights_behind_a_cast(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 3)
    value = numpy_helper.to_array(_initializer(model)).astype(np.float16)
    _initializer(model).CopyFrom(numpy_helper.from_array(value, "w1"))
    _behind(model, helper.make_node("Cast", ["w1"], ["seen"], "cast", to=TensorProto.FLOAT))


@_bad.model("'first'", "group")
def group_of_weights_that_are_computed(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 3)
    _behind(model, helper.make_node("Neg", ["w1"], ["seen"], "negated"))


@_bad.model("'first'", "group")
def group_of_weights_in_a_node(model: onnx.ModelProto) -> None:
    _set(model.graph.node[0], "group", 0)
    _behind(model, helper.make_node("Constant", [], ["seen"], "held", value=_initializer(model)))


def _behind(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Let the first convolution read its weights from a node."""
    model.graph.node[0].input[1] = node.output[0]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([node, *rest])


@_bad.model("'norm'")
def normalisation_of_other_widths(model: onnx.ModelProto) -> None:
    for name, width in (("scale", 4), ("shift", 5), ("mean", 4), ("var", 4)):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(width, np.float32), name))
    inputs = ["s", "scale", "shift", "mean", "var"]
    _insert(model, helper.make_node("BatchNormalization", inputs, ["a"], "norm"))


@_bad.model("'norm'")
def normalisation_of_another_width_than_its_input(model: onnx.ModelProto) -> None:
    for name in ("scale", "shift", "mean", "var"):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), name))
    inputs = ["s", "scale", "shift", "mean", "var"]
    _insert(model, helper.make_node("BatchNormalization", inputs, ["a"], "norm"))


@_bad.model("'more'")
def transposed_convolution_of_other_channels(model: onnx.ModelProto) -> None:
    kernel = np.ones((7, 4, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    _insert(model, helper.make_node("ConvTranspose", ["s", "k"], ["a"], "more"))


@_bad.model("'more'", "bias")
def transposed_convolution_of_another_bias(model: onnx.ModelProto) -> None:
    kernel = np.ones((4, 4, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "kb"))
    _insert(model, helper.make_node("ConvTranspose", ["s", "k", "kb"], ["a"], "more"))


def _insert(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Put a node that reads 's' and writes 'a' behind the first convolution."""
    model.graph.node[0].output[0] = "s"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([rest[0], node, *rest[1:]])


@_bad.model("'last'")
def gemm_of_another_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(9, np.float32), "b3"))
    model.graph.node[5].input.append("b3")


@_bad.model("alpha")
def gemm_that_scales_by_text(model: onnx.ModelProto) -> None:
    _set(model.graph.node[5], "alpha", "much")


@_bad.model("'last'")
def gemm_of_other_sizes(model: onnx.ModelProto) -> None:
    _set(model.graph.node[5], "transB", 1)


@_bad.model("'flat'")
def axis_out_of_range(model: onnx.ModelProto) -> None:
    _set(model.graph.node[4], "axis", 17)


# --- nodes that ask for much ---


def _prepend(model: onnx.ModelProto, *nodes: onnx.NodeProto, **values: object) -> None:
    """Put nodes in front of all others; the first Relu reads the tensor 'big' as well."""
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for node in rest:
        if node.name == "active":
            model.graph.node.append(helper.make_node("Add", ["a", "big"], ["s"], "sum"))
            node.input[0] = "s"
        model.graph.node.append(node)


@_bad.model()
def constant_of_huge_shape(model: onnx.ModelProto) -> None:
    _prepend(model, helper.make_node("ConstantOfShape", ["n"], ["big"], "filled"), n=[_HUGE])


@_bad.model()
def constant_of_negative_shape(model: onnx.ModelProto) -> None:
    _prepend(model, helper.make_node("ConstantOfShape", ["n"], ["big"], "filled"), n=[-5])


@_bad.model()
def expand_to_huge_shape(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Expand", ["one", "n"], ["big"], "expanded"),
        n=[_HUGE, 1, 1, 1],
        one=np.ones((1, 1, 1, 1), np.float32),
    )


@_bad.model()
def huge_tile(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Tile", ["one", "n"], ["big"], "tiled"),
        n=[_HUGE, 1, 1, 1],
        one=np.ones((1, 1, 1, 1), np.float32),
    )


@_bad.model()
def huge_range(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Range", ["zero", "n", "one"], ["big"], "counted"),
        zero=np.float32(0),
        one=np.float32(1),
        n=np.float32(_HUGE),
    )


@_bad.model()
def huge_pad(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Pad", ["one", "n"], ["big"], "padded"),
        n=[0, 0, 0, 0, _HUGE, 0, 0, 0],
        one=np.ones((1, 1, 1, 1), np.float32),
    )


@_bad.model()
def huge_resize(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Resize", ["x", "", "n"], ["big"], "resized"),
        n=np.array([1, 1, 1e6, 1e6], np.float32),
    )


@_bad.model()
def reshape_to_another_size(model: onnx.ModelProto) -> None:
    _prepend(model, helper.make_node("Reshape", ["x", "n"], ["big"], "reshaped"), n=[7, 7])


@_bad.model()
def constants_that_do_not_fit(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Add", ["one", "two"], ["big"], "added"),
        one=np.ones((2, 3), np.float32),
        two=np.ones((4, 5), np.float32),
    )


@_bad.model()
def gather_out_of_range(model: onnx.ModelProto) -> None:
    _prepend(
        model,
        helper.make_node("Gather", ["table", "n"], ["big"], "looked_up"),
        n=[99],
        table=np.ones(3, np.float32),
    )


# --- bodies and functions ---


def _body(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("big",)) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    return helper.make_graph(nodes, "body", [], values)


@_bad.model()
def if_without_branches(model: onnx.ModelProto) -> None:
    _prepend(model, helper.make_node("If", ["yes"], ["big"], "choice"), yes=True)


@_bad.model("nothing")
def if_whose_branch_reads_nothing(model: onnx.ModelProto) -> None:
    body = _body(helper.make_node("Relu", ["nothing"], ["big"]))
    node = helper.make_node("If", ["yes"], ["big"], "choice", then_branch=body, else_branch=body)
    _prepend(model, node, yes=True)


@_bad.model()
def if_whose_branch_gives_nothing(model: onnx.ModelProto) -> None:
    body = _body(outputs=())
    node = helper.make_node("If", ["yes"], ["big"], "choice", then_branch=body, else_branch=body)
    _prepend(model, node, yes=True)


@_bad.model()
def loop_whose_body_has_no_condition(model: onnx.ModelProto) -> None:
    body = _body(helper.make_node("Relu", ["x"], ["big"]))
    node = helper.make_node("Loop", ["n", ""], ["big"], "loop", body=body)
    _prepend(model, node, n=np.int64(3))


def _nested(depth: int) -> onnx.GraphProto:
    body = _body(helper.make_node("Relu", ["x"], ["big"]))
    for _ in range(depth):
        body = _body(
            helper.make_node("If", ["yes"], ["big"], then_branch=body, else_branch=_relu())
        )
    return body


def _relu() -> onnx.GraphProto:
    return _body(helper.make_node("Relu", ["x"], ["big"]))


def _deep(depth: int) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        node = helper.make_node(
            "If", ["yes"], ["big"], "choice", then_branch=_nested(depth), else_branch=_relu()
        )
        _prepend(model, node, yes=True)

    spoil.__name__ = f"bodies_{depth}_deep"
    _bad.model()(spoil)


_deep(28)


def _function(name: str, *calls: str) -> onnx.FunctionProto:
    nodes = [helper.make_node(call, ["a"], ["b"], domain="acme") for call in calls]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_function("acme", name, ["a"], ["b"], nodes, opsets)


def _call(model: onnx.ModelProto, *functions: onnx.FunctionProto) -> None:
    model.functions.extend(functions)
    model.opset_import.add(domain="acme", version=1)
    _prepend(model, helper.make_node(functions[0].name, ["x"], ["big"], "call", domain="acme"))


@_bad.model("Self")
def function_that_calls_itself(model: onnx.ModelProto) -> None:
    _call(model, _function("Self", "Self"))


@_bad.model()
def functions_that_call_each_other(model: onnx.ModelProto) -> None:
    _call(model, _function("One", "Other"), _function("Other", "One"))


@_bad.model("Gone")
def function_that_calls_nothing(model: onnx.ModelProto) -> None:
    _call(model, _function("One", "Gone"))


@_bad.model()
def functions_of_one_name(model: onnx.ModelProto) -> None:
    _call(model, _function("One", "Gone"), _function("One", "Gone"))


@_bad.model()
def functions_that_multiply(model: onnx.ModelProto) -> None:
    """30 functions, each calls the next one twice: 2^30 nodes when they are inlined."""
    chain = []
    for number in range(30):
        called = f"F{number + 1}"
        nodes = [
            helper.make_node(called, ["a"], ["m"], domain="acme"),
            helper.make_node(called, ["m"], ["b"], domain="acme"),
        ]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
        chain.append(helper.make_function("acme", f"F{number}", ["a"], ["b"], nodes, opsets))
    leaf = [helper.make_node("Relu", ["a"], ["b"])]
    chain.append(
        helper.make_function("acme", "F30", ["a"], ["b"], leaf, [helper.make_opsetid("", 17)])
    )
    _call(model, *chain)


# --- sparse tensors ---


def _sparse(model: onnx.ModelProto, indices: list[int], dims: list[int], count: int) -> None:
    values = numpy_helper.from_array(np.ones(count, np.float32), "w3")
    places = numpy_helper.from_array(np.array(indices, np.int64), "w3_indices")
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "w3"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, dims))


@_bad.model("w3")
def sparse_index_out_of_range(model: onnx.ModelProto) -> None:
    _sparse(model, [0, 99], [4, 3], 2)


@_bad.model("w3")
def sparse_of_too_few_indices(model: onnx.ModelProto) -> None:
    _sparse(model, [0], [4, 3], 2)


@_bad.model("w3")
def negative_sparse_index(model: onnx.ModelProto) -> None:
    _sparse(model, [-1, 3], [4, 3], 2)


@_bad.model("'last'")
def sparse_of_huge_shape(model: onnx.ModelProto) -> None:
    _sparse(model, [0, 3], [_HUGE, 3], 2)


# --- kinds of inputs and outputs ---


def _with_types(model: onnx.ModelProto, type_: onnx.TypeProto) -> None:
    model.graph.input[0].type.CopyFrom(type_)


@_bad("teacher.onnx", "input 'x'", "sequence")
def input_of_a_sequence(folder: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    _both(folder, "SequenceAt", helper.make_sequence_type_proto(tensor))


@_bad("teacher.onnx", "input 'x'", "optional")
def input_that_is_optional(folder: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    _both(folder, "OptionalGetElement", helper.make_optional_type_proto(tensor))


def _both(folder: Path, operator: str, type_: onnx.TypeProto) -> None:
    """Let both networks take their input out of something."""
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        inputs = ["x", "zero"] if operator == "SequenceAt" else ["x"]
        model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
        model.graph.node[0].input[0] = "taken"
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([helper.make_node(operator, inputs, ["taken"]), *rest])
        model.graph.input[0].type.CopyFrom(type_)
        (folder / file).write_bytes(model.SerializeToString())


@_bad("teacher.onnx", "input 'x'", "strings")
def input_of_strings(folder: Path) -> None:
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
        model.graph.node[0].input[0] = "numbers"
        cast = helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT)
        rest = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([cast, *rest])
        (folder / file).write_bytes(model.SerializeToString())


def _only_output(folder: Path, node: onnx.NodeProto, type_: onnx.TypeProto) -> None:
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        model.graph.node.append(node)
        model.graph.output[0].name = node.output[0]
        model.graph.output[0].type.CopyFrom(type_)
        (folder / file).write_bytes(model.SerializeToString())


@_bad("teacher.onnx", "'o': it holds no numbers")
def only_output_is_strings(folder: Path) -> None:
    node = helper.make_node("Cast", ["y"], ["o"], to=TensorProto.STRING)
    _only_output(folder, node, helper.make_tensor_type_proto(TensorProto.STRING, ["N", 3]))


@_bad("teacher.onnx", "'o': it holds no numbers")
def only_output_is_a_sequence(folder: Path) -> None:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    node = helper.make_node("SequenceConstruct", ["y"], ["o"])
    _only_output(folder, node, helper.make_sequence_type_proto(tensor))


@_bad("teacher.onnx", "'o': it holds no numbers", arguments=COMPARE)
def only_output_is_a_sequence_of_maps(folder: Path) -> None:
    """The ZipMap that scikit-learn's exporter puts behind its classifiers."""
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        model.opset_import.add(domain="ai.onnx.ml", version=3)
        (folder / file).write_bytes(model.SerializeToString())
    node = helper.make_node(
        "ZipMap", ["y"], ["o"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
    )
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    type_ = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, tensor))
    _only_output(folder, node, type_)


@_bad("teacher.onnx", "'o': it is the same", arguments=COMPARE)
def only_output_is_the_same_for_all(folder: Path) -> None:
    node = helper.make_node("Shape", ["w1"], ["o"])
    _only_output(folder, node, helper.make_tensor_type_proto(TensorProto.INT64, [4]))


@_bad.model("random")
def random_output(model: onnx.ModelProto) -> None:
    _prepend(model, helper.make_node("RandomNormal", [], ["big"], "noise", shape=[1, 1, 1, 1]))


# --- teacher and student that do not fit ---


@_bad.model("takes other inputs", "teacher.onnx")
def student_of_other_images(model: onnx.ModelProto) -> None:
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 9


@_bad.model("takes other inputs", "teacher.onnx")
def student_of_another_type(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]


@_bad.model("has 2 outputs", "teacher.onnx")
def student_of_two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 4, 1, 1]))


@_bad.model("takes other inputs")
def student_of_two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2]))


@_bad.model()
def student_of_other_classes(model: onnx.ModelProto) -> None:
    _initializer(model, "w3").CopyFrom(numpy_helper.from_array(np.ones((4, 5), np.float32), "w3"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


@_bad.model("no block")
def student_without_weights(model: onnx.ModelProto) -> None:
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Concat", ["f", "one"], ["y"], axis=1),
        ]
    )
    model.graph.node[2].input[1] = "f"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    del model.graph.value_info[:]


def batch_in_reshape(folder: Path, size: int) -> None:
    """Write a batch size into a Reshape, while the input takes any."""
    for file in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / file)
        model.graph.initializer.append(numpy_helper.from_array(np.array([size, 4]), "shape"))
        node = model.graph.node[4]
        node.op_type = "Reshape"
        node.input.append("shape")
        (folder / file).write_bytes(model.SerializeToString())


@_bad("teacher.onnx", "--batch-size 4")
def batch_in_a_reshape(folder: Path) -> None:
    batch_in_reshape(folder, 4)


@_bad("student.onnx", "--batch-size 4", arguments=(*FIT, "--batch-size", "8"))
def other_batch_in_the_reshape_of_the_student(folder: Path) -> None:
    teacher = (folder / "teacher.onnx").read_bytes()
    batch_in_reshape(folder, 4)
    (folder / "teacher.onnx").write_bytes(teacher)


# --- external data ---


def _external(
    location: str = "weights.bin", offset: object = 0, length: object = 288, **further: str
) -> object:
    def change(model: onnx.ModelProto) -> None:
        tensor = _initializer(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        entries = {"location": location, "offset": offset, "length": length, **further}
        for key, value in entries.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))

    return change


def _outside(name: str, *words: str, size: int = 288, **entries: object) -> None:
    def spoil(folder: Path) -> None:
        if size >= 0:
            (folder / "weights.bin").write_bytes(bytes(size))
        model = onnx.load(folder / "student.onnx")
        _external(**entries)(model)  # type: ignore[arg-type,operator]
        (folder / "student.onnx").write_bytes(model.SerializeToString())

    _bad.add(f"external-{name}", spoil, *words)


_outside("missing", "student.onnx", "weights.bin", size=-1)
_outside("short", "weights.bin", size=100, length=None)
_outside("shorter-than-stated", "weights.bin", size=100)
_outside("empty", "weights.bin", size=0)
_outside("length-too-short", "student.onnx", "w1", length=4)
_outside("length-too-long", "student.onnx", "w1", size=400, length=400)
_outside("huge-length", "student.onnx", "w1", length=10**15)
_outside("negative-length", "student.onnx", "w1", "length", length=-4)
_outside("length-no-number", "student.onnx", "w1", "length", "much", length="much")
_outside("huge-offset", "weights.bin", offset=10**15)
_outside("offset-past-64-bits", "student.onnx", "w1", offset=10**30)
_outside("negative-offset", "student.onnx", "w1", "offset", offset=-4)
_outside("offset-no-number", "student.onnx", "w1", "offset", "abc", offset="abc")
_outside("absolute", "student.onnx", "/etc/hostname", location="/etc/hostname")
_outside("outside", "student.onnx", "../weights.bin", location="../weights.bin")
_outside("nowhere", "student.onnx", "w1", location=None)
_outside("empty-location", "student.onnx", "w1", location="")
_outside("folder", "student.onnx", "w1", "'.'", location=".")
_outside("nul-in-location", "student.onnx", "w1", location="a\0b")
_outside("long-location", "student.onnx", location="a" * 5000)


@_bad("fifo.bin", "named pipe")
def external_fifo(folder: Path) -> None:
    os.mkfifo(folder / "fifo.bin")
    model = onnx.load(folder / "student.onnx")
    _external("fifo.bin")(model)  # type: ignore[operator]
    (folder / "student.onnx").write_bytes(model.SerializeToString())


@_bad("zero.bin", "device")
def external_device(folder: Path) -> None:
    (folder / "zero.bin").symlink_to("/dev/zero")
    model = onnx.load(folder / "student.onnx")
    _external("zero.bin", length=None)(model)  # type: ignore[operator]
    (folder / "student.onnx").write_bytes(model.SerializeToString())


@_bad("student.onnx", "w1")
def external_with_huge_dimension(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(288))
    model = onnx.load(folder / "student.onnx")
    _external()(model)  # type: ignore[operator]
    _initializer(model).dims[0] = _HUGE
    (folder / "student.onnx").write_bytes(model.SerializeToString())


@_bad("sparse.bin", "w1")
def external_sparse_file(folder: Path) -> None:
    """A file that claims a terabyte and takes no room; the dimensions claim as much."""
    with (folder / "sparse.bin").open("wb") as stream:
        stream.truncate(2 * 9 * 4 * 10**10)
    model = onnx.load(folder / "student.onnx")
    _external("sparse.bin", length=None)(model)  # type: ignore[operator]
    _initializer(model).dims[0] = 10**10
    (folder / "student.onnx").write_bytes(model.SerializeToString())
