"""Small pictures of samples that are image files, as a page holds them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from fskd_onnx.errors import FskdError

_SIDE = 160
# Of smaller pictures each pixel counts.
_EXACT = 64


def thumbnail(name: str) -> str:
    """Return the picture of a sample as a ``data:`` address; "" where it is none, or no longer.

    Args:
        name: of the sample; of an image, the path of its file.
    """
    from fskd_onnx.samples.image_files import IMAGE_SUFFIXES, decode

    path = Path(name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    try:
        image = decode(path)[0].convert("RGB")
    except FskdError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(image.size) <= _EXACT else "jpeg"
    file = io.BytesIO()
    image.save(file, kind, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
