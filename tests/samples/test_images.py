"""Images become tensors exactly as asked for, and never by a silent default."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fskd_onnx.errors import PreprocessError
from fskd_onnx.options import PRESETS, ChannelOrder, Layout, Preprocess
from fskd_onnx.samples.images import fit_image, to_tensor
from fskd_onnx.serialization.interface import InputSpec


def spec(*shape: int | None, dtype: str = "float32") -> InputSpec:
    return InputSpec("x", (None, *shape), np.dtype(dtype))


GRAY = spec(1, None, None)
COLOUR = spec(3, None, None)
NHWC = spec(None, None, 3)

values = st.floats(-300, 300)
positive = st.floats(0.01, 300)
colour_pixels = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.just(3))
)


@given(
    colour_pixels,
    st.tuples(values, values, values),
    st.tuples(positive, positive, positive),
    st.floats(0.001, 2),
)
def test_normalisation_can_be_undone(
    pixels: NDArray[np.uint8],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float,
) -> None:
    tensor = to_tensor(
        Preprocess(mean=mean, std=std, scale=scale), pixels, spec(3, None, None, dtype="float64")
    )
    assert tensor.shape == (len(pixels), 3, *pixels.shape[1:3])
    restored = (np.moveaxis(tensor, 1, -1) * std + mean) / scale
    np.testing.assert_allclose(restored, pixels, atol=1e-6)


@given(colour_pixels, st.sampled_from(sorted(PRESETS)))
def test_layouts_and_channel_orders_are_only_permutations(
    pixels: NDArray[np.uint8], preset: str
) -> None:
    preprocess = Preprocess(preset=preset)
    first = to_tensor(preprocess, pixels, COLOUR)
    np.testing.assert_array_equal(np.moveaxis(first, 1, -1), to_tensor(preprocess, pixels, NHWC))
    other: ChannelOrder = "RGB" if PRESETS[preset].channel_order == "BGR" else "BGR"
    swapped = dataclasses.replace(preprocess, channel_order=other)
    np.testing.assert_array_equal(to_tensor(swapped, pixels[..., ::-1], COLOUR), first)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("imagenet", [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]),
        ("caffe", [51 - 103.939, 0 - 116.779, 255 - 123.68]),
        ("inception", [1.0, -1.0, -0.6]),
        ("raw", [255.0, 0.0, 51.0]),
        ("unit", [1.0, 0.0, 0.2]),
        ("fashion-mnist", [(1 - 0.2860) / 0.3530, -0.2860 / 0.3530, (0.2 - 0.2860) / 0.3530]),
    ],
)
def test_presets(preset: str, expected: list[float]) -> None:
    pixel = np.array([[[[255, 0, 51]]]], np.uint8)
    tensor = to_tensor(Preprocess(preset=preset), pixel, COLOUR)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor.ravel(), expected, rtol=1e-5)


def test_the_imagenet_preset_is_torchvisions_formula() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    expected = (pixels.transpose(0, 3, 1, 2) / 255.0 - mean) / std
    tensor = to_tensor(Preprocess(preset="imagenet"), pixels, COLOUR)
    np.testing.assert_allclose(tensor, expected, rtol=1e-6, atol=1e-6)


def test_the_inputs_type_is_honoured() -> None:
    pixels = np.full((1, 2, 2, 1), 51, np.uint8)
    half = to_tensor(Preprocess(preset="unit"), pixels, spec(1, 2, 2, dtype="float16"))
    assert half.dtype == np.float16
    raw = to_tensor(Preprocess(preset="raw"), pixels, spec(1, 2, 2, dtype="uint8"))
    assert raw.dtype == np.uint8
    assert (raw == 51).all()
    with pytest.raises(PreprocessError, match="--preprocess raw"):
        to_tensor(Preprocess(preset="unit"), pixels, spec(1, 2, 2, dtype="uint8"))
    with pytest.raises(PreprocessError, match="takes int64"):
        to_tensor(Preprocess(preset="raw"), pixels, spec(1, 2, 2, dtype="int64"))


def test_per_channel_values_need_the_channels() -> None:
    with pytest.raises(PreprocessError, match=r"3 values per pixel .* takes 1 channel"):
        to_tensor(Preprocess(preset="imagenet"), np.zeros((1, 4, 4), np.uint8), GRAY)


@pytest.mark.parametrize(
    ("shape", "layout", "size", "expected"),
    [
        ((3, 8, 6), None, (8, 6), (3, 8, 6)),
        ((8, 6, 3), None, (8, 6), (8, 6, 3)),
        ((8, 6, 1), None, (8, 6), (8, 6, 1)),
        ((3, 8, 3), None, (8, 3), (3, 8, 3)),
        ((3, 8, 3), "NHWC", (3, 8), (3, 8, 3)),
        ((None, 8, 6), None, (8, 6), (3, 8, 6)),
        ((None, None, None), "NHWC", (8, 6), (8, 6, 3)),
    ],
)
def test_layout_follows_the_models_input(
    shape: tuple[int | None, ...],
    layout: Layout | None,
    size: tuple[int, int],
    expected: tuple[int, ...],
) -> None:
    preprocess = Preprocess(preset="unit", layout=layout)
    image = Image.new("RGB", size[::-1])
    pixels = fit_image(preprocess, image, spec(*shape), "a.png")
    assert to_tensor(preprocess, pixels[np.newaxis], spec(*shape)).shape == (1, *expected)


def test_inputs_that_take_no_images() -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(PreprocessError, match="2 dimensions and images need 4"):
        fit_image(Preprocess(preset="unit"), image, spec(16), "a.png")
    with pytest.raises(PreprocessError, match="takes 7 channels"):
        fit_image(Preprocess(preset="unit"), image, spec(7, 4, 4), "a.png")


def test_one_channel_reads_grayscale_and_three_read_rgb() -> None:
    preprocess = Preprocess(preset="raw")
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert fit_image(preprocess, red, GRAY, "red").ravel().tolist() == [76] * 4
    grey = Image.new("L", (1, 1), 9)
    assert fit_image(preprocess, grey, COLOUR, "grey").ravel().tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((6, 5), GRAY),
        ((6, 5, 1), GRAY),
        ((1, 6, 5), GRAY),
        ((6, 5, 3), COLOUR),
        ((3, 6, 5), COLOUR),
    ],
)
def test_pixel_arrays_are_read_in_every_usual_shape(
    shape: tuple[int, ...], target: InputSpec
) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    pixels = fit_image(Preprocess(preset="raw"), array, target, "a")
    expected = array.transpose(1, 2, 0) if shape[0] == 3 else array.reshape(pixels.shape)
    np.testing.assert_array_equal(pixels, expected)


def test_ambiguous_pixel_arrays_follow_the_models_input() -> None:
    array = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    raw = Preprocess(preset="raw")
    np.testing.assert_array_equal(
        fit_image(raw, array, spec(3, 5, 3), "a"), array.transpose(1, 2, 0)
    )
    np.testing.assert_array_equal(fit_image(raw, array, spec(3, 3, 5), "a"), array)


@pytest.mark.parametrize("shape", [(), (4,), (4, 5, 2), (2, 3, 4, 5), (0, 4), (3, 0, 4)])
def test_arrays_that_are_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(PreprocessError, match="are no image"):
        fit_image(Preprocess(preset="raw"), np.zeros(shape, np.uint8), COLOUR, "a")


def test_sizes_that_differ_name_the_image_and_the_options() -> None:
    with pytest.raises(PreprocessError, match=r"cat\.png: is 4 x 6 pixels .* 8 x 8; .*--resize"):
        fit_image(Preprocess(preset="raw"), Image.new("L", (6, 4)), spec(1, 8, 8), "cat.png")


@pytest.mark.parametrize(
    ("resize", "crop", "size"),
    [(10, None, (20, 10)), ((6, 7), None, (6, 7)), (None, 8, (8, 8)), (10, (8, 4), (8, 4))],
)
def test_resize_and_crop(resize: Any, crop: Any, size: tuple[int, int]) -> None:
    image = Image.new("L", (50, 100))
    pixels = fit_image(Preprocess(preset="raw", resize=resize, crop=crop), image, GRAY, "a")
    assert pixels.shape == (*size, 1)


def test_the_crop_is_the_centre() -> None:
    array = np.zeros((5, 7), np.uint8)
    array[2, 3] = 255
    pixels = fit_image(Preprocess(preset="raw", crop=1), array, GRAY, "a")
    assert pixels.item() == 255


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(PreprocessError, match=r"a\.png: is 4 x 4 pixels, less than the crop"):
        fit_image(Preprocess(preset="raw", crop=5), Image.new("L", (4, 4)), GRAY, "a.png")


@pytest.mark.parametrize(
    ("sides", "sizes", "text"),
    [
        ((28, 28), {}, r"50 x 70 pixels and .* takes 28 x 28; give --resize 28 --crop 28, or"),
        (
            (28, 28),
            {"resize": 28},
            r"28 x 39 pixels after --resize and .*; give --resize 28 --crop",
        ),
        ((28, 28), {"resize": 30, "crop": 20}, r"20 x 20 pixels after --resize and --crop and"),
        (
            (28, 14),
            {},
            r"takes 28 x 14; give --resize 28x14, or a larger --resize and --crop 28x14$",
        ),
        ((None, 14), {}, r"takes any x 14; give --resize or --crop$"),
    ],
)
def test_images_of_another_size_are_refused_with_what_to_give(
    sides: tuple[int | None, int], sizes: dict[str, Any], text: str
) -> None:
    image = Image.new("L", (70, 50))
    with pytest.raises(PreprocessError, match=text):
        fit_image(Preprocess(preset="raw", **sizes), image, spec(1, *sides), "a.png")


def test_deep_images_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    with (
        Image.open(path) as image,
        pytest.raises(PreprocessError, match="more than 8 bits per channel"),
    ):
        fit_image(Preprocess(preset="raw"), image, GRAY, str(path))
