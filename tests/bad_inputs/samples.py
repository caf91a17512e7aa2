"""Bad samples: folders, arrays, archives, images and test data."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from tests.bad_inputs.row import COMPARE, FIT, SAMPLES, Row, Table

ROWS: list[Row] = []
_HUGE = 10**12


def _fit(samples: str, *further: str) -> tuple[str, ...]:
    return tuple(samples if part == "samples.npy" else part for part in FIT) + further


_bad = Table(ROWS)
_archive = Table(ROWS, _fit("samples.npz"))
_folder = Table(ROWS, _fit("folder", "--preprocess", "unit"))
_zoo = Table(ROWS, _fit("zoo"))


def _good(count: int = SAMPLES) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 2, 6, 6)).astype(np.float32)


# --- what is no file of samples ---


@_bad("nowhere", "does not exist", arguments=_fit("nowhere"))
def missing_samples(folder: Path) -> None:
    pass


@_bad("labels.txt", ".npy", arguments=_fit("labels.txt"))
def text_as_samples(folder: Path) -> None:
    pass


@_bad("teacher.onnx", arguments=_fit("teacher.onnx"))
def model_as_samples(folder: Path) -> None:
    pass


@_bad("empty", "holds no samples", arguments=_fit("empty"))
def empty_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


@_bad("things", "holds no samples", arguments=_fit("things"))
def folder_of_other_things(folder: Path) -> None:
    (folder / "things").mkdir()
    (folder / "things" / "notes.txt").write_text("nothing")
    (folder / "things" / "data.csv").write_text("1,2,3")


@_folder("folder", "mixes")
def mixed_formats(folder: Path) -> None:
    (folder / "folder").mkdir()
    np.save(folder / "folder" / "a.npy", _good())
    Image.new("RGB", (6, 6)).save(folder / "folder" / "b.png")


def _special(path: str, place: str) -> None:
    def spoil(folder: Path) -> None:
        if path == "fifo":
            os.mkfifo(folder / place)
        else:
            (folder / place).symlink_to(path)

    what = path.replace("/", "-").strip("-")
    _bad.add(f"{what}-as-{place}", spoil, place, "regular file", arguments=_fit(place))


for _path in ("fifo", "/dev/zero", "/dev/urandom"):
    for _place in ("s.npy", "s.npz", "s.png"):
        _special(_path, _place)


@_bad("/dev/zero", arguments=_fit("/dev/zero"))
def device_as_samples(folder: Path) -> None:
    pass


@_folder("a.npy", "named pipe")
def fifo_in_a_folder_of_samples(folder: Path) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "folder" / "a.npy")
    np.save(folder / "folder" / "b.npy", _good())


@_bad("b.npy", arguments=_fit("folder"))
def broken_file_in_a_folder(folder: Path) -> None:
    (folder / "folder").mkdir()
    np.save(folder / "folder" / "a.npy", _good())
    (folder / "folder" / "b.npy").write_bytes(b"\x93NUMPY")


@_bad("b.npy", arguments=_fit("folder"))
def dangling_link_in_a_folder(folder: Path) -> None:
    (folder / "folder").mkdir()
    np.save(folder / "folder" / "a.npy", _good())
    (folder / "folder" / "b.npy").symlink_to("nowhere")


@_bad("b.npy, sample 0", "shape", arguments=_fit("folder"))
def files_of_other_shapes(folder: Path) -> None:
    for name in ("teacher.onnx", "student.onnx"):
        model = onnx.load(folder / name)
        model.graph.input[0].type.tensor_type.shape.dim[3].ClearField("value")
        onnx.save_model(model, folder / name)
    (folder / "folder").mkdir()
    np.save(folder / "folder" / "a.npy", _good())
    np.save(folder / "folder" / "b.npy", np.repeat(_good(), 2, axis=3))


# --- arrays ---


def _array(name: str, array: Any, *words: str, arguments: tuple[str, ...] = FIT) -> None:
    def spoil(folder: Path) -> None:
        np.save(folder / "samples.npy", array, allow_pickle=True)

    _bad.add(name, spoil, "samples.npy", *words, arguments=arguments)


_array("pickled-objects", np.array([{"a": 1}, None], dtype=object), "pickled")
_array("strings", np.array(["a", "b"]), "float32")
_array("bytes", np.array([b"a", b"b"]), "float32")
_array("records", np.zeros(5, dtype=[("a", "f4"), ("b", "i8")]), "float32")
_array("complex-numbers", _good().astype(np.complex64), "complex64", "float32")
_array("integers", _good().astype(np.int32), "int32", "float32")
_array("booleans", np.ones((24, 2, 6, 6), bool), "bool", "float32")
_array("dates", np.zeros((24, 2, 6, 6), "datetime64[s]"), "datetime64", "float32")
_array("void", np.zeros((24, 2, 6, 6), "V4"), "float32")
_array("single-value", np.float32(3), "single value")
_array("wrong-rank", _good()[:, :, :, 0], "shape (24, 2, 6)")
_array("wrong-rank-5", _good()[..., np.newaxis], "shape (24, 2, 6, 6, 1)")
_array("wrong-shape", np.zeros((24, 3, 6, 6), np.float32), "shape (24, 3, 6, 6)")
_array("channels-last", np.moveaxis(_good(), 1, -1), "shape (24, 6, 6, 2)")
_array("no-samples", _good()[:0], "holds no samples")
_array("no-samples-to-compare", _good()[:0], "holds no samples", arguments=COMPARE)
_array("one-sample", _good(1), "1")
_array("two-samples", _good(2), "2")
_array("equal-samples", np.ones((24, 2, 6, 6), np.float32))
_array("zeros", np.zeros((24, 2, 6, 6), np.float32))
_array("empty-samples", np.zeros((24, 2, 0, 6), np.float32), "shape (24, 2, 0, 6)")


def _with(value: float, at: int, dtype: str = "f4") -> NDArray[Any]:
    array = _good().astype(dtype)
    array[at, 1, 2, 3] = value
    return array


_array("nan", _with(np.nan, 17), "sample 17", "NaN")
_array("nan-first", _with(np.nan, 0), "sample 0", "NaN")
_array("infinite", _with(np.inf, 23), "sample 23", "infinite")
_array("nan-to-compare", _with(np.nan, 17), "sample 17", "NaN", arguments=COMPARE)
_array("too-large-for-the-input", _with(1e300, 5, "f8"), "sample 5", "infinite")


@_bad("teacher.onnx", "output 'y' is NaN or infinite", "other samples")
def huge_values(folder: Path) -> None:
    np.save(folder / "samples.npy", np.float32(3e38) * np.tanh(_good()))


@_bad("samples.npy")
def empty_array_file(folder: Path) -> None:
    (folder / "samples.npy").write_bytes(b"")


@_bad("samples.npy")
def text_in_an_array_file(folder: Path) -> None:
    (folder / "samples.npy").write_text("1 2 3\n")


@_bad("samples.npy")
def zeros_in_an_array_file(folder: Path) -> None:
    (folder / "samples.npy").write_bytes(bytes(4096))


@_bad("samples.npy")
def model_in_an_array_file(folder: Path) -> None:
    (folder / "samples.npy").write_bytes((folder / "teacher.onnx").read_bytes())


def _cut(part: float) -> None:
    def spoil(folder: Path) -> None:
        data = (folder / "samples.npy").read_bytes()
        (folder / "samples.npy").write_bytes(data[: int(len(data) * part)])

    _bad.add(f"array-cut-to-{part:.0%}", spoil, "samples.npy")


for _part in (0.001, 0.01, 0.2, 0.99):
    _cut(_part)


def _npy(shape: object, descr: object = "<f4", data: bytes = bytes(64), **further: object) -> bytes:
    """Return an array file whose header says what it likes."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape, **further})
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _header(name: str, content: bytes, *words: str) -> None:
    def spoil(folder: Path) -> None:
        (folder / "samples.npy").write_bytes(content)

    _bad.add(f"array-{name}", spoil, "samples.npy", *words)


