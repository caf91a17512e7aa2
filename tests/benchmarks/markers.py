"""Parts of a document that a command writes, between two comments of HTML."""

from __future__ import annotations

import re
from pathlib import Path


def write_between(path: Path, marker: str, text: str) -> None:
    """Replace what stands between the markers.

    Args:
        path: the file.
        marker: name of the markers, ``<!-- name -->`` and ``<!-- /name -->``, each in a line.
        text: what to put there.

    Raises:
        ValueError: the file does not have one pair of markers.
    """
    document = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"{path}: there is not one pair of {marker} markers")
    written = pattern.sub(lambda found: found[1] + text + found[2], document)
    path.write_text(written, encoding="utf-8")
