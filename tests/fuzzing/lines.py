"""Which lines have run, at hardly any cost once most of them have.

Those of the package are counted; those of the libraries that parse files for it lead to cases that
differ as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy.lib
import onnx_graphsurgeon
import PIL

import fskd_onnx
import fskd_onnx.passes

Line = tuple[str, int]

OWN = "fskd_onnx/"
"""What the files of the package begin with in `Line`."""

_ROOTS = {
    f"{Path(package.__file__).parent}/": package.__name__.replace(".", "/") + "/"
    for package in (fskd_onnx, fskd_onnx.passes, numpy.lib, onnx_graphsurgeon, PIL)
    if package.__file__
}


def place(file: str) -> str | None:
    """Return what a file of the package, or of such a library, is called; None for another."""
    for root, name in _ROOTS.items():
        if file.startswith(root):
            return name + file.removeprefix(root)
    return None


def own(file: str) -> str | None:
    """Return what a file of the package is called; None for another."""
    found = place(file)
    return found if found and found.startswith(OWN) else None


class Lines:
    """Collects lines that have not run before, in ``with`` blocks.

    A code object none of whose lines is left is no longer traced.

    Attributes:
        seen: all lines that have run.
        new: those of the last block.
    """

    def __init__(self, seen: set[Line]) -> None:
        self.seen, self.new = seen, set[Line]()
        self._left: dict[CodeType, tuple[str, set[int]]] = {}

    def __enter__(self) -> Lines:
        self.new = set()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.seen |= self.new

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code not in self._left:
            self._left[code] = self._untouched(code)
        return self._line if self._left[code][1] else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        file, left = self._left[frame.f_code]
        if event == "line" and frame.f_lineno in left:
            left.discard(frame.f_lineno)
            self.new.add((file, frame.f_lineno))
        return self._line if left else None

    def _untouched(self, code: CodeType) -> tuple[str, set[int]]:
        file = place(code.co_filename)
        if file is None:
            return "", set()
        lines = {line for *_, line in code.co_lines() if line} - {code.co_firstlineno}
        return file, {line for line in lines if (file, line) not in self.seen}