_header("of-huge-shape", _npy((_HUGE, 2, 6, 6)), "288000000000000")
_header("of-shape-that-overflows", _npy((2**62, 2**62, 6, 6)))
_header("of-negative-shape", _npy((-24, 2, 6, 6)))
_header("of-shape-of-text", _npy("many"))
_header("of-shape-of-floats", _npy((24.0, 2, 6, 6)))
_header("of-unknown-type", _npy((1, 2, 6, 6), "wobble"))
_header("of-huge-type", _npy((1, 2, 6, 6), "V999999999"))
_header("of-huge-strings", _npy((1, 2, 6, 6), "<U500000000"))
_header("of-objects", _npy((1,), "|O", b"cos\nsystem\n(S'true'\ntR."), "pickled")
_header("with-another-key", _npy((1, 2, 6, 6), wobble=1))
_header("of-version-9", b"\x93NUMPY\x09\x00" + _npy((1,))[8:])
_header("with-deep-header", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000)
_header("with-header-that-never-ends", b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\xff" + b" " * 99)
_header("shorter-than-stated", _npy((24, 2, 6, 6)), "6912")


# --- archives ---


def _zip(folder: Path, name: str, members: dict[str, bytes], compress: bool = False) -> None:
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / name, "w", method) as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def _members(name: str, members: dict[str, bytes], *words: str) -> None:
    def spoil(folder: Path) -> None:
        _zip(folder, "samples.npz", members)

    _archive.add(f"archive-{name}", spoil, "samples.npz", *words)


