"""Pictures of lines of text: words, fonts, sizes, colours, blur and slant at random.

Words are syllables in a row, so that any two draws have other texts. Fonts are those that
matplotlib ships, and Pillow's own.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = NDArray[np.float32]

_CONSONANTS = ("b", "br", "c", "ch", "d", "f", "g", "h", "k", "l", "m", "n", "p", "qu", "r", "s")
_MORE = ("sh", "st", "t", "tr", "v", "w", "y", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ou", "io")
_ENDS = ("", "", "n", "r", "s", "t", "l", "x")
_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
)
_LINE_HEIGHT = 48
_PAGE, _PICTURE = 320, 416
_DARK, _BRIGHT = (0, 110), (150, 256)


def direction_lines(count: int, rng: np.random.Generator) -> Floats:
    """Return lines for a network that tells which of them are upside down; half of them are.

    Returns:
        [count, 3, 48, 192], pixels as -1..1, 0 to the right of short lines.
    """
    lines = _lines(count, 192, rng)
    turned = rng.random(count) < 0.5
    return _padded(
        [line.rotate(180) if t else line for line, t in zip(lines, turned, strict=True)], 192
    )


def reading_lines(count: int, rng: np.random.Generator) -> Floats:
    """Return upright lines, [count, 3, 48, 320], pixels as -1..1, 0 to the right of short ones."""
    return _padded(_lines(count, 320, rng), 320)


def pages(count: int, rng: np.random.Generator) -> Floats:
    """Return pictures with some lines of text, [count, 3, 320, 320], pixels as -1..1."""
    return _normalised([_page(rng) for _ in range(count)])


def pictures(count: int, rng: np.random.Generator) -> Floats:
    """Return pictures with some lines of text, [count, 3, 416, 416], pixels as 0..255."""
    side = (_PICTURE, _PICTURE)
    drawn = [_page(rng).resize(side, Image.Resampling.BILINEAR) for _ in range(count)]
    return np.stack([np.asarray(page, np.float32).transpose(2, 0, 1) for page in drawn])


def _lines(count: int, width: int, rng: np.random.Generator) -> list[Image.Image]:
    """Draw lines of 48 pixels in height, and of a width of at most so many."""
    lines = []
    for _ in range(count):
        line = _line(_text(rng, int(rng.integers(1, 4))), int(rng.integers(16, 56)), rng)
        scaled = min(width, round(line.width * _LINE_HEIGHT / line.height))
        lines.append(line.resize((scaled, _LINE_HEIGHT), Image.Resampling.BILINEAR))
    return lines


def _line(text: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a text on a background of its own, slightly turned and blurred."""
    font = _font(size, rng)
    left, top, right, bottom = font.getbbox(text)
    margin = rng.integers(1, 2 + size // 4, 2)
    extent = (int(right - left + 2 * margin[0]), int(bottom - top + 2 * margin[1]))
    paper, ink = _colours(rng)
    image = Image.new("RGB", extent, paper)
    place = (float(margin[0] - left), float(margin[1] - top))
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font)
    angle = float(rng.uniform(-3, 3))
    image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=paper)
    return _worn(image, size / 48, rng)


def _page(rng: np.random.Generator) -> Image.Image:
    """Draw lines below each other, with space and some bars between them."""
    paper, ink = _colours(rng)
    page = Image.new("RGB", (_PAGE, _PAGE), paper)
    draw = ImageDraw.Draw(page)
    y = int(rng.integers(4, 60))
    while y < _PAGE - 16:
        size = int(rng.integers(12, 44))
        x = int(rng.integers(0, _PAGE // 2))
        if rng.random() < 0.15:
            draw.rectangle((x, y, int(rng.integers(x + 10, _PAGE)), y + size // 2), fill=ink)
        else:
            text = _text(rng, int(rng.integers(1, 4)))
            draw.text((x, y), text, fill=ink, font=_font(size, rng))
        y += int(size * rng.uniform(1.2, 3))
    angle = float(rng.uniform(-6, 6))
    return _worn(page.rotate(angle, Image.Resampling.BILINEAR, fillcolor=paper), 1.0, rng)


def _worn(image: Image.Image, blur: float, rng: np.random.Generator) -> Image.Image:
    """Blur an image and add noise."""
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2)) * blur))
    pixels = np.asarray(image, np.float64)
    pixels = pixels + rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def _text(rng: np.random.Generator, words: int) -> str:
    return " ".join(_word(rng) for _ in range(words))


def _word(rng: np.random.Generator) -> str:
    """Return a word of one to four syllables, or a number."""
    if rng.random() < 0.2:
        return f"{rng.integers(1, 10 ** int(rng.integers(2, 7)))}"
    parts = [
        str(rng.choice(sounds))
        for _ in range(int(rng.integers(1, 5)))
        for sounds in ((*_CONSONANTS, *_MORE), _VOWELS, _ENDS)
    ]
    word = "".join(parts)
    return str(rng.choice([word, word, word.capitalize(), word.upper()]))


def _font(size: int, rng: np.random.Generator) -> ImageFont.FreeTypeFont:
    at = int(rng.integers(len(_FONTS) + 1))
    if at < len(_FONTS):
        return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf", _FONTS[at]), size)
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)
    return own


def _colours(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a colour of the paper and one of the ink, one of them dark and the other bright."""
    pair = [tuple(int(value) for value in rng.integers(*span, 3)) for span in (_BRIGHT, _DARK)]
    paper, ink = pair if rng.random() < 0.7 else reversed(pair)
    return paper, ink


def _padded(lines: list[Image.Image], width: int) -> Floats:
    """Return lines as rows of one array, zero to their right."""
    batch = np.zeros((len(lines), 3, _LINE_HEIGHT, width), np.float32)
    for row, line in zip(batch, lines, strict=True):
        row[:, :, : line.width] = _normalised([line])[0]
    return batch


def _normalised(images: list[Image.Image]) -> Floats:
    """Return images of one size, [count, 3, height, width], pixels as -1..1, blue first."""
    pixels = np.stack([np.asarray(image, np.float32)[:, :, ::-1] for image in images])
    return ((pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).astype(np.float32)
