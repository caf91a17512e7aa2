"""One bad input: files that a function spoils, a command line, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from tests.helpers import build

FIT = ("fit", "teacher.onnx", "student.onnx", "samples.npy", "-o", "fused.onnx")
MATCH = ("match", "teacher.onnx", "student.onnx")
COMPARE = ("compare", "teacher.onnx", "student.onnx", "samples.npy")

SAMPLES = 24
_TEXT = """g (float[N,2,6,6] x) => (float[N,3] y)
    <float[{w},2,3,3] w1, float[{w}] b1, float[4,{w},3,3] w2, float[4] b2, float[4,3] w3> {{
    [first] a = Conv <pads = [1,1,1,1]> (x, w1, b1)
    [active] r = Relu (a)
    [second] c = Conv (r, w2, b2)
    [pool] p = GlobalAveragePool (c)
    [flat] f = Flatten (p)
    [last] y = Gemm (f, w3)
}}"""


@dataclass(frozen=True)
class Row:
    """A bad input.

    Attributes:
        name: of the row.
        spoil: takes a folder of good files and spoils some of them, or adds others.
        words: parts of the line that is to be said.
        arguments: of the command.
        status: with which it ends.
    """

    name: str
    spoil: Callable[[Path], None]
    words: tuple[str, ...]
    arguments: tuple[str, ...] = FIT
    status: int = 1


def write_good_files(folder: Path) -> None:
    """Write a teacher, a student, samples, labels, groups and a map that belong together."""
    teacher = build(_TEXT.format(w=6))
    student = build(_TEXT.format(w=4))
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in teacher.graph.initializer
    }
    sliced = {"w1": weights["w1"][:4], "b1": weights["b1"][:4], "w2": weights["w2"][:, :4]}
    for tensor in student.graph.initializer:
        value = sliced.get(tensor.name, weights[tensor.name])
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    onnx.save_model(teacher, folder / "teacher.onnx")
    onnx.save_model(student, folder / "student.onnx")
    rng = np.random.default_rng(0)
    np.save(folder / "samples.npy", rng.standard_normal((SAMPLES, 2, 6, 6)).astype(np.float32))
    lines = "".join(f"{number % 3}\n" for number in range(SAMPLES))
    (folder / "labels.txt").write_text(lines)
    (folder / "groups.txt").write_text(lines)
    (folder / "map.json").write_text('{"pairs": [{"student": "first", "teacher": null}]}')


class Table:
    """Rows that have something in common, entered by decorators."""

    def __init__(self, rows: list[Row], arguments: Sequence[str] = FIT, status: int = 1) -> None:
        """Take the list that rows are appended to, and what they have in common."""
        self._rows = rows
        self._common = Row("", lambda folder: None, (), tuple(arguments), status)

    def __call__(
        self, *words: str, arguments: Sequence[str] = (), name: str = ""
    ) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
        """Enter a function that spoils files, see `Row`; it gives the row its name."""

        def enter(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
            self.add(
                name or spoil.__name__.strip("_").replace("_", "-"),
                spoil,
                *words,
                arguments=arguments,
            )
            return spoil

        return enter

    def add(
        self,
        name: str,
        spoil: Callable[[Path], None],
        *words: str,
        arguments: Sequence[str] = (),
    ) -> None:
        """Enter a row."""
        chosen = tuple(arguments) or self._common.arguments
        self._rows.append(
            replace(self._common, name=name, spoil=spoil, words=words, arguments=chosen)
        )

    def model(
        self, *words: str, arguments: Sequence[str] = (), file: str = "student.onnx"
    ) -> Callable[[Callable[[onnx.ModelProto], None]], Callable[[onnx.ModelProto], None]]:
        """Enter a function that spoils a model, by default the student."""

        def enter(change: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto], None]:
            def spoil(folder: Path) -> None:
                model = onnx.load(folder / file)
                change(model)
                (folder / file).write_bytes(model.SerializePartialToString())

            name = change.__name__.strip("_").replace("_", "-")
            self.add(name, spoil, file, *words, arguments=arguments)
            return change

        return enter