def _stored(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


_members("without-arrays", {}, "none")
_members("of-text", {"notes.txt": b"nothing"})
_members("of-other-names", {"a.npy": _stored(_good()), "b.npy": _stored(_good())}, "'x'")
_members("of-labels-alone", {"labels.npy": _stored(np.arange(24))}, "'x'")
_members("of-a-huge-array", {"x.npy": _npy((_HUGE, 2, 6, 6))}, "288000000000000")
_members("of-a-negative-array", {"x.npy": _npy((-1, 2, 6, 6))})
_members("of-a-short-array", {"x.npy": _npy((24, 2, 6, 6))}, "6912")
_members("of-objects", {"x.npy": _stored(np.array([{}], dtype=object))}, "pickled")
_members("of-text-called-an-array", {"x.npy": b"1 2 3"})
_members("of-an-empty-array-file", {"x.npy": b""})
_members("of-a-wrong-shape", {"x.npy": _stored(np.zeros((24, 7), np.float32))}, "(24, 7)")


@_archive("samples.npz")
def archive_that_is_text(folder: Path) -> None:
    (folder / "samples.npz").write_text("PK")


@_archive("samples.npz")
def archive_that_is_empty(folder: Path) -> None:
    (folder / "samples.npz").write_bytes(b"")


@_archive("samples.npz", ".npy")
def array_called_an_archive(folder: Path) -> None:
    (folder / "samples.npy").rename(folder / "samples.npz")


@_bad("samples.npy", ".npz")
def archive_called_an_array(folder: Path) -> None:
    _zip(folder, "samples.npy", {"x.npy": _stored(_good())})


@_archive("samples.npz")
def archive_that_is_cut(folder: Path) -> None:
    _zip(folder, "samples.npz", {"x.npy": _stored(_good())})
    data = (folder / "samples.npz").read_bytes()
    (folder / "samples.npz").write_bytes(data[: len(data) // 2])


@_archive("samples.npz")
def archive_with_damaged_bytes(folder: Path) -> None:
    _zip(folder, "samples.npz", {"x.npy": _stored(_good())})
    data = bytearray((folder / "samples.npz").read_bytes())
    data[2000:2100] = bytes(100)
    (folder / "samples.npz").write_bytes(data)


@_archive("samples.npz", "File 'x.npy' is encrypted")
def archive_that_is_encrypted(folder: Path) -> None:
    _zip(folder, "samples.npz", {"x.npy": _stored(_good())})
    data = bytearray((folder / "samples.npz").read_bytes())
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    (folder / "samples.npz").write_bytes(data)


@_archive("samples.npz")
def archive_of_an_unknown_method(folder: Path) -> None:
    _zip(folder, "samples.npz", {"x.npy": _stored(_good())})
    data = bytearray((folder / "samples.npz").read_bytes())
    data[8] = 99
    data[data.rfind(b"PK\x01\x02") + 10] = 99
    (folder / "samples.npz").write_bytes(data)


@_archive("samples.npz")
def archive_bomb(folder: Path) -> None:
    """1 MB that unpacks to 1 GB and says so: more samples than the member that is stated."""
    array = _npy((10**9 // 288, 2, 6, 6), data=b"")
    with (
        zipfile.ZipFile(folder / "samples.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(array)
        for _ in range(1000):
            member.write(bytes(10**6))


# --- images ---


def _image(name: str, make: Callable[[Path], None], *words: str) -> None:
    def spoil(folder: Path) -> None:
        (folder / "folder").mkdir()
        for number in range(3):
            Image.new("RGB", (6, 6), (number, 9, 9)).save(folder / "folder" / f"{number}.png")
        make(folder / "folder")

    _folder.add(f"image-{name}", spoil, *words)


# The networks of this table take two channels, which no image has.
_image("for-two-channels", lambda folder: None, "input 'x'", "takes 2 channels")


@_bad("x.png", arguments=_fit("x.png", "--preprocess", "unit"))
def broken_image(folder: Path) -> None:
    (folder / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))


@_bad("x.png", arguments=_fit("x.png", "--preprocess", "unit"))
def empty_image(folder: Path) -> None:
    (folder / "x.png").write_bytes(b"")


@_bad("x.jpg", "imagenet", arguments=_fit("x.jpg"))
def image_without_normalisation(folder: Path) -> None:
    Image.new("RGB", (6, 6)).save(folder / "x.jpg")


# --- test data of the model zoo ---


def _data_set(folder: Path, content: bytes) -> None:
    (folder / "zoo" / "test_data_set_0").mkdir(parents=True)
    (folder / "zoo" / "test_data_set_0" / "input_0.pb").write_bytes(content)


@_zoo("input_0.pb")
def test_data_that_is_text(folder: Path) -> None:
    _data_set(folder, b"1 2 3")


@_zoo("input_0.pb")
def test_data_that_is_cut(folder: Path) -> None:
    content = numpy_helper.from_array(_good(), "x").SerializeToString()
    _data_set(folder, content[: len(content) // 2])


@_zoo("input_0.pb")
def test_data_that_is_empty(folder: Path) -> None:
    _data_set(folder, b"")


@_zoo("input_0.pb")
def test_data_of_strings(folder: Path) -> None:
    tensor = numpy_helper.from_array(np.array(["a", "b"], dtype=object), "x")
    _data_set(folder, tensor.SerializeToString())


@_zoo("input_0.pb", "another file")
def test_data_in_another_file(folder: Path) -> None:
    tensor = numpy_helper.from_array(_good(), "x")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="x.bin")
    _data_set(folder, tensor.SerializeToString())


def _bad_tensor(name: str, change: Callable[[onnx.TensorProto], None], *words: str) -> None:
    def spoil(folder: Path) -> None:
        tensor = numpy_helper.from_array(_good(), "x")
        change(tensor)
        _data_set(folder, tensor.SerializeToString())

    _zoo.add(f"test-data-{name}", spoil, "input_0.pb", *words)


def _set_dim(tensor: onnx.TensorProto) -> None:
    tensor.dims[0] = _HUGE


def _set_type(tensor: onnx.TensorProto) -> None:
    tensor.data_type = 99


def _add_byte(tensor: onnx.TensorProto) -> None:
    tensor.raw_data += b"1"


_bad_tensor("of-huge-shape", _set_dim, "288000000000000")
_bad_tensor("of-type-99", _set_type, "99")
_bad_tensor("of-another-size", _add_byte, "bytes")


@_zoo("test_data_set_0", "2", "1")
def test_data_of_two_inputs(folder: Path) -> None:
    _data_set(folder, numpy_helper.from_array(_good(), "x").SerializeToString())
    (folder / "zoo" / "test_data_set_0" / "input_1.pb").write_bytes(b"")


@_zoo("input_0.pb")
def test_data_of_other_numbers(folder: Path) -> None:
    _data_set(folder, b"")
    (folder / "zoo" / "test_data_set_0" / "input_0.pb").rename(
        folder / "zoo" / "test_data_set_0" / "input_7.pb"
    )


@_zoo("input_0.pb", "named pipe")
def test_data_that_is_a_fifo(folder: Path) -> None:
    _data_set(folder, b"")
    (folder / "zoo" / "test_data_set_0" / "input_0.pb").unlink()
    os.mkfifo(folder / "zoo" / "test_data_set_0" / "input_0.pb")
