"""Models of more than 2 GB: fitted and saved without ever being in memory as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import uses_external_data

from fskd_onnx.errors import ModelError
from fskd_onnx.passes import separate_weights
from fskd_onnx.passes.separate_weights import separate
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.serialization import external_data
from fskd_onnx.serialization.model_files import load_model, save_model
from tests.forms import noisy
from tests.helpers import Array, build, initializers

WIDTH = 256
# ids ─▶ Gather (table) ─▶ MatMul ─▶ Add ─▶ Relu ─▶ MatMul ─▶ z
TEXT = """g (int64[N,5] ids) => (float[N,5,4] z) <float[256,8] w, float[8] b, float[8,4] k> {
    e = Gather (table, ids)
    [one] h = MatMul (e, w)
    y = Add (h, b)
    r = Relu (y)
    [two] z = MatMul (r, k)
}"""


def write(path: Path, rows: int, seed: int | None = None) -> None:
    """Write the network with a table of that many rows, all but the first hundred a hole."""
    table = onnx.TensorProto(name="table", data_type=onnx.TensorProto.FLOAT, dims=[rows, WIDTH])
    table.data_location = onnx.TensorProto.EXTERNAL
    size = rows * WIDTH * 4
    for key, value in (("location", path.name + ".bin"), ("offset", "0"), ("length", str(size))):
        table.external_data.add(key=key, value=value)
    with path.with_name(path.name + ".bin").open("wb") as stream:
        stream.write(np.random.default_rng(0).standard_normal((100, WIDTH)).astype("<f4").tobytes())
        stream.truncate(size)
    text = TEXT.replace("float[256,8]", f"float[{100},{WIDTH}] table, float[256,8]")
    model = build(text)
    if seed is not None:
        model = noisy(model, seed=seed)
    next(t for t in model.graph.initializer if t.name == "table").CopyFrom(table)
    onnx.save_model(model, path)


# A process starts out with the peak of the one that it was forked from, so a small one does that.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(command: Sequence[str]) -> int:
    """Run a command and return the most memory that it held, in bytes."""
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    result = subprocess.run(launcher, check=True, stdout=subprocess.PIPE, text=True)
    return int(result.stdout) * (1 if sys.platform == "darwin" else 1024)


def run_file(path: Path, ids: Array) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0])


def test_a_model_of_more_than_2_gb_is_fitted_in_little_memory(tmp_path: Path) -> None:
    rows = 2_200_000  # 2.25 GB
    teacher, student = tmp_path / "teacher.onnx", tmp_path / "student.onnx"
    write(teacher, rows)
    write(student, rows, seed=1)
    ids = np.random.default_rng(3).integers(0, 20, (40, 5))
    np.save(tmp_path / "ids.npy", ids[:24])
    fused = tmp_path / "fused.onnx"
    options = ["-o", str(fused), "--providers", "cpu", "--memory-limit", "100MB"]
    command = [sys.executable, "-m", "fskd_onnx", "fit", str(teacher), str(student)]
    peak = peak_memory([*command, str(tmp_path / "ids.npy"), *options])
    print(f"peak resident memory: {peak / 2**20:.0f} MB")
    # The interpreter and its libraries are most of it.
    assert peak < 800 * 2**20
    data = tmp_path / "fused.onnx.data"
    assert data.stat().st_size > 2**31
    onnx.checker.check_model(fused, full_check=True)
    before, after = (
        float(np.sum((run_file(path, ids) - run_file(teacher, ids)) ** 2))
        for path in (student, fused)
    )
    assert after < before / 1000
    with data.open("rb") as one, student.with_name("student.onnx.bin").open("rb") as other:
        assert one.read(200 * WIDTH * 4) == other.read(200 * WIDTH * 4)


def test_what_only_the_runtime_reads_stays_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    write(path, external_data._LARGE_TENSOR // WIDTH)
    model = load_model(path)
    held = {tensor.name: uses_external_data(tensor) for tensor in model.graph.initializer}
    assert held == {"table": True, "w": False, "b": False, "k": False}
    assert load_model(model) is model
    # Others, from memory, do not get in the way.
    monkeypatch.setattr(separate_weights, "_LARGE", 2**10)
    assert list(separate(model).weights) == ["w"]
    ids = np.arange(10).reshape(2, 5)
    session = open_runtime(["cpu"]).session(model)
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], run_file(path, ids))
    # Saved elsewhere, the copy stands on its own.
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out" / "copy.onnx")
    for file in (path, tmp_path / "model.onnx.bin"):
        file.rename(file.with_suffix(".old"))
    copy = onnx.load(tmp_path / "out" / "copy.onnx")
    assert initializers(copy)["table"].shape == (external_data._LARGE_TENSOR // WIDTH, WIDTH)
    np.testing.assert_array_equal(
        run_file(tmp_path / "out" / "copy.onnx", ids), session.run(None, {"ids": ids})[0]
    )
    with pytest.raises(ModelError, match="keeps 'table' in a file, and a model in memory"):
        load_model(model)


def test_small_tables_and_those_that_passes_read_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, 100)
    assert not any(map(uses_external_data, load_model(path).graph.initializer))
    # ids ─▶ Gather (table) ─▶ MatMul (Transpose (table)) ─▶ z: its transpose may be folded
    write(path, external_data._LARGE_TENSOR // WIDTH)
    model = onnx.load(path, load_external_data=False)
    model.graph.node.insert(0, onnx.helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]))
    model.graph.node[2].input[1] = "t"
    del model.graph.node[3:]
    model.graph.node[2].output[0] = "z"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "V"
    onnx.save_model(model, path)
    assert not any(map(uses_external_data, load_model(path).graph.initializer))


def test_models_in_memory_beyond_the_limit_run_and_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(TEXT.replace("float[256,8]", "float[100,256] table, float[256,8]"))
    ids = np.arange(10).reshape(2, 5)
    expected = open_runtime(["cpu"]).session(model).run(None, {"ids": ids})[0]
    monkeypatch.setattr(external_data, "_LARGEST_FILE", 2**15)
    monkeypatch.setattr(external_data, "_LARGE_TENSOR", 2**12)
    assert load_model(model) is model
    session = open_runtime(["cpu"]).session(model)
    np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], expected)
    save_model(model, tmp_path / "model.onnx")
    outside = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    assert {t.name for t in outside if uses_external_data(t)} == {"table", "w"}
    values = initializers(onnx.load(tmp_path / "model.onnx"))
    for name, value in initializers(model).items():
        np.testing.assert_array_equal(values[name], value)
    np.testing.assert_array_equal(run_file(tmp_path / "model.onnx", ids), expected)


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, external_data._LARGE_TENSOR // WIDTH)
    model = load_model(path)
    os.truncate(tmp_path / "model.onnx.bin", 1000)
    with pytest.raises(ModelError, match=r"model\.onnx\.bin: is shorter than the weights in it"):
        save_model(model, tmp_path / "copy.onnx")
    assert not list(tmp_path.glob("*.data"))


@pytest.mark.parametrize("rows", [100, external_data._LARGE_TENSOR // WIDTH])
def test_models_and_data_behind_links_are_read(tmp_path: Path, rows: int) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "a1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write(tmp_path / "model.onnx", rows)
    for name, blob in (("model.onnx", "0f"), ("model.onnx.bin", "1e")):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", blob))
    model = load_model(snapshot / "model.onnx")
    ids = np.arange(10).reshape(2, 5)
    found = open_runtime(["cpu"]).session(model).run(None, {"ids": ids})[0]
    save_model(model, tmp_path / "copy.onnx", like=snapshot / "model.onnx")
    np.testing.assert_array_equal(run_file(tmp_path / "copy.onnx", ids), found)


def test_data_beside_what_a_link_points_to_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / "model.onnx", 100)
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "model.onnx")
    table = initializers(load_model(tmp_path / "link.onnx"))["table"]
    np.testing.assert_array_equal(
        table, initializers(onnx.load(tmp_path / "real" / "model.onnx"))["table"]
    )


@pytest.mark.parametrize("location", ["../model.onnx.bin", "a/../../model.onnx.bin", "absolute"])
def test_a_location_alone_does_not_lead_out_of_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "model.onnx", 100)
    (folder / "model.onnx.bin").rename(tmp_path / "model.onnx.bin")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    table = next(t for t in model.graph.initializer if t.name == "table")
    absolute = str(tmp_path / "model.onnx.bin")
    table.external_data[0].value = absolute if location == "absolute" else location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx: keeps 'table' in '.*not in its own folder"):
        load_model(folder / "model.onnx")


@pytest.mark.parametrize("rows", [100, external_data._LARGE_TENSOR // WIDTH])
def test_data_that_ends_early_is_refused(tmp_path: Path, rows: int) -> None:
    write(tmp_path / "model.onnx", rows)
    os.truncate(tmp_path / "model.onnx.bin", 1000)
    with pytest.raises(ModelError, match=r"model\.onnx\.bin: is shorter than the weights in it"):
        load_model(tmp_path / "model.onnx")
