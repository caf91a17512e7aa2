"""Samples come in from every source alike, lazily, and bad ones are named."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from fskd_onnx.errors import FskdError, PreprocessError, SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples import sources
from fskd_onnx.samples.arrays import by_input, open_array_items
from fskd_onnx.samples.contract import SourcePart
from fskd_onnx.samples.files import files_with_suffix
from fskd_onnx.samples.images import to_tensor
from fskd_onnx.samples.reader import Samples
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

RAW = Preprocess(preset="raw")
IMAGE = (InputSpec("x", (None, 3, 4, 5), np.dtype(np.float32)),)
VECTOR = (InputSpec("x", (None, 6), np.dtype(np.float32)),)
TWO = (
    InputSpec("ids", (None, 6), np.dtype(np.int64)),
    InputSpec("x", (1, 3), np.dtype(np.float32)),
)


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def take_all(samples: Samples) -> dict[str, NDArray[Any]]:
    return samples.take(np.arange(len(samples)))


class Reader:
    """A minimal CalibrationDataReader."""

    def __init__(self, *batches: Mapping[str, NDArray[Any]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self.batches, None)


# --- every source gives the same samples ---


def test_arrays_of_every_kind_give_the_same_samples(tmp_path: Path) -> None:
    array = random(7, 6)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "named.npz", x=array, labels=np.arange(7), other=np.zeros(2))
    np.savez(tmp_path / "unnamed.npz", images=array, labels=np.arange(7))
    for name in ("npy", "npz", "npz_compressed"):
        (tmp_path / name).mkdir()
    for start, part in ((0, "0"), (3, "1")):
        rows = array[start : start + 3 + start]
        np.save(tmp_path / "npy" / part, rows)
        np.savez(tmp_path / "npz" / part, x=rows)
        np.savez_compressed(tmp_path / "npz_compressed" / part, rows)
    (tmp_path / "npy" / "labels.npy").write_bytes(b"never read")
    for number in range(7):
        folder = tmp_path / "zoo" / f"test_data_set_{number + 5}"  # 10 comes after 9
        folder.mkdir(parents=True)
        tensor = numpy_helper.from_array(array[number : number + 1])
        onnx.save_tensor(tensor, folder / "input_0.pb")
        onnx.save_tensor(tensor, folder / "output_0.pb")
    sources: list[Any] = [
        array,
        {"x": array},
        {"anything": array},
        Reader({"x": array[:2]}, {"x": array[2:]}),
        *(tmp_path / name for name in ("a.npy", "named.npz", "unnamed.npz")),
        *(tmp_path / name for name in ("npy", "npz", "npz_compressed", "zoo")),
        str(tmp_path / "a.npy"),
    ]
    for source in sources:
        samples = load_samples(source, VECTOR)
        assert len(samples) == samples.source_count == 7
        np.testing.assert_array_equal(take_all(samples)["x"], array)
        np.testing.assert_array_equal(samples.take(np.array([5, 0, 5]))["x"], array[[5, 0, 5]])
    one = load_samples(tmp_path / "zoo" / "test_data_set_6", VECTOR)
    np.testing.assert_array_equal(take_all(one)["x"], array[1:2])


def test_images_and_pixel_arrays_give_the_same_samples(tmp_path: Path) -> None:
    pixels = random_pixels(6, 4, 5, 3)
    for name, suffix in (("png", ".PNG"), ("bmp", ".bmp"), ("webp", ".webp")):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / name / f"{number}{suffix}", lossless=True)
    (tmp_path / "png" / ".hidden").touch()
    (tmp_path / "png" / "classes.txt").touch()
    (tmp_path / "png" / "labels.npy").touch()
    (tmp_path / "png" / "folder").mkdir()
    np.save(tmp_path / "last.npy", pixels)
    np.savez(tmp_path / "first.npz", x=pixels.transpose(0, 3, 1, 2))
    preprocess = Preprocess(preset="imagenet")
    expected = to_tensor(preprocess, pixels, IMAGE[0])
    for name in ("png", "bmp", "webp", "last.npy", "first.npz"):
        samples = load_samples(tmp_path / name, IMAGE, preprocess)
        np.testing.assert_array_equal(take_all(samples)["x"], expected, err_msg=name)
    single = load_samples(tmp_path / "png" / "2.PNG", IMAGE, preprocess)
    np.testing.assert_array_equal(take_all(single)["x"], expected[2:3])


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1), (3, 1, 4, 5)])
def test_gray_pixel_arrays(shape: tuple[int, ...]) -> None:
    inputs = (InputSpec("x", (None, 1, 4, 5), np.dtype(np.float32)),)
    pixels = random_pixels(*shape)
    tensors = take_all(load_samples(pixels, inputs, RAW))["x"]
    np.testing.assert_array_equal(tensors, pixels.reshape(3, 1, 4, 5))


def test_uint8_inputs_take_uint8_arrays_as_they_are() -> None:
    inputs = (InputSpec("x", (None, 3, 4, 5), np.dtype(np.uint8)),)
    pixels = random_pixels(2, 3, 4, 5)
    tensors = take_all(load_samples(pixels, inputs))["x"]
    assert tensors.dtype == np.uint8
    np.testing.assert_array_equal(tensors, pixels)


def test_several_inputs(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[Any]] = {"ids": np.arange(12).reshape(2, 6), "x": random(2, 3)}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "zoo").mkdir()
    onnx.save_tensor(numpy_helper.from_array(arrays["ids"]), tmp_path / "zoo" / "input_0.pb")
    onnx.save_tensor(numpy_helper.from_array(arrays["x"]), tmp_path / "zoo" / "input_1.pb")
    sources: list[Any] = [arrays, tmp_path / "a.npz", tmp_path / "zoo", Reader(arrays)]
    for source in sources:
        batch = take_all(load_samples(source, TWO))
        assert batch.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(batch[name], array)
            assert batch[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("f8", "f4"), ("f2", "f4"), ("f4", "f2"), (">f4", "f4"), (">i8", "i8"), ("f4", "f4")],
)
def test_types_that_become_the_inputs(held: str, wanted: str) -> None:
    inputs = (InputSpec("x", (None, 3), np.dtype(wanted)),)
    array = np.arange(6).reshape(2, 3).astype(held)
    tensors = take_all(load_samples(array, inputs))["x"]
    assert tensors.dtype == np.dtype(wanted)
    np.testing.assert_array_equal(tensors, array)


def test_nothing_but_the_asked_for_images_is_decoded(tmp_path: Path) -> None:
    for number in range(5):
        Image.fromarray(random_pixels(4, 5, 3)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    samples = load_samples(tmp_path, IMAGE, RAW)
    assert samples.take(np.array([4, 1]))["x"].shape == (2, 3, 4, 5)
    with pytest.raises(SamplesError, match=r"3\.png: cannot be read as an image"):
        samples.take(np.array([3]))


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(300):
        np.save(tmp_path / f"{number:03}.npy", np.full((1, 6), number, np.float32))
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        batch = take_all(load_samples(tmp_path, VECTOR))["x"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    np.testing.assert_array_equal(batch[:, 0], np.arange(300))


# --- a format of one's own ---


class CsvFiles:
    """The example of ``fskd_onnx.samples.contract``."""

    name = "csv files"
    words = ".csv"

    def find(self, source: Path) -> list[Path]:
        return files_with_suffix(source, {".csv"})

    def open(
        self, items: Sequence[Path], inputs: tuple[InputSpec, ...], preprocess: Preprocess
    ) -> Sequence[SourcePart]:
        return open_array_items(items, self._read, inputs, preprocess)

    @staticmethod
    def _read(path: Path, inputs: tuple[InputSpec, ...]) -> dict[str, NDArray[Any]]:
        rows = np.loadtxt(path, delimiter=",", ndmin=2, dtype=np.float32)
        return by_input({"rows": rows}, inputs, str(path))


def test_a_new_format_is_one_class_and_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "FILE_FORMATS", (*sources.FILE_FORMATS, CsvFiles()))
    array = random(5, 6)
    for start, stop in ((0, 2), (2, 5)):
        np.savetxt(tmp_path / f"{start}.csv", array[start:stop], delimiter=",")
    np.testing.assert_array_equal(take_all(load_samples(tmp_path, VECTOR))["x"], array)
    (tmp_path / "2.csv").write_text("nan,0,0,0,0,0\n")
    assert "2.csv, sample 0: holds NaN" in refusal(tmp_path, VECTOR)
    (tmp_path / "notes.txt").touch()
    message = refusal(tmp_path / "notes.txt", VECTOR)
    assert message.endswith(
        "give images (png, jpg, jpeg, bmp, webp), .npy, .npz, test_data_set_* folders or .csv"
    )
    np.save(tmp_path / "a.npy", array)
    assert "mixes .npy files and csv files" in refusal(tmp_path, VECTOR)


def test_folders_of_samples_come_before_the_files_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    array = random(1, 6)
    onnx.save_tensor(numpy_helper.from_array(array), folder / "input_0.pb")
    np.save(tmp_path / "a.npy", random(3, 6))
    np.testing.assert_array_equal(take_all(load_samples(tmp_path, VECTOR))["x"], array)


# --- what is refused, and how ---


def refusal(source: Any, inputs: tuple[InputSpec, ...], preprocess: Preprocess = RAW) -> str:
    """The one line that a user would see."""
    with pytest.raises(FskdError) as caught:
        take_all(load_samples(source, inputs, preprocess))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    assert "nowhere: does not exist" in refusal(tmp_path / "nowhere", VECTOR)
    assert "holds no samples; put images" in refusal(tmp_path, VECTOR)
    for number in range(7):
        (tmp_path / f"IMG_{number}.HEIC").touch()
    said = refusal(tmp_path, VECTOR)
    assert "holds no samples but IMG_0.HEIC, IMG_1.HEIC, " in said
    assert "IMG_4.HEIC and 2 others; put images" in said
    (tmp_path / "notes.txt").touch()
    assert "notes.txt: is not a file of samples" in refusal(tmp_path / "notes.txt", VECTOR)
    np.save(tmp_path / "none.npy", random(0, 6))
    assert "none.npy: holds no samples" in refusal(tmp_path / "none.npy", VECTOR)
    assert "holds no samples" in refusal(random(0, 6), VECTOR)
    assert "holds no samples" in refusal(Reader(), VECTOR)
    assert "cannot be read from a int" in refusal(5, VECTOR)


def test_broken_files(tmp_path: Path) -> None:
    Image.fromarray(random_pixels(4, 5, 3)).save(tmp_path / "whole.png")
    np.save(tmp_path / "whole.npy", random(20, 6))
    np.savez(tmp_path / "whole.npz", x=random(20, 6))
    for path in list(tmp_path.iterdir()):
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert f"{cut}: cannot be read as" in refusal(
            cut, IMAGE if cut.suffix == ".png" else VECTOR
        )
        empty = tmp_path / f"empty{path.suffix}"
        empty.touch()
        assert f"{empty}: cannot be read as" in refusal(empty, VECTOR)
    for content in (b"", b"no tensor"):
        (tmp_path / "zoo").mkdir(exist_ok=True)
        (tmp_path / "zoo" / "input_0.pb").write_bytes(content)
        assert "input_0.pb: cannot be read as a tensor" in refusal(tmp_path / "zoo", VECTOR)


def test_pickled_arrays_are_refused_and_ignored_where_they_are_no_input(tmp_path: Path) -> None:
    pickled = np.array([{"a": 1}, None], dtype=object)
    np.save(tmp_path / "a.npy", pickled)
    np.savez(tmp_path / "a.npz", x=pickled)
    for name in ("a.npy", "a.npz"):
        message = refusal(tmp_path / name, VECTOR)
        assert name in message
        assert "pickled arrays are refused" in message
    assert "holds object" in refusal(pickled, VECTOR)
    np.savez(tmp_path / "b.npz", x=random(2, 6), meta=pickled)
    assert len(load_samples(tmp_path / "b.npz", VECTOR)) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_sample(tmp_path: Path, value: float) -> None:
    array = random(5, 6)
    array[3, 2] = value
    np.save(tmp_path / "a.npy", array)
    assert "a.npy, sample 3: holds NaN or infinite" in refusal(tmp_path / "a.npy", VECTOR)


def test_overflow_to_half_is_told() -> None:
    inputs = (InputSpec("x", (None, 2), np.dtype(np.float16)),)
    message = refusal(np.full((1, 2), 1e6, np.float32), inputs)
    assert "infinite values as float16" in message


def test_arrays_that_do_not_fit() -> None:
    assert "has shape (2, 5)" in refusal(random(2, 5), VECTOR)
    assert "has shape (6,)" in refusal(random(6), VECTOR)
    assert "single value" in refusal(np.ones((), np.float32), VECTOR)
    message = refusal(random(3, 4, 5), IMAGE)
    assert "'x' takes float32 of shape (N, 3, 4, 5), N being the number of samples" in message
    assert "holds int64" in refusal(np.zeros((2, 6), np.int64), VECTOR)
    assert "holds uint8" in refusal(np.zeros((2, 6), np.uint8), VECTOR)
    assert "holds float32" in refusal({"ids": random(2, 6), "x": random(2, 3)}, TWO)


def test_inputs_that_are_missing_or_uneven(tmp_path: Path) -> None:
    ids = np.zeros((2, 6), np.int64)
    assert "no array for the model's input 'x' (it has ids)" in refusal({"ids": ids}, TWO)
    assert "'x' (it has a, b)" in refusal({"a": random(1, 6), "b": random(1, 6)}, VECTOR)
    assert "one array without a name" in refusal(ids, TWO)
    uneven = refusal({"ids": ids, "x": random(3, 3)}, TWO)
    assert "inputs differ in their number of samples: ids has 2, x has 3" in uneven
    onnx.save_tensor(numpy_helper.from_array(ids), tmp_path / "input_0.pb")
    assert "1 input_*.pb files and the model has 2 inputs" in refusal(tmp_path, TWO)
    message = refusal(Reader({"x": random(1, 6)}, {"x": random(1, 5)}), VECTOR)
    assert message.startswith("batch 1 of the samples")


def test_folders_that_mix_kinds(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", random(1, 6))
    assert "mixes .npy files and images" in refusal(tmp_path, IMAGE)


def test_other_files_in_a_folder_are_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.tiff").touch()
    (tmp_path / "notes.md").touch()
    assert len(load_samples(tmp_path, IMAGE, RAW)) == 1
    assert "b.tiff" in caplog.text
    assert "notes.md" not in caplog.text


def test_images_need_one_input_a_normalisation_and_the_models_size(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    assert "images are samples of one input" in refusal(tmp_path, TWO)
    message = refusal(tmp_path, IMAGE)
    assert message.startswith(f"{tmp_path / 'b.png'}: is 9 x 9 pixels")
    with pytest.raises(PreprocessError, match="--preprocess with one of imagenet"):
        load_samples(tmp_path, IMAGE)
    free = (InputSpec("x", (None, 3, None, None), np.dtype(np.float32)),)
    message = refusal(tmp_path, free)
    assert "b.png: has shape (3, 9, 9) and" in message
    assert "--resize" in message


def test_pixel_arrays_need_a_normalisation_too() -> None:
    with pytest.raises(PreprocessError, match="--preprocess with one of imagenet"):
        load_samples(random_pixels(2, 4, 5, 3), IMAGE)


# --- samples on another axis, and inputs that all samples share ---

STATES = (
    InputSpec("x", (None, 5), np.dtype(np.float32)),
    InputSpec("s", (2, None, 3), np.dtype(np.float32), axis=1),
)


def test_samples_lie_on_the_axis_of_their_input() -> None:
    x, s = random(7, 5), random(2, 7, 3)
    for given in (s, s.swapaxes(0, 1)):  # as the input has them, or along the first axis
        loaded = load_samples({"x": x, "s": given}, STATES)
        assert loaded.shapes == {"x": (5,), "s": (2, 3)}
        np.testing.assert_array_equal(take_all(loaded)["s"], s.swapaxes(0, 1))


def test_the_other_inputs_tell_which_axis_it_is() -> None:
    time = InputSpec("s", (None, None, 3), np.dtype(np.float32), axis=1)
    for s, count in ((random(7, 4, 3), 4), (random(7, 4, 3), 7)):
        loaded = load_samples({"x": random(count, 5), "s": s}, (STATES[0], time))
        assert loaded.shapes["s"] == ((7, 3) if count == 4 else (4, 3))
    with pytest.raises(SamplesError, match="differ in their number of samples: x has 5, s has 4"):
        load_samples({"x": random(5, 5), "s": random(7, 4, 3)}, (STATES[0], time))


SCALAR = InputSpec("g", (), np.dtype(np.float32), axis=None)


@pytest.mark.parametrize("value", [np.float32(2), np.full(7, 2.0)])
def test_an_input_without_axes_is_the_same_for_all_samples(value: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=random(7, 5), g=value)
    for source in ({"x": random(7, 5), "g": np.asarray(value)}, tmp_path / "a.npz"):
        loaded = load_samples(source, (STATES[0], SCALAR))
        assert loaded.shapes == {"x": (5,), "g": ()}
        assert [spec.axis for spec in loaded.inputs] == [0, None]
        np.testing.assert_array_equal(take_all(loaded)["g"], np.full(7, 2, np.float32))


def test_several_values_of_an_input_that_takes_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="several values for the model's input 'g'"):
        load_samples({"x": random(7, 5), "g": random(7)}, (STATES[0], SCALAR))
    for number in range(2):
        np.savez(tmp_path / f"{number}.npz", x=random(3, 5), g=np.float32(number))
    loaded = load_samples(tmp_path, (STATES[0], SCALAR))
    with pytest.raises(SamplesError, match=r"1\.npz, sample 0: has another value .* input 'g'"):
        take_all(loaded)


def test_an_array_that_is_an_input_as_a_whole_is_shared() -> None:
    table = InputSpec("t", (3, 4), np.dtype(np.float32))
    loaded = load_samples({"x": random(7, 5), "t": random(3, 4)}, (STATES[0], table))
    assert [spec.axis for spec in loaded.inputs] == [0, None]
    assert take_all(loaded)["t"].shape == (7, 3, 4)
    loaded = load_samples({"x": random(7, 5), "t": random(7, 4)}, (STATES[0], table))
    assert [spec.axis for spec in loaded.inputs] == [0, 0]  # the model takes 3 at once
    loaded = load_samples({"x": random(3, 5), "t": random(3, 4)}, (STATES[0], table))
    assert [spec.axis for spec in loaded.inputs] == [0, 0]


def test_shared_inputs_alone_are_no_samples() -> None:
    with pytest.raises(SamplesError, match="holds no input that differs"):
        load_samples({"g": np.array(1, np.float32)}, (SCALAR,))
