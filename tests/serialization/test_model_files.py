"""ONNX files come in checked and go out whole, with their weights where they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import FskdError, ModelError
from fskd_onnx.serialization.model_files import (
    count_parameters,
    load_model,
    save_model,
    source_name,
)
from tests.helpers import build, initializers

# x ─▶ MatMul ─▶ Add ─▶ z
TEXT = """g (float[N,4] x) => (float[N,6] z) <float[4,6] w, float[6] b> {
    h = MatMul (x, w)
    z = Add (h, b)
}"""


def saved_outside(folder: Path, *names: str, data: str = "weights.bin") -> Path:
    """A file that keeps some of its weights in another file."""
    model = build(TEXT)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            onnx.external_data_helper.set_external_data(tensor, location=data)
    folder.mkdir()
    onnx.save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def outside(path: Path) -> dict[str, str]:
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_models_load_from_files_and_from_memory(tmp_path: Path) -> None:
    model = build(TEXT)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path)
    before = path.read_bytes()
    assert load_model(model) is model
    assert load_model(path) == load_model(str(path)) == model
    assert path.read_bytes() == before
    assert (source_name(path), source_name(model)) == (str(path), "g")
    assert source_name(onnx.ModelProto()) == "a model in memory"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx: there is no such file"):
        load_model(tmp_path / "none.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder; give an ONNX file"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.txt"])
@pytest.mark.parametrize(
    "content", [b"", b"not a model\n", b"{}", b"\x89PNG\r\n\x1a\n", b"\xff" * 99]
)
def test_what_is_not_onnx_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: is not (an ONNX file|a valid ONNX model)"):
        load_model(path)


def test_an_invalid_model_is_refused_in_one_line(tmp_path: Path) -> None:
    model = build(TEXT)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save_model(model, tmp_path / "model.onnx")
    for source in (model, tmp_path / "model.onnx"):
        with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*NoSuchOp") as caught:
            load_model(source)
        assert "\n" not in str(caught.value)


def test_shapes_that_contradict_each_other_are_refused() -> None:
    model = build(TEXT)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        load_model(model)


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = saved_outside(tmp_path / "a", "w")
    path.with_name("weights.bin").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: .*weights\.bin"):
        load_model(path)


def test_a_model_is_saved_as_it_is(tmp_path: Path) -> None:
    model = build(TEXT)
    for name in ("a.onnx", "b.json"):
        save_model(model, tmp_path / name)
        assert load_model(tmp_path / name) == model
    assert sorted(listing(tmp_path)) == ["a.onnx", "b.json"]


@pytest.mark.parametrize("names", [(), ("w",), ("b",), ("w", "b")])
def test_external_weights_stay_external(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = saved_outside(tmp_path / "in", *names)
    before = listing(source.parent)
    model = load_model(source)
    path = tmp_path / "out" / "fused.onnx"
    path.parent.mkdir()
    save_model(model, path, like=source)
    assert outside(path) == dict.fromkeys(names, "fused.onnx.data")
    expected = ["fused.onnx", "fused.onnx.data"] if names else ["fused.onnx"]
    assert sorted(listing(path.parent)) == expected
    for name, value in initializers(load_model(path)).items():
        np.testing.assert_array_equal(value, initializers(model)[name])
    assert listing(source.parent) == before
    assert not any(uses_external_data(tensor) for tensor in model.graph.initializer)
    first = listing(path.parent)
    save_model(model, path, like=source)
    assert listing(path.parent) == first


@pytest.mark.parametrize("place", ["in", "out"])
def test_weights_of_another_model_are_not_written_to(tmp_path: Path, place: str) -> None:
    """A student may keep its weights where the output's would go."""
    name = "fused.onnx.data"
    source = saved_outside(tmp_path / "in", "w", data=name)
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    other = folder / name
    if place == "out":
        other.write_bytes(b"of another model")
    before = other.read_bytes()
    model = load_model(source)
    model.graph.initializer[0].raw_data = (2 * initializers(model)["w"]).tobytes()
    for _ in range(2):
        save_model(model, folder / "fused.onnx", like=source)
        assert other.read_bytes() == before
        (name,) = outside(folder / "fused.onnx").values()
        assert name != other.name
        np.testing.assert_array_equal(
            initializers(load_model(folder / "fused.onnx"))["w"], initializers(model)["w"]
        )
    assert len(listing(folder)) == (4 if place == "in" else 3)


