"""Images are read as a viewer shows them, or refused by the name of their file."""

from __future__ import annotations

import io
import logging
import struct
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from fskd_onnx.errors import FskdError, PreprocessError, SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.samples.image_files import decode
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import InputSpec

COLOUR = (InputSpec("x", (None, 3, None, None), np.dtype("float32")),)
GREY = (InputSpec("x", (None, 1, None, None), np.dtype("float32")),)
RAW = Preprocess(preset="raw")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
ORIENTATION = ExifTags.Base.Orientation


def read(path: Path, inputs: tuple[InputSpec, ...] = COLOUR) -> NDArray[Any]:
    """Give the pixels, height x width x channels; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = load_samples(path, inputs, RAW)
        tensor = samples.take(np.arange(1))["x"][0]
    return np.moveaxis(tensor, 0, -1).astype(np.uint8)


def refusal(path: Path) -> str:
    with warnings.catch_warnings(), pytest.raises(FskdError) as caught:
        warnings.simplefilter("error")
        load_samples(path, COLOUR, RAW)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Give a grey PNG with no pixels in it but for those of the chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


# --- upright ---


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_turned_upright(value: int, format_: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    options = {"lossless": True} if format_ == "WEBP" else {"quality": 100}
    path.write_bytes(encoded(PICTURE, format_, exif=orientation(value), **options))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == ((9, 6, 3) if value > 4 else (6, 9, 3))
    np.testing.assert_array_equal(read(path), expected)


def test_upright_is_what_the_camera_saw(tmp_path: Path) -> None:
    # Orientation 6: the first row of the file is the right side of the picture.
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE.transpose(Image.Transpose.ROTATE_90), "PNG"))
    turned = read(path)
    path.write_bytes(
        encoded(PICTURE.transpose(Image.Transpose.ROTATE_90), "PNG", exif=orientation(6))
    )
    np.testing.assert_array_equal(read(path), np.asarray(PICTURE))
    np.testing.assert_array_equal(np.rot90(np.asarray(PICTURE)), turned)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(value: int, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE, "PNG", exif=orientation(value)))
    np.testing.assert_array_equal(read(path), np.asarray(PICTURE))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x09\0\0\0\xff\xff\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 60_000,
    ],
)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_broken_and_large_exif_changes_nothing(exif: bytes, format_: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(PICTURE, format_))
    plain = read(path)
    path.write_bytes(encoded(PICTURE, format_, exif=exif))
    np.testing.assert_array_equal(read(path), plain)


# --- modes and transparency ---


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("inputs", [COLOUR, GREY])
def test_opaque_pictures_of_all_modes(
    mode: str, inputs: tuple[InputSpec, ...], tmp_path: Path
) -> None:
    image = PICTURE.convert(mode)
    format_ = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image, format_, quality=100))
    with Image.open(path) as again:
        expected = again.convert("RGB" if inputs is COLOUR else "L")
    pixels = read(path, inputs)
    np.testing.assert_array_equal(pixels.squeeze(), np.asarray(expected))


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 0, 255))
    image.putpixel((1, 0), (200, 100, 0, 0))
    image.putpixel((2, 0), (200, 100, 0, 51))
    path = tmp_path / "a.png"
    image.save(path)
    assert read(path)[0].tolist() == [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    image.convert("LA").save(path)
    grey = int(np.asarray(image.convert("L"))[0, 0])
    over = round(255 - (255 - grey) / 5)
    assert read(path, GREY).ravel().tolist() == [grey, 255, over]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_colour_that_is_transparent_shows_white(mode: str, tmp_path: Path) -> None:
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 255])
        image.putpixel((1, 0), 1)
    path = tmp_path / "a.png"
    image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert read(path)[0].tolist() == [[255] * 3, [0, 0, 255] if mode == "P" else [255] * 3]


def test_a_palette_with_an_alpha_per_colour(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    for column in range(3):
        image.putpixel((column, 0), column)
    path = tmp_path / "a.png"
    image.save(path, transparency=bytes([0, 255, 0]))
    assert read(path)[0].tolist() == [[255] * 3, [10, 20, 30], [255] * 3]


def test_transparency_is_noted_once_per_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, opaque = tmp_path / "seen_through", tmp_path / "opaque"
    for place, alpha in ((folder, 128), (opaque, 255)):
        place.mkdir()
        for number in range(3):
            image = PICTURE.copy()
            image.putalpha(alpha)
            image.save(place / f"{number}.png")
    with caplog.at_level(logging.INFO):
        load_samples(folder, COLOUR, RAW).take(np.arange(3))
        load_samples(opaque, COLOUR, RAW).take(np.arange(3))
    (message,) = caplog.messages
    assert message.startswith(f"{folder / '0.png'}: what is transparent in images is read as white")


def test_deep_grey_is_refused_with_and_without_a_transparent_value(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    deep = Image.fromarray(np.full((2, 2), 40_000, np.uint16))
    several: list[dict[str, Any]] = [{}, {"transparency": 40_000}]
    for options in several:
        deep.save(path, **options)
        with pytest.raises(PreprocessError, match=r"a\.png: has more than 8 bits per channel"):
            read(path)


# --- what is in a file, not what it is called ---


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP", "WEBP"])
@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp", ".webp"])
def test_the_suffix_need_not_be_that_of_the_format(
    format_: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(PICTURE, format_))
    with Image.open(path) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(read(path), expected)


def other_formats() -> dict[str, bytes]:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>'
    found = {"svg": svg, "html": b"<!DOCTYPE html><html></html>", "text": b"no image", "none": b""}
    found["eps"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for format_ in ("TIFF", "GIF", "ICO", "PPM", "TGA", "PDF"):
        found[format_.lower()] = encoded(PICTURE, format_)
    return found


@pytest.mark.parametrize("name", other_formats())
def test_other_formats_are_refused_whatever_they_are_called(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(other_formats()[name])
    assert "it is no PNG, JPEG, BMP or WEBP file" in refusal(path)


# --- one picture ---


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_animations_are_refused(format_: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    others = [ImageOps.flip(PICTURE), ImageOps.mirror(PICTURE)]
    path.write_bytes(encoded(PICTURE, format_, save_all=True, append_images=others))
    assert "is animated, with 3 frames; give images that stand still" in refusal(path)


def test_the_first_picture_of_several_in_a_photo_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    others = [PICTURE.resize((4, 4))]
    path.write_bytes(encoded(PICTURE, "JPEG", quality=95))
    first = read(path)
    path.write_bytes(encoded(PICTURE, "MPO", save_all=True, append_images=others, quality=95))
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 2
    np.testing.assert_array_equal(read(path), first)


# --- broken, empty, too large ---


@pytest.mark.parametrize(
    ("format_", "mode"),
    [("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "L"), ("BMP", "P"), ("WEBP", "RGBA")],
)
def test_part_of_a_file_is_never_part_of_a_picture(format_: str, mode: str, tmp_path: Path) -> None:
    whole = encoded(PICTURE.convert(mode), format_)
    path = tmp_path / "a.png"
    path.write_bytes(whole)
    expected = np.asarray(decode(path)[0])
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            image, _ = decode(path)
        except SamplesError as error:
            assert "a.png: cannot be read as an image" in str(error)
        else:  # what follows the pixels says nothing
            np.testing.assert_array_equal(np.asarray(image), expected)
    assert length > 50


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (0, 0)])
def test_pictures_without_pixels_are_refused(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(*size, chunk(b"IDAT", zlib.compress(b"\0"))))
    assert "cannot be read as an image" in refusal(path)
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header)
    assert "cannot be read as an image" in refusal(path)


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0" * 1000))))
    assert "could be decompression bomb" in refusal(path)
    # The text beside a picture can be one as well.
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
    path.write_bytes(png(1, 1, text, chunk(b"IDAT", zlib.compress(b"\0\0"))))
    assert "cannot be read as an image" in refusal(path)


def test_what_a_file_says_of_its_length_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = zlib.compress(b"\0" * 1000)
    whole = png(2, 2, chunk(b"IDAT", pixels))
    claimed = struct.pack(">I", 2**31 - 1)
    path.write_bytes(whole.replace(struct.pack(">I", len(pixels)) + b"IDAT", claimed + b"IDAT"))
    tracemalloc.start()
    try:
        with suppress(SamplesError):
            decode(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_large_pictures_are_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6 * 9 - 1)
    np.testing.assert_array_equal(read(path), np.asarray(PICTURE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6 * 9 // 2 - 1)
    assert "could be decompression bomb" in refusal(path)


def test_a_line_is_not_made_a_bomb_by_resizing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (1_000_000, 1)).save(path)
    with pytest.raises(PreprocessError, match=r"a\.png: is 1 x 1000000 pixels and --resize makes"):
        load_samples(path, COLOUR, Preprocess(preset="raw", resize=256, crop=224))
