from pathlib import Path

import onnx
import onnxruntime
import pytest

from models.export import export
from models.networks import DenseNet22, MobileNetV2, Network, ResNet20, Vgg16
from models.prune import prune, recipes

OPERATORS = {
    Vgg16: {"Conv": 13, "BatchNormalization": 13, "Relu": 13, "MaxPool": 3},
    ResNet20: {"Conv": 21, "BatchNormalization": 21, "Relu": 19, "Add": 9},
    DenseNet22: {"Conv": 21, "BatchNormalization": 21, "Relu": 21, "Concat": 18, "AveragePool": 2},
    MobileNetV2: {"Conv": 23, "BatchNormalization": 23, "Clip": 16, "Add": 4},
}


@pytest.fixture(scope="module")
def pair(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a teacher and its student."""
    folder = tmp_path_factory.mktemp("pair")
    student = prune(network, recipes(network)[-1])
    return export(network, folder / "teacher.onnx"), export(student, folder / "student.onnx")


def test_teacher_and_student_have_the_same_named_graph(
    network: Network, pair: tuple[Path, Path]
) -> None:
    teacher, student = (onnx.load(path).graph for path in pair)
    for node in (*teacher.node, *student.node):
        # A narrower depthwise convolution has fewer groups.
        kept_attributes = [attribute for attribute in node.attribute if attribute.name != "group"]
        del node.attribute[:]
        node.attribute.extend(kept_attributes)
    assert list(teacher.node) == list(student.node)
    names = [tensor.name for tensor in teacher.initializer]
    assert names == [tensor.name for tensor in student.initializer]
    kept = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    # The axes of the mean, and the bounds of ReLU6.
    others = {name for name in names if ".input" in name}
    assert set(names) - others == kept
    clips = [node.name for node in teacher.node if node.op_type == "Clip"]
    bounds = {f"{name}.input{position}" for name in clips for position in (1, 2)}
    assert others == bounds | {"reducemean.input1"}
    found: dict[str, int] = {}
    for node in teacher.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    assert found == {**OPERATORS[type(network)], "ReduceMean": 1, "Gemm": 1}


def test_input_and_output(pair: tuple[Path, Path]) -> None:
    for path in pair:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (image,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.shape) == ("image", ["N", 1, 28, 28])
        assert (logits.name, logits.shape) == ("logits", ["N", 10])


def test_files_name_no_source_and_no_folder(pair: tuple[Path, Path]) -> None:
    for path in pair:
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("network", ["vgg16"], indirect=True)
def test_the_same_network_gives_the_same_bytes(
    network: Network, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert export(network, tmp_path / "again.onnx").read_bytes() == pair[0].read_bytes()