def test_weights_of_a_model_that_is_replaced_go_with_it(tmp_path: Path) -> None:
    source = saved_outside(tmp_path / "in", "w")
    model, path = load_model(source), tmp_path / "out" / "fused.onnx"
    path.parent.mkdir()
    for factor in (1, 2, 3):
        model.graph.initializer[0].raw_data = (factor * initializers(model)["w"]).tobytes()
        save_model(model, path, like=source)
        assert len(listing(path.parent)) == 2
        assert initializers(load_model(path))["w"].tobytes() == model.graph.initializer[0].raw_data


def test_a_crash_before_the_model_is_in_place_leaves_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved_outside(tmp_path / "in", "w")
    model, path = load_model(source), tmp_path / "out" / "fused.onnx"
    path.parent.mkdir()
    save_model(model, path, like=source)
    old = initializers(load_model(path))["w"]
    replace = Path.replace

    def die(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".onnx":
            # As the system would find it: nothing is cleaned up.
            np.testing.assert_array_equal(initializers(load_model(path))["w"], old)
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", die)
    model.graph.initializer[0].raw_data = (2 * old).tobytes()
    with pytest.raises(KeyboardInterrupt):
        save_model(model, path, like=source)
    np.testing.assert_array_equal(initializers(load_model(path))["w"], old)
    assert len(listing(path.parent)) == 2


def test_external_weights_that_are_gone_leave_no_empty_file(tmp_path: Path) -> None:
    source = saved_outside(tmp_path / "in", "w")
    model = load_model(source)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "renamed"
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out" / "fused.onnx", like=source)
    assert sorted(listing(tmp_path / "out")) == ["fused.onnx"]


@pytest.mark.parametrize("external", [False, True])
def test_nothing_is_left_behind_where_saving_fails(tmp_path: Path, external: bool) -> None:
    source = saved_outside(tmp_path / "in", "w")
    target = tmp_path / "out"
    target.mkdir()
    blocked = target / ("fused.onnx.data" if external else "fused.onnx")
    blocked.mkdir()
    with pytest.raises(FskdError, match="is not a regular file"):
        save_model(load_model(source), target / "fused.onnx", like=source)
    assert [path.name for path in target.iterdir()] == [blocked.name]


def test_parameters_count_alike_as_initializers_and_as_constants() -> None:
    model = build(TEXT)
    assert count_parameters(model) == 4 * 6 + 6
    for attribute, count in (
        ("value = float[2,3] {1,2,3,4,5,6}", 6),
        ("value = int64[2] {1,2}", 0),
        ("value_float: float = 2.0", 1),
        ("value_floats: floats = [1.0, 2.0]", 2),
        ("value_ints: ints = [1, 2]", 0),
    ):
        constant = onnx.parser.parse_node(f"c = Constant <{attribute}> ()")
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.node.append(constant)
        assert count_parameters(changed) == 30 + count


def test_parameters_that_fill_a_shape_count() -> None:
    # x ─▶ MatMul (filled) ─▶ Gather (at a filled index) ─▶ z
    model = build("""g (float[N,4] x) => (float[A,B] z) <int64[2] s = {4,6}, int64[1] one = {1}> {
        w = ConstantOfShape <value = float[1] {0.5}> (s)
        i = ConstantOfShape <value = int64[1] {2}> (one)
        h = MatMul (x, w)
        z = Gather <axis = 1> (h, i)
    }""")
    assert count_parameters(model) == 4 * 6


def test_random_outputs_are_refused_by_the_node(tmp_path: Path) -> None:
    model = build(
        "g (float[N,4] x) => (float[N,4] y) { [n] r = RandomNormalLike (x) y = Add (x, r) }"
    )
    onnx.save_model(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: the output of its node 'n' is not the same"):
        load_model(tmp_path / "m.onnx")


def test_dropouts_in_training_mode_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] y) <float r> {
            t = Constant <value = bool {1}> ()
            [d] y = Dropout (x, r, t)
        }"""
    )
    assert load_model(model) is model
    assert "its Dropout 'd' is in training mode; all runs here are inference" in caplog.text
